"""The sidecar: a JSON document beside each video, `NAME.json`, that says all about how it was made.

    schema_version, kind     what this is
    video                    the file: name, SHA-256, size, codec, rate, frames
    request                  what asks for the same again: `wan-compat generate --from`
    model                    which model: path, repository, revision, SHA-256 of its files
    result                   the `generate` document: resolved parameters, sandbox, self-test, timings, versions

Written by us, but read as anybody's: it may have come with a download. Size, depth and types are bounded, text is
cleaned when it is shown, and nothing in it can loosen what a job may do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from wan_compat.protocol.errors import InvalidRequest, ModelCorrupt, OutputExists, OutputNotWritable
from wan_compat.protocol.results import OutputReport
from wan_compat.supervisor.inspection.json_document import MAX_JSON_BYTES, parse_json
from wan_compat.supervisor.outputs import prepare_document

SCHEMA_VERSION = 1
KIND = "wan-compat video"


def path_of(video_path: str) -> str:
    """Return where the sidecar of a video or of a folder of pictures lies."""
    return video_path.rstrip("/") + ".json"


def check_free(path: str, overwrite: bool) -> None:
    """Raise OutputExists if something lies there that is not a sidecar of ours, and may not be overwritten."""
    if overwrite or not os.path.lexists(path):
        return
    try:
        read(path)  # of a video that is gone: nothing is lost
    except InvalidRequest as error:
        raise OutputExists(f"{path!r} exists and is no sidecar", hint="choose another name for the output") from error


def write(path: str, document: Mapping[str, Any], video: OutputReport | None) -> None:
    """Write a sidecar, replacing one that is there. Raises OutputNotWritable, DiskExceeded."""
    content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "kind": KIND}
    if video is not None:
        content["video"] = dataclasses.asdict(video) | {"path": os.path.basename(video.path)}
    content |= document
    data = json.dumps(content, indent=2, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")
    with prepare_document(path, overwrite=True) as target:
        try:
            with open(target.part_path, "wb") as file:
                file.write(data + b"\n")
        except OSError as error:
            raise OutputNotWritable(f"{path!r} cannot be written: {error.strerror}") from error
        target.commit()


def read(path: str) -> Mapping[str, Any]:
    """Read a sidecar within limits.

    Raises:
        InvalidRequest: It is not one, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"{path!r} cannot be read: {error.strerror}", hint="check the path") from error
    try:
        document = parse_json(raw, os.path.basename(path))
    except ModelCorrupt as error:
        raise InvalidRequest(f"{path!r} is not a sidecar of ours: {error.message}") from error
    if document.get("kind") != KIND or document.get("schema_version") != SCHEMA_VERSION:
        raise InvalidRequest(f"{path!r} is not a sidecar of ours", hint="name the .json file beside a video")
    return document


def may_be_about(document: Mapping[str, Any], size: int) -> bool:
    """Whether a sidecar can be about a file of `size` bytes: by the length it names. `info` compares hashes."""
    video = document.get("video")
    said = video.get("bytes") if isinstance(video, Mapping) else None
    return not isinstance(said, int) or said == size


def forget(video_path: str) -> None:
    """Remove a sidecar of ours beside a file that took its video's place, and has none of its own."""
    if find(video_path) is not None:
        with contextlib.suppress(OSError):  # it stays, and does not agree with the file
            os.unlink(path_of(video_path))


def find(video_path: str) -> Mapping[str, Any] | None:
    """Return the sidecar that lies beside a video, None where there is none that can be read."""
    path = path_of(video_path)
    if not os.path.lexists(path):
        return None
    try:
        return read(path)
    except InvalidRequest:
        return None
