"""The names that a line of a batch may use, and what they mean.

A line says what a video shows and how it is made. It cannot say what a job may do or use: mode, approvals, limits and
places to write are for the command line, since the file may be anybody's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from wan_compat.policies.batch.items import Line, Problem
from wan_compat.policies.phases import read_phase_timeouts
from wan_compat.policies.sources.written import parse_loras, parse_quantize
from wan_compat.protocol.errors import InvalidRequest, clean_text

ALIASES: Mapping[str, str] = {
    "negative": "negative_prompt",
    "frames": "num_frames",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "guidance_2": "guidance_scale_2",
    "reference": "references",
    "lora": "loras",
    "timeout": "timeout_s",
    "num_videos": "seeds",
    "phase_timeout": "phase_timeouts",
}

PATHS = frozenset((
    "image", "last_image", "video", "mask", "pose_video", "face_video", "background_video", "audio",
    "components", "transformer", "transformer_2", "vae", "text_encoder", "image_encoder",
))  # fmt: skip

# Fields of GenerationRequest that a line may set.
REQUEST_FIELDS = PATHS | frozenset((
    "prompt", "negative_prompt", "model", "task", "references", "strength", "conditioning_scale",
    "seed", "height", "width", "num_frames", "num_inference_steps", "guidance_scale", "guidance_scale_2",
    "max_sequence_length", "fps", "loras", "quantize", "precision", "offload", "vae_tiling", "cache",
    "attention_backend", "layerwise_casting", "format", "codec", "quality", "metadata", "crop_odd", "fragmented",
    "poster", "contact_sheet", "timeout_s", "phase_timeouts",
))  # fmt: skip

FLAGS = frozenset(("vae_tiling", "crop_odd", "fragmented", "poster", "contact_sheet"))
KNOWN = REQUEST_FIELDS | {"seeds", "size", "output"}
_WRITABLE = sorted({*KNOWN, *ALIASES})
_SIZE = re.compile(r"(\d{1,5})\s*[x*]\s*(\d{1,5})")
_LIST = re.compile(r"[\s,;]+")


def settle_names(line: Line) -> tuple[dict[str, Any], list[Problem]]:
    """Return a line's fields under their full names, lists as lists, and what cannot be understood.

    A field whose value is None takes a default away.
    """
    fields: dict[str, Any] = {}
    problems: list[Problem] = []
    said: dict[str, str] = {}
    for written, value in line.fields.items():
        name = ALIASES.get(written, written)
        if name not in KNOWN:
            problems.append(Problem(line.number, clean_text(str(written), 60), _unknown(str(written))))
            continue
        if name in said:
            problems.append(Problem(line.number, written, f"is the same as {said[name]}, which is there too"))
            continue
        said[name] = written
        try:
            fields.update(_understood(name, value))
        except (InvalidRequest, ValueError) as error:
            problems.append(Problem(line.number, written, str(error)))
    if "size" in said:
        problems += [Problem(line.number, name, "is said by size, too") for name in ("width", "height") if name in said]
    return fields, problems


def _unknown(name: str) -> str:
    if name in ("mode", "restricted", "trust_remote_code", "min_tier", "memory_limit", "device", "gpu_memory_limit"):
        return "is for the command line: a batch file cannot choose what a job may do"
    near = difflib.get_close_matches(name.lower().replace("-", "_"), _WRITABLE, n=1, cutoff=0.5)
    return f"is unknown; {near[0]!r} is meant, perhaps" if near else "is unknown; docs/batch.md lists the fields"


def _understood(name: str, value: Any) -> dict[str, Any]:
    """Return the fields that one field amounts to. Raises ValueError or InvalidRequest with the reason."""
    if value is None:
        return {"width": None, "height": None} if name == "size" else {name: None}
    if name == "size":
        match = _SIZE.fullmatch(str(value).strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError("must be WIDTHxHEIGHT, such as 832x480")
        return {"width": int(match[1]), "height": int(match[2])}
    if name == "loras":
        return {name: _loras(value)}
    if name == "quantize":
        return {name: value if isinstance(value, dict) else parse_quantize(_texts(value))}
    if name == "phase_timeouts":
        return {name: read_phase_timeouts(value if isinstance(value, dict) else ",".join(_texts(value)))}
    if name == "references":
        return {name: tuple(_texts(value))}
    if name == "seeds":
        return {name: _seeds(value)}
    if isinstance(value, bool) and name not in FLAGS:
        # YAML takes yes, no, on and off for truth values, and pydantic takes those for numbers.
        raise ValueError(f"must not be {str(value).lower()}; a text of that kind needs quotes")
    if isinstance(value, dict | list):
        raise ValueError(f"must be one value, not a {type(value).__name__}")
    if isinstance(value, str) and name in PATHS | {"model"} and ("\0" in value or not value):
        raise ValueError("is not the name of a file")
    return {name: value}


def _loras(value: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict):
            found.append(each)
        elif isinstance(each, str):
            # In a cell of a table, several are parted by semicolons.
            found += parse_loras(part.strip() for part in each.split(";") if part.strip())
        else:
            raise ValueError("must be FILE[:WEIGHT][@high|@low], or a list of them")
    return found


def _texts(value: Any) -> list[str]:
    parts = value if isinstance(value, list) else str(value).split(";")
    if not all(isinstance(part, str) for part in parts):
        raise ValueError("must be a text, or a list of texts")
    return [part.strip() for part in parts if part.strip()]


def _seeds(value: Any) -> int | list[int]:
    """Return how many seeds are asked for, or which."""
    if isinstance(value, str):
        words = [word for word in _LIST.split(value.strip()) if word]
        if not words or not all(word.isdecimal() and len(word) <= 19 for word in words):
            raise ValueError("must be a number of videos, or a list of seeds")
        value = int(words[0]) if len(words) == 1 else [int(word) for word in words]
    is_list = isinstance(value, list)
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in (value if is_list else [value])):
        raise ValueError("must be a number of videos, or a list of seeds")
    return value  # type: ignore[no-any-return]
