"""Before anything starts: items from lines, and all that is wrong with them, from a misspelt name to a model's size.

What a job would be refused for is asked of every item that is left to do (judging.py).
"""

from __future__ import annotations

import collections
import dataclasses
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wan_compat.policies.batch import names
from wan_compat.policies.batch.expansion import expand
from wan_compat.policies.batch.fields import PATHS, settle_names
from wan_compat.policies.batch.items import MAX_PROBLEMS, Item, Line, Problem
from wan_compat.policies.batch.progress import Progress, Shard, left_to_do
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import BatchInvalid, DiskExceeded
from wan_compat.supervisor.batch.finding import is_replaceable, may_be_there
from wan_compat.supervisor.batch.folder import BatchFolder
from wan_compat.supervisor.batch.journal import Follower
from wan_compat.supervisor.batch.judging import Judge
from wan_compat.supervisor.batch.reading import BatchFile
from wan_compat.supervisor.batch.room import free_bytes
from wan_compat.supervisor.outputs import MIN_FREE_BYTES

# Of one and the same thing in several lines, so many are told.
MAX_ALIKE = 10


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """A batch that may start.

    Args:
        progress: What earlier runs recorded.
        left: What this run has to do, in its order.
        changed: Items that earlier runs knew and that are not, or no longer so, in the file.
    """

    file: BatchFile
    folder: BatchFolder
    items: tuple[Item, ...]
    progress: Progress
    left: tuple[Item, ...]
    changed: int

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(item.request.model for item in self.left))


def prepare(
    file: BatchFile,
    folder: BatchFolder,
    defaults: Mapping[str, Any],
    *,
    template: str = names.DEFAULT_TEMPLATE,
    shard: Shard | None = None,
    retry_failed: bool = False,
    overwrite: bool = False,
    run_fields: Mapping[str, Any] | None = None,
    policy: Policy | None = None,
    workers: int = 1,
    fetch: Callable[[Sequence[str]], None] | None = None,
) -> BatchPlan:
    """Return the plan of a batch.

    Args:
        defaults: Of the command line, under the names of lines; paths in it count from the working folder.
        overwrite: Files that stand where videos shall be may be replaced.
        run_fields: What every request gets in addition: mode, limits.
        policy: What jobs may do and use; None is the built-in one.
        workers: How many will share the machine.
        fetch: Called with the models that are about to be looked at, if nothing is wrong with the lines.

    Raises:
        BatchInvalid: Lines cannot be done as asked; `details["problems"]` has them all, up to a bound.
        InvalidRequest: The template is none.
        JournalUnusable: What earlier runs left cannot be read.
        DiskExceeded: There is no place for the videos.
    """
    try:
        names.check_template(template)
    except ValueError as error:
        raise BatchInvalid.of([f"--name {error}"]) from error
    progress = Progress(Follower().fresh(folder.journals()))
    problems = list(file.problems)
    lines, base = _settle(file, defaults, problems)
    taken = {name: key for key, output in progress.outputs.items() for name in names.beside(output)}
    items, more = expand(lines, base, template=template, base=file.folder, taken=taken, known=progress.outputs)
    if file.lines or not problems:  # else that there is nothing is not what is wrong
        problems += more
    left = left_to_do(items, progress, retry_failed=retry_failed, shard=shard)
    left += _gone(items, progress, folder, shard or Shard())
    problems += _check_files(left)
    problems += _check_outputs(left, folder, progress, overwrite=overwrite)
    if fetch is not None:
        _refuse(problems, file)  # gigabytes are fetched for a batch that will run
        fetch(list(dict.fromkeys(item.request.model for item in left)))
    lacking = {problem.line for problem in problems}
    judge = Judge(run_fields or {}, policy or Policy(), workers)
    problems += judge.judge([item for item in left if item.line not in lacking])
    _refuse(problems, file)
    _check_room(folder, left)
    keys = {item.key for item in items}
    return BatchPlan(
        file=file,
        folder=folder,
        items=tuple(items),
        progress=progress,
        left=tuple(left),
        changed=sum(key not in keys for key in progress.outputs),
    )


