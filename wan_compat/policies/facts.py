"""What was observed about a model: plain values, read by `supervisor/inspection`, judged by this room."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from wan_compat.policies.findings import Finding

if TYPE_CHECKING:  # pydantic comes with it, which reading a model does not need
    from wan_compat.protocol.sources import SourceSpec

# Where a component's configuration may stand, first one first.
CONFIG_NAMES = ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")


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
    ctime_ns: int = 0  # set by the kernel alone; 0 where it was not looked at


@dataclasses.dataclass(frozen=True)
class TensorFact:
    """One entry of a weight file's header."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The header of one weight file. `metadata` is safetensors' `__metadata__`, or the scalar key-values of a GGUF.

    GGUF tensors carry their quantisation as dtype (`Q4_K`) and their shape in torch's order (outermost first)."""

    path: str
    format: Literal["safetensors", "gguf"]
    tensors: Mapping[str, TensorFact]
    metadata: Mapping[str, str | int | float | bool]
    header_bytes: int


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A model as found: a folder in any layout, or a single weight file (then `files` has just that one).

    `documents` holds every configuration that could be parsed, by path (`model_index.json`, `transformer/config.json`,
    shard indexes); `weights` every header that could be read, by path. What could not be is in `problems`, so that one
    broken file does not hide the rest. `repository` and `revision` are known for Hugging Face cache snapshots only.
    `sources` has the components that were put there from elsewhere (policies/sources/compose.py): their `weights` and
    `documents` are under the model's own names, and a worker is told how to get there.
    """

    root: str
    files: Mapping[str, FileFact]
    documents: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, WeightFile]
    problems: tuple[Finding, ...] = ()
    is_file: bool = False
    repository: str | None = None
    revision: str | None = None
    sources: Mapping[str, SourceSpec] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def index(self) -> Mapping[str, Any]:
        """model_index.json, or nothing where it is absent or unreadable."""
        return self.documents.get("model_index.json", {})

    @functools.cached_property
    def configs(self) -> Mapping[str, Mapping[str, Any]]:
        """The configuration of each component folder, whatever it is called there."""
        found: dict[str, Mapping[str, Any]] = {}
        for name in CONFIG_NAMES:
            for path, document in self.documents.items():
                folder, _, file = path.rpartition("/")
                if file == name and folder and "/" not in folder:
                    found.setdefault(folder, document)
        return found

    @functools.cached_property
    def tensors(self) -> Mapping[str, Mapping[str, TensorFact]]:
        """The tensors of each component folder, all its safetensors files together ("" for those at the root)."""
        found: dict[str, dict[str, TensorFact]] = {}
        for path, weights in self.weights.items():
            if weights.format == "safetensors" or path.rpartition("/")[0] in self.sources:
                folder = found.setdefault(path.rpartition("/")[0], {})
                for name, tensor in weights.tensors.items():
                    folder.setdefault(name, tensor)
        return found


@dataclasses.dataclass(frozen=True)
class HostFacts:
    """The machine as the supervisor may use it: `memory_available_bytes` respects its own cgroup."""

    memory_total_bytes: int
    memory_available_bytes: int
    cpu_count: int
    is_root: bool
