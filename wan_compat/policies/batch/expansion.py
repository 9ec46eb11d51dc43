"""From lines to items: defaults under each line, one item per seed, every value checked; all that is wrong, at once.

An item is known by what it asks for. Its key is a hash of that, so that a line keeps its key when others come or go,
and is another item when a word of it changes. Where no seed is given, the content decides it: the same batch makes the
same videos, and two equal lines make two different ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from wan_compat.policies.batch import names
from wan_compat.policies.batch.fields import PATHS, REQUEST_FIELDS
from wan_compat.policies.batch.items import MAX_ITEMS, MAX_SEEDS, Item, Line, Problem
from wan_compat.protocol.values import MAX_SEED, GenerationRequest

KEY_CHARS = 24
_DRAWN_SEEDS = 1 << 31
# Not part of what a video shows, or drawn from it.
_NOT_CONTENT = frozenset(("output", "timeout_s", "phase_timeouts", "poster", "contact_sheet", "seed"))
_PLACES = PATHS | {"model"}


def expand(
    lines: Iterable[Line],
    defaults: Mapping[str, Any],
    *,
    template: str = names.DEFAULT_TEMPLATE,
    base: str = "",
    taken: Mapping[str, str] | None = None,
    known: Mapping[str, str] | None = None,
) -> tuple[list[Item], list[Problem]]:
    """Return the items of a batch and everything that is wrong with it; with problems, the items are not all of them.

    Args:
        lines: With settled names and absolute paths.
        defaults: The same, for what a line does not say.
        template: Of the output's name, where a line names none.
        base: The batch file's folder: paths below it count as relative, so that the keys survive its moving.
        taken: Folded names that outputs of earlier items of this folder have, with their keys. An item that would take
            one of another key (a line that was changed) gets a part of its own key into its name.
        known: Key -> name of outputs that were named before, whatever the template says now.
    """
    items: list[Item] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for line in lines:
        for request, written in _requests(line, defaults, base, seen, problems):
            if len(items) >= MAX_ITEMS:
                problems.append(Problem(line.number, "", f"there are more than {MAX_ITEMS} videos in this batch"))
                return items, problems
            item = _named(len(items) + 1, line.number, request, written or template, base, known or {})
            items.append(_aside(item, taken or {}))
            if (why := names.objection(item.output)) is not None:
                problems.append(Problem(line.number, "output", why))
    problems += _collisions(items)
    if not items and not problems:
        problems.append(Problem(0, "", "there is nothing in this batch"))
    return items, problems


def _requests(
    line: Line, defaults: Mapping[str, Any], base: str, seen: dict[str, int], problems: list[Problem]
) -> list[tuple[GenerationRequest, str | None]]:
    own = dict(line.fields)
    merged = dict(defaults)
    # The nearer word wins: a line's own seeds replace a default seed, and the other way round.
    for one, other in (("seed", "seeds"), ("seeds", "seed")):
        if one in own and other not in own:
            merged.pop(other, None)
    merged = {name: value for name, value in (merged | own).items() if value is not None}
    before = len(problems)
    template = merged.get("output")
    if template is not None:
        try:
            if not isinstance(template, str):
                raise ValueError("must be a text")
            names.check_template(template)
        except ValueError as error:
            problems.append(Problem(line.number, "output", str(error)))
    for name, advice in (("prompt", ""), ("model", ": give --model, or name one in the file")):
        if not merged.get(name):
            problems.append(Problem(line.number, name, f"is missing{advice}"))
    fields = {name: value for name, value in merged.items() if name in REQUEST_FIELDS and name != "seed"}
    request: GenerationRequest | None = None
    try:
        request = GenerationRequest(**({"model": "-", "prompt": ""} | fields))
    except ValidationError as error:
        problems += [_problem(line.number, each) for each in error.errors(include_url=False, include_input=False)]
    if request is None:
        _seeds(line.number, merged, "", problems)
        return []
    content = _content(request, base)
    number = seen[content] = seen.get(content, 0) + 1
    seeds = _seeds(line.number, merged, f"{content} {number}", problems)
    if len(problems) > before:
        return []
    return [(request.model_copy(update={"seed": seed}), template) for seed in seeds]


def _seeds(line: int, fields: Mapping[str, Any], content: str, problems: list[Problem]) -> list[int]:
    """Return the seeds of a line; drawn from its content where none are given."""
    first, wanted = fields.get("seed"), fields.get("seeds")
    if isinstance(first, str) and first.isdecimal() and len(first) < 20:
        first = int(first)  # a cell of a table
    found: list[int]
    if isinstance(wanted, list):
        found = wanted
        if first is not None:
            problems.append(Problem(line, "seed", "is there beside a list of seeds"))
    else:
        count = 1 if wanted is None else wanted
        if not 1 <= count <= MAX_SEEDS:
            problems.append(Problem(line, "seeds", f"must be 1 to {MAX_SEEDS} videos, not {count}"))
            return []
        if first is None:
            found = [_drawn(f"{content} {number}") for number in range(count)]
        elif isinstance(first, int):
            found = [first + number for number in range(count)]
        else:
            problems.append(Problem(line, "seed", "should be a whole number"))
            return []
    if not 1 <= len(found) <= MAX_SEEDS or len(set(found)) != len(found):
        problems.append(Problem(line, "seeds", f"must be 1 to {MAX_SEEDS} different numbers"))
    elif not all(0 <= seed <= MAX_SEED for seed in found):
        problems.append(Problem(line, "seed" if wanted is None else "seeds", f"must be 0 to {MAX_SEED}"))
    return found


def _drawn(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") % _DRAWN_SEEDS


def _content(request: GenerationRequest, base: str) -> str:
    """Return what a request asks for as one canonical text."""
    asked = request.model_dump(mode="json", exclude_defaults=True, exclude=set(_NOT_CONTENT))
    for name in _PLACES & asked.keys():
        asked[name] = _portable(asked[name], base)
    if "references" in asked:
        asked["references"] = [_portable(path, base) for path in asked["references"]]
    for lora in asked.get("loras", ()):
        lora["path"] = _portable(lora["path"], base)
    return json.dumps(asked, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def _portable(path: str, base: str) -> str:
    if base and path.startswith(base.rstrip("/") + "/"):
        return "./" + posixpath.relpath(path, base)
    return path


def _named(
    index: int, line: int, request: GenerationRequest, template: str, base: str, known: Mapping[str, str]
) -> Item:
    content = f"{_content(request, base)} {request.seed}"
    key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_CHARS]
    output = known.get(key)
    if output is None:
        values = {
            "index": index,
            "line": line,
            "seed": request.seed,
            "width": request.width,
            "height": request.height,
            "frames": request.num_frames,
            "steps": request.num_inference_steps,
            "slug": request.prompt,
            "model": posixpath.basename(request.model.rstrip("/")),
            "key": key[:8],
        }
        output = names.with_suffix(names.render(template, values), request.format)
    return Item(index, line, key, request, output)


def _aside(item: Item, taken: Mapping[str, str]) -> Item:
    if all(taken.get(name, item.key) == item.key for name in names.beside(item.output)):
        return item
    stem, suffix = posixpath.splitext(item.output)
    return dataclasses.replace(item, output=f"{stem}-{item.key[:8]}{suffix}", moved=True)


def _collisions(items: list[Item]) -> list[Problem]:
    """Return where two items are the same, or would write the same files."""
    problems: list[Problem] = []
    keys: dict[str, Item] = {}
    places: dict[str, Item] = {}
    for item in items:
        if (same := keys.setdefault(item.key, item)) is not item:
            why = f"is the very video of line {same.line}: the same content with the same seed {item.seed}"
            problems.append(Problem(item.line, "seed", why))
            continue
        mine = names.beside(item.output)
        other = next((places[name] for name in mine if name in places), None)
        if other is not None:
            where = f"line {other.line}" if other.line != item.line else "another seed of the same line"
            why = f"{item.output!r} is written by {where}, too; add {{index}} or {{seed}} to the name"
            problems.append(Problem(item.line, "output", why))
            continue
        places.update(dict.fromkeys(mine, item))
    return problems


def _problem(line: int, error: Any) -> Problem:
    where = [str(part) for part in error["loc"]] or [""]
    return Problem(line, ".".join(where)[:80], str(error["msg"]).removeprefix("Input "))
