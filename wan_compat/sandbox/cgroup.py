"""Cgroups: memory, processes and CPU time of one worker, bounded and counted by the kernel (tier A). Supervisor only.

    v2   one folder below our own: memory.max, memory.swap.max, memory.oom.group, pids.max, cpu.max, cgroup.kill
    v1   one folder in each hierarchy: memory (and memsw), pids, cpu

Which of the two there is, and whether we may use it, is found by making a group and setting its limits: a mount that
can be read says nothing about being allowed to write. New groups lie below the supervisor's own, so that whatever
bounds it (a container, a systemd unit) bounds its workers too.

In v2, a group that gives controllers to its children may hold no process itself
(Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"). So a supervisor to which a group was
delegated first moves itself, and whoever else is in the group (the shell that started it), into a leaf of it. An
ordinary user gets such a group by `systemd-run --user --scope -p Delegate=yes`. Which controllers come with it is the
administrator's choice: memory and pids are needed, cpu only for a limit on processor time.

Groups are named `wan-compat-<supervisor pid>-<its start time>-<name>`, so that `sweep_stale` can tell those of a dead
supervisor from those of a living one, also when the pid has been used again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import signal
import time

from wan_compat.protocol.errors import SandboxEntryFailed
from wan_compat.sandbox.failure import failed, remedy
from wan_compat.sandbox.spec import Layer, Limits

_PREFIX = "wan-compat"
_NAME = re.compile(rf"^{_PREFIX}-(\d+)-(\d+)-[A-Za-z0-9_.-]+$")
_CPU_PERIOD_US = 100_000
_POLL_S = 0.005
# The worker's own threads, plus the launcher's short-lived first child (A), which joins before it is gone.
_PIDS_SLACK = 2
# Attempts to empty a group that we give controllers to: what forks meanwhile leaves its child there.
_MOVES = 5


@dataclasses.dataclass(frozen=True)
class CgroupSupport:
    """Whether cgroups can be used here; when not, why, and what to do about it."""

    version: str | None
    available: bool
    reason: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class CgroupUsage:
    """What a group uses. Bytes include page cache of files first touched inside; `oom_kills` counts kernel kills."""

    current_bytes: int
    peak_bytes: int
    oom_kills: int
    processes: int
    cache_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Cgroup:
    """One worker's group. `dirs` goes into ConfinementSpec.cgroup_dirs."""

    version: str
    dirs: tuple[str, ...]

    def kill(self) -> None:
        """Kill every process in the group, at once where the kernel can (v2), else until none is left."""
        if self.version == "v2":
            with contextlib.suppress(FileNotFoundError):
                _write(f"{self.dirs[0]}/cgroup.kill", "1")
                return
        deadline = time.monotonic() + 1.0
        # Again and again, because a group that forks can outrun one pass over its list.
        while (pids := self._pids()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)

    def usage(self) -> CgroupUsage:
        """Read what the kernel counted. A value that this kernel does not keep is 0."""
        folder = self.dirs[0]
        if self.version == "v2":
            return CgroupUsage(
                current_bytes=_read_int(f"{folder}/memory.current"),
                peak_bytes=_read_int(f"{folder}/memory.peak"),  # since Linux 5.19
                oom_kills=_read_field(f"{folder}/memory.events", "oom_kill"),
                processes=len(self._pids()),
                cache_bytes=_read_field(f"{folder}/memory.stat", "file"),
            )
        return CgroupUsage(
            current_bytes=_read_int(f"{folder}/memory.usage_in_bytes"),
            peak_bytes=_read_int(f"{folder}/memory.max_usage_in_bytes"),
            oom_kills=_read_field(f"{folder}/memory.oom_control", "oom_kill"),
            processes=len(self._pids()),
            cache_bytes=_read_field(f"{folder}/memory.stat", "total_cache"),
        )

    def remove(self, timeout_s: float = 2.0) -> bool:
        """Remove the folders; waits, bounded, until the kernel has let go of the last process.

        Returns:
            True when nothing is left.
        """
        deadline = time.monotonic() + timeout_s
        left = set(self.dirs)
        while left:
            for folder in sorted(left):
                try:
                    os.rmdir(folder)
                except FileNotFoundError:
                    pass
                except OSError:  # EBUSY: a process, perhaps one that is still dying
                    continue
                left.discard(folder)
            if left and time.monotonic() > deadline:
                return False
            if left:
                time.sleep(_POLL_S)
        return True

    def _pids(self) -> list[int]:
        try:
            with open(f"{self.dirs[0]}/cgroup.procs", encoding="ascii") as file:
                return [int(line) for line in file]
        except FileNotFoundError:
            return []


