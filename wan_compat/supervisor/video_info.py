"""What is known about a video: read from the file by a confined ffmpeg, from its label, and from its sidecar.

All three may be forged, and the file may be hostile: everything is bounded in bytes, depth and count, and text is
cleaned. Nothing is decoded.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

from wan_compat.policies.encoding import format_for
from wan_compat.protocol.errors import InvalidRequest, ModelCorrupt, WanCompatError, clean_text
from wan_compat.supervisor import sidecar
from wan_compat.supervisor.frame_source import file_facts, open_source
from wan_compat.supervisor.inspection.json_document import parse_json
from wan_compat.supervisor.read_back import run_confined

SCHEMA_VERSION = 1
MAX_METADATA_BYTES = 256 << 10
_MAX_PNG_HEAD = 128 << 10


def read_info(path: str) -> dict[str, Any]:
    """Return the `info` document.

    `file` is what the file says of itself, `label` what is in its comment (None if nothing of ours), `sidecar` the
    document beside it (None if there is none), `unchanged` whether the sidecar's hash is that of this file (None where
    it names none).

    Raises:
        InvalidRequest: It is no video of a kind that we write.
    """
    source = open_source(path)
    spec = source.frames
    codec, audio = source.format.name, ""
    label = None
    if os.path.isfile(source.path):
        form = format_for(os.path.splitext(source.path)[1])
        if form.demuxer and form.name != "png":
            facts = file_facts(source.path, form)
            codec, audio = facts.codec, facts.audio
        label = _label(source.path, form.demuxer, form.name)
    return {
        "schema_version": SCHEMA_VERSION,
        "path": path,
        "file": {
            "format": source.format.name,
            "codec": codec,
            "width": spec.width,
            "height": spec.height,
            "num_frames": spec.num_frames,
            "fps": source.fps,
            "audio": audio or None,
        },
        "label": label,
        "sidecar": _cleaned(source.document) if source.document is not None else None,
        "unchanged": _unchanged(source.path, source.document),
    }


def _label(path: str, demuxer: str, name: str) -> dict[str, Any] | None:
    """Return the JSON in a file's comment, if it is one."""
    text = _png_comment(path) if name == "png" else _comment(path, demuxer) if demuxer else None
    if text is None:
        return None
    try:
        document = parse_json(text.encode("utf-8", "replace"), "the comment")
    except (ModelCorrupt, WanCompatError):
        return None
    cleaned: dict[str, Any] = _cleaned(document)
    return cleaned if str(cleaned.get("generator", "")).startswith("wan-compat") else None


def _comment(path: str, demuxer: str) -> str | None:
    finished = run_confined(
        [
            *("-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-protocol_whitelist", "file,pipe"),
            *("-f", demuxer, "-i", f"file:{path}", "-f", "ffmetadata", "pipe:1"),
        ],
        path,
        max_bytes=MAX_METADATA_BYTES,
    )
    # One line, in which = ; # \ and line breaks are escaped by a backslash (ffmpeg-formats, Metadata).
    found = re.search(
        r"^comment=((?:[^\\\n]|\\.)*)$", finished.stdout.decode("utf-8", "replace"), re.MULTILINE | re.IGNORECASE
    )
    return re.sub(r"\\(.)", r"\1", found[1]) if found else None


def _png_comment(path: str) -> str | None:
    with open(path, "rb") as file:
        head = file.read(_MAX_PNG_HEAD)
    start = head.find(b"tEXtComment\0")
    if start < 4:
        return None
    length = int.from_bytes(head[start - 4 : start], "big")
    return head[start + 12 : start + 4 + length].decode("latin-1") if 8 < length <= _MAX_PNG_HEAD else None


def _cleaned(value: Any) -> Any:
    """Return the same with all text cleaned; depth and count were bounded when it was parsed."""
    if isinstance(value, str):
        return clean_text(value, 20_000)
    if isinstance(value, Mapping):
        return {clean_text(str(name), 200): _cleaned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:
        return value
    return None if isinstance(value, float) else value


def _unchanged(path: str, document: Mapping[str, Any] | None) -> bool | None:
    video = document.get("video") if document else None
    expected = video.get("sha256") if isinstance(video, Mapping) else None
    if not isinstance(expected, str):
        return None
    if os.path.isdir(path):
        whole = hashlib.sha256()
        for name in sorted(os.listdir(path)):
            file_path = os.path.join(path, name)
            if not os.path.isfile(file_path):
                return False
            with open(file_path, "rb") as file:
                whole.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
        return whole.hexdigest() == expected
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == expected


def request_again(path: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return the fields of a request that makes the video of a sidecar again, and the sidecar.

    `model` is among them. What belongs to a run and not to a video (output, mode, limits) never comes from a sidecar,
    which may be anybody's; a mode other than safe has to be asked for.

    Args:
        path: Of the sidecar, or of the video or folder that it lies beside.

    Raises:
        InvalidRequest: It is no sidecar of a generated video.
    """
    from wan_compat.supervisor.provenance import NOT_REPEATED

    if not path.endswith(".json") and os.path.lexists(beside := sidecar.path_of(path)):
        path = beside
    document = sidecar.read(path)
    request, model = document.get("request"), document.get("model")
    if not isinstance(request, Mapping) or not isinstance(model, Mapping):
        raise InvalidRequest(f"{path!r} does not say how its video was made", hint="name a sidecar of generate")
    fields = {str(name): value for name, value in request.items() if name not in NOT_REPEATED}
    place, repository = model.get("path"), model.get("repository")
    if isinstance(place, str) and (os.path.exists(place) or not repository):
        fields["model"] = place
    elif isinstance(repository, str):
        fields["model"] = repository
    else:
        raise InvalidRequest(f"{path!r} names no model", hint="give the model too")
    return fields, document