def _refuse(problems: list[Problem], file: BatchFile) -> None:
    if not problems:
        return
    told: list[str] = []
    same: collections.Counter[tuple[str, str]] = collections.Counter()
    for problem in sorted(problems, key=lambda problem: problem.line):
        same[problem.field, problem.why] += 1
        # A wrong default is wrong in every line.
        if same[problem.field, problem.why] <= MAX_ALIKE:
            told.append(problem.describe(file.name))
    alike = sum(count - MAX_ALIKE for count in same.values() if count > MAX_ALIKE)
    beyond = len(told) - MAX_PROBLEMS
    if (more := alike + max(0, beyond)) > 0:
        told = [*told[:MAX_PROBLEMS], f"and {more} more" + (", of the same kinds" if beyond <= 0 else "")]
    raise BatchInvalid.of(told, hint="correct the lines and run the same command again")


def _settle(file: BatchFile, defaults: Mapping[str, Any], problems: list[Problem]) -> tuple[list[Line], dict[str, Any]]:
    """Return the lines with full names and absolute paths, and the defaults: the file's over the command line's."""
    said, wrong = settle_names(Line(0, defaults))
    problems += wrong
    base = _absolute(said, os.getcwd())
    own, wrong = settle_names(file.defaults)
    problems += wrong
    for one, other in (("seed", "seeds"), ("seeds", "seed")):
        if one in own and other not in own:
            base.pop(other, None)
    base |= _absolute(own, file.folder)
    lines = []
    for line in file.lines:
        fields, wrong = settle_names(line)
        problems += wrong
        if not wrong:
            lines.append(Line(line.number, _absolute(fields, file.folder)))
    return lines, base


def _absolute(fields: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the fields with their paths absolute. A model that is no path from here may be a hub id, and stays."""

    def place(path: Any) -> Any:
        return os.path.normpath(os.path.join(folder, path)) if isinstance(path, str) and path else path

    found = dict(fields)
    for name in PATHS & found.keys():
        found[name] = place(found[name])
    model = found.get("model")
    if isinstance(model, str) and (model.startswith((".", "/")) or os.path.exists(os.path.join(folder, model))):
        found["model"] = place(model)
    if found.get("references"):
        found["references"] = tuple(place(path) for path in found["references"])
    if found.get("loras"):
        found["loras"] = [
            {**lora, "path": place(lora.get("path"))} if isinstance(lora, dict) else lora for lora in found["loras"]
        ]
    return found


def _gone(items: Sequence[Item], progress: Progress, folder: BatchFolder, shard: Shard) -> list[Item]:
    """Return what was done and is not there any more."""
    return [
        item
        for item in items
        if shard.has(item)
        and (done := progress.done(item.key)) is not None
        and not os.path.lexists(folder.output(done.output))
    ]


def _check_files(items: Sequence[Item]) -> list[Problem]:
    """Look at every file that lines name, each once."""
    problems: list[Problem] = []
    known: dict[str, str | None] = {}
    for item in items:
        request = item.request
        named = [(name, path) for name in sorted(PATHS) if (path := getattr(request, name)) is not None]
        named += [("references", path) for path in request.references]
        named += [("loras", lora.path) for lora in request.loras]
        for name, path in named:
            if path not in known:
                known[path] = _objection(path, folder=name == "components")
            if (why := known[path]) is not None:
                problems.append(Problem(item.line, name, f"{path!r} {why}"))
    return list(dict.fromkeys(problems))  # a line with many seeds has each of them once


def _objection(path: str, *, folder: bool) -> str | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        return f"cannot be opened: {error.strerror if isinstance(error, OSError) else 'it has a NUL in its name'}"
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(status.st_mode):
        return "is no folder" if folder else "is no regular file"
    if not folder and status.st_size == 0:
        return "is empty"
    return None if os.access(path, os.R_OK) else "cannot be read by you"


def _check_outputs(items: Sequence[Item], folder: BatchFolder, progress: Progress, *, overwrite: bool) -> list[Problem]:
    problems = []
    for item in items:
        if may_be_there(folder, item, item.output, progress.begun(item.key)):
            continue
        replaceable = is_replaceable(folder, item.output)
        if overwrite and replaceable:
            continue
        remedy = "; --overwrite replaces it" if replaceable else ", nor a file that could be replaced"
        problems.append(
            Problem(item.line, "output", f"{item.output!r} exists and is not the video of this line{remedy}")
        )
    return problems


def _check_room(folder: BatchFolder, left: Sequence[Item]) -> None:
    place = folder.path
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = free_bytes(place)
    if left and free < MIN_FREE_BYTES:
        raise DiskExceeded(
            f"{place!r} has {free / 1e6:.0f} MB free; a batch begins with at least {MIN_FREE_BYTES / 1e6:.0f} MB",
            hint="free some space or choose another --out",
        )
