"""Writing files as repositories have them: true headers, true sizes, and holes instead of data.

A hole takes no space, so a model of 57 GB is written in milliseconds. What a reader that stops at headers sees is what
it would see of the real file.
"""

from __future__ import annotations

import functools
import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.assets.corpus.tables import Shape, Tensors

# https://github.com/huggingface/safetensors#format
_BITS = {"F64": 64, "F32": 32, "I64": 64, "F16": 16, "BF16": 16, "F8_E4M3": 8, "I8": 8, "U8": 8}
# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: type -> number, elements of a block, bytes of a block
_GGUF_TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_1": (3, 32, 20), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144)}
_GGUF_ALIGNMENT = 32

Typed = Mapping[str, tuple[str, Shape]]


def typed(tensors: Tensors, dtype: str) -> dict[str, tuple[str, Shape]]:
    return {name: (dtype, shape) for name, shape in tensors.items()}


def write_json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def write_hole(path: Path, start: bytes, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(max(size, len(start)))


def tensor_bytes(dtype: str, shape: Shape) -> int:
    size = _BITS[dtype] // 8
    for side in shape:
        size *= side
    return size


def safetensors_start(tensors: Typed, metadata: Mapping[str, str] | None = None) -> tuple[bytes, int]:
    """Return the beginning of a safetensors file and the size of the whole file."""
    header: dict[str, Any] = {}
    if metadata is not None:
        header["__metadata__"] = dict(metadata)
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + tensor_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw, 8 + len(raw) + offset


def write_safetensors(path: Path, tensors: Typed, metadata: Mapping[str, str] | None = None) -> None:
    start, size = safetensors_start(tensors, {"format": "pt"} if metadata is None else metadata)
    write_hole(path, start, size)


def write_weights(
    folder: Path, tensors: Tensors, dtype: str, *, stem: str = "diffusion_pytorch_model", shards: int = 1
) -> None:
    """Write one file, or `shards` of them with their index, as `save_pretrained` does."""
    if shards == 1:
        write_hole(folder / f"{stem}.safetensors", *_start(tuple(tensors.items()), dtype))
        return
    total = sum(tensor_bytes(dtype, shape) for shape in tensors.values())
    weight_map: dict[str, str] = {}
    for index, part in enumerate(_split(tensors, dtype, total, shards), 1):
        name = f"{stem}-{index:05d}-of-{shards:05d}.safetensors"
        write_hole(folder / name, *_start(tuple(part.items()), dtype))
        weight_map |= dict.fromkeys(part, name)
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


@functools.lru_cache(maxsize=512)
def _start(tensors: tuple[tuple[str, Shape], ...], dtype: str) -> tuple[bytes, int]:
    return safetensors_start(typed(dict(tensors), dtype), {"format": "pt"})


def _split(tensors: Tensors, dtype: str, total: int, shards: int) -> Iterable[Tensors]:
    parts: list[Tensors] = [{} for _ in range(shards)]
    position = 0
    for name, shape in tensors.items():
        parts[min(position * shards // total, shards - 1)][name] = shape
        position += tensor_bytes(dtype, shape)
    return parts


def write_pickle(path: Path, size: int) -> None:
    """Write what torch.save leaves: a zip archive whose first member is a pickle. Only its beginning is real."""
    name = b"archive/data.pkl"
    local_header = struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, 0x0808, 0, 0, 0, 0, 0, 0, len(name), 0)
    write_hole(path, local_header + name + b"\x80\x02", size)


def write_gguf(path: Path, tensors: Tensors, quantization: str, architecture: str, scalars: Mapping[str, int]) -> None:
    """Write a GGUF file, version 3: large matrices in `quantization`, the rest in F32, as llama.cpp's converters do."""
    pairs = [_text("general.architecture"), struct.pack("<I", 8), _text(architecture)]
    for key, value in scalars.items():
        pairs += [_text(key), struct.pack("<II", 4, value)]
    infos, offset = [], 0
    for name, shape in tensors.items():
        kind = quantization if len(shape) == 2 and shape[-1] % 256 == 0 else "F32"
        number, elements, block_bytes = _GGUF_TYPES[kind]
        count = 1
        for side in shape:
            count *= side
        # The dimensions stand innermost first.
        dimensions = tuple(reversed(shape))
        infos.append(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *dimensions, number, offset))
        offset += count // elements * block_bytes
        offset += -offset % _GGUF_ALIGNMENT
    start = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), 1 + len(scalars)) + b"".join(pairs + infos)
    start += b"\0" * (-len(start) % _GGUF_ALIGNMENT)
    write_hole(path, start, len(start) + offset)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def as_cache_snapshot(folder: Path, cache: Path, repository: str, commit: str) -> Path:
    """Move a repository into the form of a Hugging Face cache and return the snapshot's folder."""
    root = cache / ("models--" + repository.replace("/", "--"))
    blobs, snapshot = root / "blobs", root / "snapshots" / commit
    blobs.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    for index, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = blobs / f"{index + 1:064x}"
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot
