"""What was observed about a model folder: plain values, read by `supervisor/inspection.py`, judged by this room."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class FileFact:
    """One regular file inside the model's folder. `path` is relative to it, with forward slashes; `real_path` is the
    file after links were followed, which stays inside the repository (inspection refuses anything else)."""

    path: str
    real_path: str
    size: int
    device: int
    inode: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class TensorFact:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A diffusers folder as found. `configs` has the parsed JSON of each component, by subfolder; `tensors` what the
    headers of its safetensors files say, by subfolder and tensor name."""

    root: str
    files: Mapping[str, FileFact]
    index: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, TensorFact]]


@dataclasses.dataclass(frozen=True)
class HostFacts:
    """The machine as the supervisor may use it: `memory_available_bytes` respects its own cgroup."""

    memory_total_bytes: int
    memory_available_bytes: int
    cpu_count: int
    is_root: bool
