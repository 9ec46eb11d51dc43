"""Weight files as bytes, sound or not: only what a header reader sees matters, the data are zeros."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from wan_compat.policies.facts import FileFact

# GGUF's value types by struct layout; 8 is a string, 9 an array.
_LAYOUTS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def file_fact(path: Path) -> FileFact:
    """Return what a listing would say of the file."""
    info = path.stat()
    return FileFact(path.name, str(path), info.st_size, info.st_dev, info.st_ino, info.st_mtime_ns)


def safetensors_file(header: Any, data: bytes = b"") -> bytes:
    """Return a safetensors file; `header` is a JSON value, or bytes to stand there as they are."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def packed_safetensors(
    tensors: dict[str, tuple[str, Sequence[int]]], bits: int = 16, **metadata: str
) -> tuple[bytes, int]:
    """Return header and length of the data for tensors of one width laid end to end, to be written as a sparse file."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = bits
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size // 8]}
        position += size // 8
    return safetensors_file(header), position


def gguf_text(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(kind: int, value: Any) -> bytes:
    if kind == 8:
        return gguf_text(value)
    if kind == 9:
        item, values = value
        return struct.pack("<IQ", item, len(values)) + b"".join(gguf_value(item, each) for each in values)
    return struct.pack(f"<{_LAYOUTS[kind]}", value)


def gguf_file(
    pairs: Iterable[tuple[str, int, Any]],
    tensors: Iterable[tuple[str, Sequence[int], int, int]],
    *,
    version: int = 3,
    alignment: int = 32,
    data: bool = True,
) -> bytes:
    """Return a GGUF file. `pairs`: key, type, value ((item type, items) for an array). `tensors`: name, sides with the
    innermost first, ggml type, bytes; laid one after the other. `data` says whether the data follow."""
    pairs, tensors = list(pairs), list(tensors)
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    out += b"".join(gguf_text(key) + struct.pack("<I", kind) + gguf_value(kind, value) for key, kind, value in pairs)
    position = 0
    for name, sides, kind, size in tensors:
        out += gguf_text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, position)
        position += -(-size // alignment) * alignment
    return out + bytes(-len(out) % alignment + position) if data else out
