"""The order for one confinement: plain data, decided by policy, carried out by the layers of this room.

A spec crosses from the supervisor to the zygote as plain maps (`to_wire`, `from_wire`); it is never sent to a worker.
Paths named `source` are on the host, paths named `target` are in the worker's view.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any


class Tier(enum.StrEnum):
    """How much of the sandbox is in force; found by entering it and testing it, never by reading sysctls.

    A: every layer, memory and processes bounded by a cgroup. B: all but the cgroup. C: no namespaces (Landlock,
    seccomp, rlimits). D: an operating-system helper. E: none. Earlier letters are stronger.
    """

    A = "A"
    B = "B"
    C = "C"
    D = "D"
    E = "E"

    def satisfies(self, minimum: Tier) -> bool:
        return self.value <= minimum.value


class Layer(enum.StrEnum):
    """The layers, in the order in which they are entered. A spec names the ones to enter."""

    CGROUP = "cgroup"
    USER_NAMESPACE = "user_namespace"
    MOUNT_NAMESPACE = "mount_namespace"
    PID_NAMESPACE = "pid_namespace"
    NET_NAMESPACE = "net_namespace"
    IPC_NAMESPACE = "ipc_namespace"
    UTS_NAMESPACE = "uts_namespace"
    CGROUP_NAMESPACE = "cgroup_namespace"
    DESCRIPTORS = "descriptors"
    VIEW = "view"
    RLIMITS = "rlimits"
    CREDENTIALS = "credentials"
    NO_NEW_PRIVS = "no_new_privs"
    LANDLOCK = "landlock"
    SECCOMP = "seccomp"


@dataclasses.dataclass(frozen=True)
class FileIdentity:
    """What the supervisor saw when it admitted a file; compared again on the mounted one (in stat's units)."""

    device: int
    inode: int
    size: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class Bind:
    """One read-only, nosuid, nodev bind. `identity` is set for admitted model files, which are single files."""

    source: str
    target: str
    identity: FileIdentity | None = None
    executable: bool = False  # False adds noexec: nothing from a model may be mapped executable


@dataclasses.dataclass(frozen=True)
class StaticFile:
    """A small file written into the view before its root becomes read-only (for instance a copy of /proc/cpuinfo)."""

    target: str
    content: bytes


@dataclasses.dataclass(frozen=True)
class View:
    """The whole file system that the worker will see. What is not named here does not exist for it."""

    binds: tuple[Bind, ...] = ()
    files: tuple[StaticFile, ...] = ()
    control_dir: str | None = None  # host folder, bound at CONTROL_TARGET: holds the control socket and nothing else
    scratch_bytes: int = 256 << 20
    scratch_inodes: int = 4096
    # Only without a mount namespace (tier C), where nothing can be moved: the host folder that serves as scratch.
    host_scratch_dir: str | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one worker may use. All of it is enforced by the kernel where the tier can."""

    memory_bytes: int
    threads: int = 128
    open_files: int = 256
    file_size_bytes: int = 256 << 20
    cpu_cores: float | None = None


@dataclasses.dataclass(frozen=True)
class Identity:
    """Whom root's worker runs as, in host ids. None, for an ordinary user, keeps the caller's."""

    uid: int
    gid: int


@dataclasses.dataclass(frozen=True)
class GpuAccess:
    """The device nodes of a worker that computes on a GPU. What else it reads is among the view's files and binds."""

    devices: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ConfinementSpec:
    """Everything that `sandbox.launch` needs to confine one process."""

    layers: frozenset[Layer]
    view: View
    limits: Limits
    identity: Identity | None = None
    cgroup_dirs: tuple[str, ...] = ()  # folders whose cgroup.procs the worker joins, made by the supervisor
    hostname: str = "wan-worker"
    gpu: GpuAccess | None = None  # None: no device of any driver, which is what most workers get
    outer: frozenset[Layer] = frozenset()  # in force around the launcher already (`bwrap.py`), not to be entered again

    @property
    def in_force(self) -> frozenset[Layer]:
        """Every layer that confines the worker once it has entered."""
        return self.layers | self.outer


# In the place of a layer, where an entry fails at what a GPU needs: without one, the sandbox could be had.
GPU = "gpu"

CONTROL_TARGET = "/ctl"
SCRATCH_TARGET = "/scratch"
MODEL_TARGET = "/model"

ALL_LAYERS = frozenset(Layer)
NAMESPACE_LAYERS = frozenset(
    {
        Layer.USER_NAMESPACE,
        Layer.MOUNT_NAMESPACE,
        Layer.PID_NAMESPACE,
        Layer.NET_NAMESPACE,
        Layer.IPC_NAMESPACE,
        Layer.UTS_NAMESPACE,
        Layer.CGROUP_NAMESPACE,
    }
)

# What bubblewrap makes around a launcher (`bwrap.py`). A user namespace may come along, or not where it is setuid.
OUTER_LAYERS = NAMESPACE_LAYERS - {Layer.USER_NAMESPACE} | {Layer.VIEW}


def to_wire(value: Any) -> Any:
    """Turn a spec (or a part of one) into plain maps, lists, numbers, strings and bytes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_wire(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, frozenset):
        return sorted(to_wire(item) for item in value)
    if isinstance(value, tuple | list):
        return [to_wire(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return value


def from_wire(data: Mapping[str, Any]) -> ConfinementSpec:
    """Rebuild a spec; unknown or missing keys and wrong types raise ValueError or TypeError."""
    return typing.cast(ConfinementSpec, _build(ConfinementSpec, data))


def _build(kind: Any, data: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        if not isinstance(data, Mapping):
            raise TypeError(f"{kind.__name__} wants a map, not {type(data).__name__}")
        hints = typing.get_type_hints(kind)
        unknown = set(data) - set(hints)
        if unknown:
            raise ValueError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
        return kind(**{name: _build(hints[name], value) for name, value in data.items()})
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if data is None:
            if type(None) not in options:
                raise TypeError("None where a value is needed")
            return None
        return _build(next(option for option in options if option is not type(None)), data)
    if origin in (tuple, frozenset):
        if not isinstance(data, list | tuple):
            raise TypeError(f"expected a list, not {type(data).__name__}")
        return origin(_build(typing.get_args(kind)[0], item) for item in data)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    if kind is float:
        if isinstance(data, bool) or not isinstance(data, int | float):
            raise TypeError(f"expected a number, not {type(data).__name__}")
        return float(data)
    if type(data) is not kind:
        raise TypeError(f"expected {kind.__name__}, not {type(data).__name__}")
    return data
