"""Before anything starts: items from lines, and all that is wrong with them, from a misspelt name to a model's size.

What a job would be refused for is asked here with the job's own functions, in its order, for every item that is left to
do: model and approval, task and media, size, plan, file format. Nothing is loaded and no process started but ffmpeg's.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wan_compat.policies.batch import names
from wan_compat.policies.batch.expansion import expand
from wan_compat.policies.batch.fields import KNOWN, PATHS, settle_names
from wan_compat.policies.batch.items import MAX_PROBLEMS, Item, Line, Problem
from wan_compat.policies.batch.progress import Progress, Shard, left_to_do
from wan_compat.protocol.errors import BatchInvalid, DiskExceeded, WanCompatError
from wan_compat.protocol.media import MediaSpec
from wan_compat.supervisor.batch.finding import may_be_there
from wan_compat.supervisor.batch.folder import BatchFolder
from wan_compat.supervisor.batch.journal import Follower
from wan_compat.supervisor.batch.reading import BatchFile
from wan_compat.supervisor.batch.room import free_bytes
from wan_compat.supervisor.outputs import MIN_FREE_BYTES


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """A batch that may start.

    Args:
        progress: What earlier runs recorded.
        left: What this run has to do, in its order.
        changed: Items that earlier runs knew and that are not, or no longer so, in the file.
        moved: Items whose output got another name, since a video of an earlier line has theirs.
    """

    file: BatchFile
    folder: BatchFolder
    items: tuple[Item, ...]
    progress: Progress
    left: tuple[Item, ...]
    changed: int
    moved: tuple[Item, ...]

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
    run_fields: Mapping[str, Any] | None = None,
    fetch: Callable[[Sequence[str]], None] | None = None,
) -> BatchPlan:
    """Return the plan of a batch.

    Args:
        defaults: Of the command line, under the names of lines; paths in it count from the working folder.
        run_fields: What every request gets in addition: mode, limits.
        fetch: Called with the models that are about to be looked at, if nothing is wrong with the lines.

    Raises:
        BatchInvalid: Lines cannot be done as asked; `details["problems"]` has them all, up to a bound.
        InvalidRequest: The template is none.
        JournalUnusable: What earlier runs left cannot be read.
        OutputNotWritable, DiskExceeded: There is no place for the videos.
    """
    try:
        names.check_template(template)
    except ValueError as error:
        raise BatchInvalid.of([f"--name {error}"]) from error
    folder.check()
    progress = Progress(Follower().fresh(folder.journals()))
    problems = list(file.problems)
    lines, base = _settle(file, defaults, problems)
    taken = {name: key for key, output in progress.outputs.items() for name in names.beside(output)}
    items, more = expand(lines, base, template=template, base=file.folder, taken=taken, known=progress.outputs)
    if file.lines or not problems:  # else that there is nothing is not what is wrong
        problems += more
    left = left_to_do(items, progress, retry_failed=retry_failed, shard=shard)
    gone = _gone(items, progress, folder, shard or Shard())
    left += [item for item in gone if item not in left]
    problems += _check_files(left)
    problems += _check_outputs(left, folder, progress)
    if fetch is not None:
        _refuse(problems, file)  # gigabytes are fetched for a batch that will run
        fetch(list(dict.fromkeys(item.request.model for item in left)))
    lacking = {problem.line for problem in problems}
    problems += _Judge(run_fields or {}, folder).judge([item for item in left if item.line not in lacking])
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
        moved=tuple(item for item in items if item.key not in progress.outputs and item.output.endswith(_aside(item))),
    )


def _aside(item: Item) -> str:
    return f"-{item.key[:8]}{os.path.splitext(item.output)[1]}"


def _refuse(problems: list[Problem], file: BatchFile) -> None:
    if not problems:
        return
    ordered = sorted(problems, key=lambda problem: problem.line)
    told = [problem.describe(file.name) for problem in ordered[:MAX_PROBLEMS]]
    if len(ordered) > MAX_PROBLEMS:
        told.append(f"and {len(ordered) - MAX_PROBLEMS} more")
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


def _check_outputs(items: Sequence[Item], folder: BatchFolder, progress: Progress) -> list[Problem]:
    return [
        Problem(item.line, "output", f"{item.output!r} exists and is not the video of this line")
        for item in items
        if not may_be_there(folder, item, item.output, progress.begun(item.key))
    ]


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


class _Judge:
    """Asks of every item what its job will ask, and of what items have in common only once."""

    def __init__(self, run_fields: Mapping[str, Any], folder: BatchFolder) -> None:
        from wan_compat.supervisor.host import read_host

        self._run_fields, self._folder = dict(run_fields), folder
        self._host = read_host()
        self._models: dict[Any, Any] = {}
        self._plans: dict[Any, WanCompatError | None] = {}
        self._encoders: dict[str, WanCompatError | None] = {}
        self._sounds: dict[str, WanCompatError | None] = {}

    def judge(self, items: Sequence[Item]) -> list[Problem]:
        problems: dict[tuple[str, str], Problem] = {}
        more: dict[tuple[str, str], int] = {}
        for item in items:
            error = self._ask(item)
            if error is None:
                continue
            # The same model's trouble a thousand times is one trouble.
            field = _field_of(error)
            same = (item.request.model if field == "model" else f"line {item.line}", error.message)
            if same in problems:
                more[same] = more.get(same, 0) + 1
            else:
                problems[same] = Problem(item.line, field, error.message)
        return [
            dataclasses.replace(problem, why=f"{problem.why} (and {more[same]} more)") if same in more else problem
            for same, problem in problems.items()
        ]

    def _ask(self, item: Item) -> WanCompatError | None:
        from wan_compat.policies.encoding import Writer, plan_encoding, suffix_of
        from wan_compat.policies.requests import resolve_request
        from wan_compat.policies.tasks import media_of

        request = item.request.model_copy(update=self._run_fields)
        model = self._model(request)
        if isinstance(model, WanCompatError):
            return model
        try:
            media = tuple(MediaSpec(role=role, bytes=os.stat(path).st_size) for role, path in media_of(request))
            resolved = resolve_request(request, model, seed=item.seed, media=media)
            frames = resolved.params.frames
            suffix = suffix_of(item.output, request.format)
            config = plan_encoding(
                frames.width, frames.height, resolved.fps, suffix, request, num_frames=frames.num_frames
            )
        except WanCompatError as error:
            return error
        if config.format.writer is Writer.FFMPEG and (lack := self._encoder(config)) is not None:
            return lack
        if request.audio is not None and (lack := self._sound(request.audio)) is not None:
            return lack
        return self._plan(request, model, resolved)

    def _model(self, request: Any) -> Any:
        """Return the decision about a request's model, or why there is none."""
        from wan_compat.policies.limits import memory_limit
        from wan_compat.policies.tasks import wish_of
        from wan_compat.supervisor.model_choice import choose_model
        from wan_compat.supervisor.model_parts import parts_of

        wish, parts = wish_of(request), parts_of(request)
        same = (request.model, wish, repr(parts))
        if same not in self._models:
            try:
                self._models[same] = choose_model(
                    request.model,
                    request.mode,
                    threads=self._host.cpu_count,
                    memory_limit_bytes=memory_limit(request.memory_limit_bytes, self._host),
                    restricted=request.restricted,
                    wish=wish,
                    parts=parts,
                )
            except WanCompatError as error:
                self._models[same] = error
        return self._models[same]

    def _plan(self, request: Any, model: Any, resolved: Any) -> WanCompatError | None:
        from wan_compat.policies.limits import memory_limit
        from wan_compat.supervisor.job_plan import plan_job
        from wan_compat.supervisor.machine import worker_machine

        frames = resolved.params.frames
        wishes = ("precision", "offload", "vae_tiling", "cache", "attention_backend")
        guided = resolved.params.guidance_scale > 1
        same = (id(model), frames, guided, *(getattr(request, name) for name in wishes))
        if same not in self._plans:
            try:
                limit = memory_limit(request.memory_limit_bytes, self._host)
                plan_job(request, model, resolved, worker_machine(limit, host=self._host))
                self._plans[same] = None
            except WanCompatError as error:
                self._plans[same] = error
        return self._plans[same]

    def _encoder(self, config: Any) -> WanCompatError | None:
        from wan_compat.supervisor.encoder import require_encoder
        from wan_compat.supervisor.ffmpeg import find_ffmpeg

        return _asked(self._encoders, config.codec, lambda: require_encoder(config, find_ffmpeg()))

    def _sound(self, path: str) -> WanCompatError | None:
        from wan_compat.supervisor.sound import check_sound

        return _asked(self._sounds, path, lambda: check_sound(path))


def _asked(known: dict[str, WanCompatError | None], what: str, ask: Callable[[], object]) -> WanCompatError | None:
    if what not in known:
        try:
            ask()
            known[what] = None
        except WanCompatError as error:
            known[what] = error
    return known[what]


def _field_of(error: WanCompatError) -> str:
    """Return the field that an error begins with, as those about sizes do; "model" for all others."""
    first = error.message.split(" ", 1)[0]
    return first if first in KNOWN else "model"