def detect() -> CgroupSupport:
    """Find out whether a limited group can be made here, by making one and removing it."""
    reasons = []
    for version, make in (("v2", _create_v2), ("v1", _create_v1)):
        try:
            group = make(_full_name("probe"), Limits(memory_bytes=64 << 20, cpu_cores=1.0))
        except (OSError, SandboxEntryFailed) as error:
            reasons.append(f"{version}: {error}")
            continue
        group.remove()
        return CgroupSupport(version, True, "", "")
    return CgroupSupport(None, False, "; ".join(reasons), remedy(Layer.CGROUP, None))


def create(name: str, limits: Limits) -> Cgroup:
    """Make the group of one worker with its limits set.

    Args:
        name: Unique among this supervisor's living groups; letters, digits, `_.-`.
        limits: memory, threads and CPU are set; what is None stays unlimited.

    Raises:
        SandboxEntryFailed: Neither version of cgroups can be used. Nothing is left behind.
    """
    reasons = []
    for make in (_create_v2, _create_v1):
        try:
            return make(_full_name(name), limits)
        except OSError as error:
            reasons.append(str(error))
    raise failed(Layer.CGROUP, f"no cgroup can be made: {'; '.join(reasons)}", remedy(Layer.CGROUP, None))


def sweep_stale() -> tuple[str, ...]:
    """Kill and remove the groups of supervisors that are dead. Returns the folders that were removed."""
    removed = []
    for version, parents in (("v2", _v2_parents()), ("v1", _v1_parents(("memory", "pids", "cpu")))):
        for parent in parents:
            try:
                names = os.listdir(parent)
            except OSError:
                continue
            for name in names:
                match = _NAME.match(name)
                if match is None or _start_time(int(match[1])) == int(match[2]):
                    continue
                group = Cgroup(version, (f"{parent}/{name}",))
                with contextlib.suppress(OSError):
                    group.kill()
                    if group.remove():
                        removed.append(group.dirs[0])
    return tuple(removed)


# ---- version 2 ------------------------------------------------------------------------------------------------------


def _create_v2(name: str, limits: Limits) -> Cgroup:
    own = _own_v2_folder()
    if own is None:
        raise FileNotFoundError("no cgroup2 file system is mounted, or it has no memory controller")
    parent = _delegate(own, needs_cpu=limits.cpu_cores is not None)
    folder = f"{parent}/{name}"
    os.mkdir(folder)
    try:
        _write(f"{folder}/memory.max", str(limits.memory_bytes))
        with contextlib.suppress(FileNotFoundError):  # no swap in this kernel
            _write(f"{folder}/memory.swap.max", "0")
        _write(f"{folder}/memory.oom.group", "1")
        _write(f"{folder}/pids.max", str(limits.threads + _PIDS_SLACK))
        if limits.cpu_cores is not None:
            _write(f"{folder}/cpu.max", f"{int(limits.cpu_cores * _CPU_PERIOD_US)} {_CPU_PERIOD_US}")
    except BaseException:
        os.rmdir(folder)
        raise
    return Cgroup("v2", (folder,))


def _delegate(own: str, *, needs_cpu: bool) -> str:
    """Return the folder below which groups get controllers, after making that possible.

    Raises:
        OSError: We may not, or a controller that is needed was not delegated.
    """
    if os.path.basename(own).startswith(f"{_PREFIX}-supervisor-"):
        own = os.path.dirname(own)
    wanted = " ".join(f"+{name}" for name in _controllers(own, needs_cpu=needs_cpu))
    with contextlib.suppress(OSError):
        _write(f"{own}/cgroup.subtree_control", wanted)
        return own
    leaf = f"{own}/{_PREFIX}-supervisor-{os.getpid()}"
    os.makedirs(leaf, exist_ok=True)
    try:
        for attempt in range(_MOVES):
            _move(own, leaf)
            try:
                _write(f"{own}/cgroup.subtree_control", wanted)
                break
            except OSError as error:
                if error.errno != errno.EBUSY or attempt == _MOVES - 1:
                    raise
    except OSError:
        # Back to where we were: a half-made delegation would confuse whoever manages this group.
        with contextlib.suppress(OSError):
            _move(leaf, own)
            os.rmdir(leaf)
        raise
    return own


