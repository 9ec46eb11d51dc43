"""Safetensors files, planned to the byte before one is written: names, order, offsets, header, shards, index.

Format: 8 bytes of header length (little endian), a JSON header, then the tensors without gaps
(https://github.com/huggingface/safetensors#format). Wide types come first, so that each tensor is aligned to its type.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import struct
from collections.abc import Iterable
from typing import Literal

MAX_SHARD_BYTES = 5_000_000_000

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclasses.dataclass(frozen=True)
class PlannedTensor:
    """`size` bytes from `offset` of tensor `source_name` in file `source` become tensor `name`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str
    source_name: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class PlannedFile:
    """One weight file, relative to the converted model, with its tensors in the order of their bytes."""

    path: str
    tensors: tuple[PlannedTensor, ...]

    @functools.cached_property
    def header(self) -> bytes:
        """Everything before the first tensor's bytes."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for tensor in self.tensors:
            end = position + tensor.size
            entries[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    @property
    def data_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        return len(self.header) + self.data_bytes


def plan_files(
    folder: str,
    library: Literal["diffusers", "transformers"],
    tensors: Iterable[PlannedTensor],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> tuple[tuple[PlannedFile, ...], dict[str, str]]:
    """Return the weight files of one component, named as its library expects, and its index document if there are
    several (path -> text)."""
    stem = "diffusion_pytorch_model" if library == "diffusers" else "model"
    runs: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in sorted(tensors, key=lambda tensor: (-DTYPE_BYTES[tensor.dtype], tensor.name)):
        if runs[-1] and filled + tensor.size > max_shard_bytes:
            runs.append([])
            filled = 0
        runs[-1].append(tensor)
        filled += tensor.size
    place = f"{folder}/" if folder else ""
    if len(runs) == 1:
        return (PlannedFile(f"{place}{stem}.safetensors", tuple(runs[0])),), {}
    names = [f"{stem}-{number:05d}-of-{len(runs):05d}.safetensors" for number in range(1, len(runs) + 1)]
    files = tuple(PlannedFile(f"{place}{name}", tuple(run)) for name, run in zip(names, runs, strict=True))
    index = {
        "metadata": {"total_size": sum(file.data_bytes for file in files)},
        "weight_map": {tensor.name: name for name, run in zip(names, runs, strict=True) for tensor in run},
    }
    return files, {f"{place}{stem}.safetensors.index.json": json.dumps(index, indent=2, sort_keys=True) + "\n"}
