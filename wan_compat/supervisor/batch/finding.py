"""A video that stands where an item's would: is it that item's? And what a killed process left beside it.

An output gets its name when it is whole and on the disk, and its sidecar a moment later. So what stands is one of:

    with a sidecar that names its SHA-256 and what the item asks for     this item's, made by whichever run
    without a sidecar, and an attempt was begun when the name was free   this item's, if it can be read and is as long
    anything else                                                        somebody's; it is not touched, unless
                                                                         `--overwrite` says that it may be replaced
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Mapping
from typing import Any

from wan_compat.policies.batch.fields import PATHS
from wan_compat.policies.batch.items import Item
from wan_compat.policies.batch.records import Done, Started
from wan_compat.protocol.errors import OutputExists, WanCompatError
from wan_compat.supervisor import sidecar
from wan_compat.supervisor.batch.folder import BatchFolder

# What `outputs`, `output_folder`, `sidecar`, `frame_tap` and `spill` put into the name of something unfinished.
_UNFINISHED = re.compile(r"\.?(?P<name>.+?)(\.json|\.poster\.png|\.sheet\.png)?\.[0-9a-f]{12}\.(part|frames\.npy)")
_SPILL_NAME_CHARS = 150


def find_output(folder: BatchFolder, item: Item, output: str, begun: Started | None) -> dict[str, Any] | None:
    """Return the facts of an item's finished output as fields of a Done record, None where nothing stands.

    Raises:
        OutputExists: Something else stands there.
    """
    path = folder.output(output)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    document = sidecar.find(path)
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        with contextlib.suppress(OSError, WanCompatError):
            sha256, size = _hash(path)
            if document is not None:
                if _of(document, "video").get("sha256") == sha256 and agrees(document, item):
                    return {"sha256": sha256, "bytes": size} | _facts(document)
            elif _was_free(begun, output):
                return {"sha256": sha256, "bytes": size} | _read_back(path, item)
    raise OutputExists(
        f"{path!r} exists, and is not the video of line {item.line}",
        hint="move it away, choose another --name or --out, or let --overwrite replace it",
    )


def is_replaceable(folder: BatchFolder, output: str) -> bool:
    """Whether `--overwrite` may replace what stands under a name: a file, and no link or folder of somebody's."""
    try:
        return stat.S_ISREG(os.lstat(folder.output(output)).st_mode)
    except OSError:
        return False


def may_be_there(folder: BatchFolder, item: Item, output: str, begun: Started | None) -> bool:
    """Whether what stands under a name could be the item's, as far as a glance tells; true where nothing does."""
    path = folder.output(output)
    if not os.path.lexists(path):
        return True
    document = sidecar.find(path)
    return agrees(document, item) if document is not None else _was_free(begun, output)


def _was_free(begun: Started | None, output: str) -> bool:
    """Whether an attempt was begun at this output when nothing had its name."""
    return begun is not None and begun.output == output and not begun.replaces


def agrees(document: Mapping[str, Any], item: Item) -> bool:
    """Whether a sidecar says of its video what an item asks for."""
    from wan_compat.supervisor.provenance import NOT_REPEATED, absolute

    made, model = _of(document, "request"), _of(document, "model")
    asked = item.request.model_dump(
        mode="json", exclude_defaults=True, exclude={*NOT_REPEATED, "poster", "contact_sheet"}
    )
    for name, value in asked.items():
        wanted = absolute(value) if name in PATHS or name in ("references", "loras") else value
        if name not in made or made[name] != wanted:
            return False
    return item.request.model in (model.get("repository"), model.get("path")) or model.get("path") == os.path.abspath(
        item.request.model
    )


def remove_unfinished(folder: BatchFolder, output: str) -> list[str]:
    """Remove what attempts at an output left unfinished; return the names. For who holds the item's lease."""
    removed = []
    with contextlib.suppress(OSError):
        for name in os.listdir(folder.path):
            match = _UNFINISHED.fullmatch(name)
            if match is None or match["name"] not in (output, output[:_SPILL_NAME_CHARS]):
                continue
            path = folder.output(name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)
            removed.append(name)
    return removed


def done_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result document or a sidecar's result says, as fields of a Done record."""
    output, timings = _of(document, "output"), _of(document, "timings")
    total = timings.get("total_s")
    fields: dict[str, Any] = {
        "seconds": float(total) if isinstance(total, int | float) and total >= 0 else 0.0,
        "tier": str(_of(document, "sandbox").get("tier", ""))[:8],
        "timings": {
            str(name)[:100]: float(value)
            for name, value in list(timings.items())[:32]
            if isinstance(value, int | float) and value >= 0
        },
    }
    for name in ("width", "height", "num_frames"):
        if isinstance(output.get(name), int):
            fields[name] = output[name]
    if isinstance(output.get("fps"), int | float):
        fields["fps"] = float(output["fps"])
    recovery, warnings = document.get("recovery"), document.get("warnings")
    if isinstance(recovery, list):
        steps = [step for step in recovery if isinstance(step, Mapping)][:16]
        fields["recovery"] = tuple(
            {name: str(step.get(name, ""))[:1000] for name in ("error", "action", "outcome")} for step in steps
        )
    fields["warnings"] = len(warnings) if isinstance(warnings, list) else 0
    return fields


def _facts(document: Mapping[str, Any]) -> dict[str, Any]:
    # A sidecar is read as anybody's: what would not be a record says less instead.
    fields = done_fields(_of(document, "result"))
    try:
        Done(key="0" * 24, n=0, run="", at=0.0, output="", sha256="0" * 64, bytes=0, **fields)
    except ValueError:
        return {}
    return fields


def _read_back(path: str, item: Item) -> dict[str, Any]:
    """Return what a video is, as read from it. Raises InvalidRequest if it is none, or not as long as was asked for."""
    from wan_compat.supervisor.video_info import read_info

    found = read_info(path)
    facts, label = _of(found, "file"), found.get("label")
    wanted = item.request.num_frames
    if wanted is not None and facts.get("num_frames") != wanted:
        raise OutputExists(f"{path!r} has {facts.get('num_frames')} frames, not {wanted}")
    if isinstance(label, Mapping) and _of(label, "parameters").get("seed", item.seed) != item.seed:
        raise OutputExists(f"{path!r} was made with another seed")
    return {name: facts[name] for name in ("width", "height", "num_frames")} | {"fps": float(facts["fps"])}


def _hash(path: str) -> tuple[str, int]:
    """Return SHA-256 and bytes of an output as `commit` tells them: of a folder, over the lines of its files."""
    if not os.path.isdir(path):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
    whole, size = hashlib.sha256(), 0
    for name in sorted(os.listdir(path)):
        with open(os.path.join(path, name), "rb") as file:
            whole.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
            size += os.fstat(file.fileno()).st_size
    return whole.hexdigest(), size


def _of(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = document.get(name)
    return inner if isinstance(inner, Mapping) else {}