def _controllers(own: str, *, needs_cpu: bool) -> list[str]:
    """Return the controllers to hand on, of those that were handed to us."""
    try:
        with open(f"{own}/cgroup.controllers", encoding="ascii") as file:
            available = file.read().split()
    except FileNotFoundError:
        available = ["memory", "pids", "cpu"]
    needed = ["memory", "pids", *(["cpu"] if needs_cpu else [])]
    missing = [name for name in needed if name not in available]
    if missing:
        raise PermissionError(errno.EPERM, f"{own} was delegated without the controller {' and '.join(missing)}")
    return [name for name in ("memory", "pids", "cpu") if name in available]


def _move(source: str, target: str) -> None:
    """Move every process of one group into another."""
    with open(f"{source}/cgroup.procs", encoding="ascii") as file:
        pids = [int(line) for line in file]
    for pid in pids:
        # 0 is one that our pid namespace does not show: it cannot be moved, and the next write will say EBUSY.
        if pid:
            with contextlib.suppress(ProcessLookupError):
                _write(f"{target}/cgroup.procs", str(pid))


def _own_v2_folder() -> str | None:
    for mount_root, mount_point, kind, _ in _mounts():
        if kind != "cgroup2":
            continue
        path = _own_path("")
        if path is None:
            return None
        folder = _join(mount_root, mount_point, path)
        with contextlib.suppress(OSError), open(f"{folder}/cgroup.controllers", encoding="ascii") as file:
            if "memory" in file.read().split():
                return folder
    return None


def _v2_parents() -> list[str]:
    own = _own_v2_folder()
    return [] if own is None else [own, os.path.dirname(own)]


# ---- version 1 ------------------------------------------------------------------------------------------------------


def _create_v1(name: str, limits: Limits) -> Cgroup:
    made: list[str] = []
    try:
        for controller in ("memory", "pids", "cpu"):
            if controller == "cpu" and limits.cpu_cores is None:
                continue
            parents = _v1_parents((controller,))
            if not parents:
                raise FileNotFoundError(f"no cgroup v1 hierarchy of {controller} is mounted")
            folder = f"{parents[0]}/{name}"
            if folder not in made:  # controllers can share a hierarchy
                os.mkdir(folder)
                made.append(folder)
            if controller == "memory":
                _write(f"{folder}/memory.limit_in_bytes", str(limits.memory_bytes))
                with contextlib.suppress(FileNotFoundError):  # memory plus swap is counted only if so configured
                    _write(f"{folder}/memory.memsw.limit_in_bytes", str(limits.memory_bytes))
                with contextlib.suppress(OSError):
                    _write(f"{folder}/memory.swappiness", "0")
            elif controller == "pids":
                _write(f"{folder}/pids.max", str(limits.threads + _PIDS_SLACK))
            else:
                _write(f"{folder}/cpu.cfs_period_us", str(_CPU_PERIOD_US))
                _write(f"{folder}/cpu.cfs_quota_us", str(int((limits.cpu_cores or 1.0) * _CPU_PERIOD_US)))
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise
    return Cgroup("v1", tuple(made))


def _v1_parents(controllers: tuple[str, ...]) -> list[str]:
    found = []
    for controller in controllers:
        for mount_root, mount_point, kind, options in _mounts():
            if kind == "cgroup" and controller in options:
                path = _own_path(controller)
                if path is not None:
                    found.append(_join(mount_root, mount_point, path))
                break
    return found


# ---- both -----------------------------------------------------------------------------------------------------------


def _mounts() -> list[tuple[str, str, str, list[str]]]:
    """Return (root, mount point, type, super options) of every mount; proc_pid_mountinfo(5)."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            fields, more = left.split(), right.split()
            point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[4])
            found.append((fields[3], point, more[0], more[-1].split(",")))
    return found


def _own_path(controller: str) -> str | None:
    """Return our own group's path in the hierarchy of `controller` ("" is v2's)."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controller in controllers.split(",") and (controller or controllers == ""):
                return path
    return None


def _join(mount_root: str, mount_point: str, path: str) -> str:
    # In a container the mount may show only a part of the hierarchy; our path is told from the hierarchy's root.
    if mount_root != "/" and (path == mount_root or path.startswith(mount_root + "/")):
        path = path[len(mount_root) :]
    return (mount_point + path).rstrip("/")


def _full_name(name: str) -> str:
    full = f"{_PREFIX}-{os.getpid()}-{_start_time(os.getpid())}-{name}"
    if _NAME.match(full) is None:
        raise ValueError(f"{name!r} is no name for a cgroup")
    return full


def _start_time(pid: int) -> int | None:
    """Return when `pid` started, in ticks since boot; None if there is no such process (or only its zombie)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)


def _read_int(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _read_field(path: str, name: str) -> int:
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        for line in file:
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
