"""Trying, from inside, what must be impossible: run by every worker right after its entry, before any model byte.

A layer that was entered may still not hold (an old kernel, a container that fakes a call, a bug of ours). So each probe
really does the forbidden thing, by a way that answers with an errno: what kills the process instead is tried elsewhere,
in processes made to be killed (`trial.py`). The supervisor compares the results with `expected_denied` of the layers
that it ordered; the worker's word counts only before it has touched a model.

Each probe names the layers that deny it *alone*: it must be denied as soon as one of them is in force.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import mmap
import os
import resource
import signal
import socket
from collections.abc import Callable, Collection

from wan_compat.sandbox import credentials, descriptors, libc
from wan_compat.sandbox.spec import SCRATCH_TARGET, Layer


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """One forbidden thing that was tried. `layers` are those of which each alone must deny it."""

    name: str
    denied: bool
    detail: str
    layers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Probe:
    name: str
    layers: tuple[Layer, ...]
    attempt: Callable[[], str | None]  # returns what was possible, or None (or raises OSError) if it was denied


def run_probes(expected_fds: Collection[int] | None = None) -> tuple[ProbeResult, ...]:
    """Try everything. Runs in the worker, right after its entry.

    Args:
        expected_fds: The descriptors that may be open besides the standard three; None leaves that probe out.
    """
    probes = list(_PROBES)
    if expected_fds is not None:
        allowed = {0, 1, 2, *expected_fds}
        probes.append(_Probe("inherited_descriptors", (Layer.DESCRIPTORS,), lambda: _stray_descriptors(allowed)))
    return tuple(_run(probe) for probe in probes)


def run_sealed_probes() -> tuple[ProbeResult, ...]:
    """Try what `seccomp.seal` forbids. Runs in the worker, after the seal and before any model byte."""
    return tuple(_run(probe) for probe in _SEALED_PROBES)


def run_outer_probes(layers: Collection[str]) -> tuple[ProbeResult, ...]:
    """Try what `layers`, made by another program around this process, must deny by themselves.

    Runs in a launcher inside that program's sandbox, before a layer of our own could hide that one of them is missing.
    """
    entered = {Layer(layer) for layer in layers}
    return tuple(_run(probe) for probe in _OUTER_PROBES if entered & set(probe.layers))


def expected_denied(layers: Collection[str]) -> frozenset[str]:
    """Return the names of the probes that must be denied once `layers` have been entered."""
    entered = {Layer(layer) for layer in layers}
    every = (*_PROBES, _Probe("inherited_descriptors", (Layer.DESCRIPTORS,), lambda: None))
    return frozenset(probe.name for probe in every if entered & set(probe.layers))


def expected_sealed(layers: Collection[str]) -> frozenset[str]:
    """Return the names of the probes that must be denied after the seal, given the entered `layers`."""
    entered = {Layer(layer) for layer in layers}
    return frozenset(probe.name for probe in _SEALED_PROBES if entered & set(probe.layers))


def _run(probe: _Probe) -> ProbeResult:
    try:
        possible = probe.attempt()
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        return ProbeResult(probe.name, True, name, tuple(layer.value for layer in probe.layers))
    return ProbeResult(probe.name, possible is None, possible or "", tuple(layer.value for layer in probe.layers))


def _first_possible(attempts: dict[str, Callable[[], object]]) -> str | None:
    """Return the name of the first attempt that was not refused."""
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        return name
    return None


# Places that every Linux has and no view has. /etc/passwd is left out: a view may hold one of its own.
_HOST_PLACES = ("/etc/hostname", "/etc/shadow", "/etc/group", "/etc/fstab", "/sys/kernel", "/boot", "/dev/mem",
                "/dev/shm")  # fmt: skip  # noqa: S108
# Of any /proc. A worker with a GPU has its own folder of one; bubblewrap gives it a whole one, for Landlock to close.
_OF_PROC = ("/proc/version", "/proc/stat", "/proc/sys/kernel/ostype")
# A view may have these as the empty beginnings of a path to an interpreter; Landlock does not let them be listed.
_MAYBE_ON_THE_WAY = ("/root", "/home", "/var", "/run")


def _read_host_files() -> str | None:
    return _open_one_of((*_HOST_PLACES, *_OF_PROC, *_MAYBE_ON_THE_WAY))


def _read_places_of_no_view() -> str | None:
    return _open_one_of(_HOST_PLACES)


def _open_one_of(paths: Collection[str]) -> str | None:
    return _first_possible({path: lambda path=path: os.close(os.open(path, os.O_RDONLY)) for path in paths})  # type: ignore[misc]


def _write_outside_scratch() -> str | None:
    def create(folder: str) -> None:
        path = f"{folder}/wan-compat-probe-{os.getpid()}"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(path)

    folders = ("", "/usr/lib", "/var/tmp", "/dev/shm", "/dev", "/ctl", "/model", os.path.expanduser("~"))  # noqa: S108
    return _first_possible(
        {folder or "/": lambda folder=folder: create(folder) for folder in folders if folder != SCRATCH_TARGET}  # type: ignore[misc]
    )


def _see_processes() -> str | None:
    # With a GPU a worker has its own entry; a launcher in a bubblewrap, which is its parent, has that one besides.
    seen = {int(name) for name in os.listdir("/proc") if name.isdigit()} - {os.getpid(), os.getppid()}
    return f"{len(seen)} processes" if seen else None


def _signal_others() -> str | None:
    os.kill(-1, 0)  # signal 0 only asks; -1 is everyone but pid 1 and oneself
    return "other processes can be signalled"


def _reach_outside() -> str | None:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        probe.connect(("192.0.2.1", 9))  # TEST-NET-1, RFC 5737: asks for a route, sends nothing
    return "there is a route to elsewhere"


def _open_network_socket() -> str | None:
    kinds = {
        "inet": (socket.AF_INET, socket.SOCK_STREAM),
        "inet6": (socket.AF_INET6, socket.SOCK_STREAM),
        "netlink": (socket.AF_NETLINK, socket.SOCK_RAW),
        "packet": (socket.AF_PACKET, socket.SOCK_RAW),
        "vsock": (40, socket.SOCK_STREAM),
        "alg": (38, socket.SOCK_SEQPACKET),
    }
    return _first_possible(
        {name: lambda kind=kind: socket.socket(*kind).close() for name, kind in kinds.items()}  # type: ignore[misc]
    )


def _reach_network() -> str | None:
    # Connecting a datagram socket sends nothing; it only asks for a route, which a namespace without links lacks.
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        return _first_possible(
            {
                "loopback": lambda: probe.connect(("127.0.0.1", 9)),
                "elsewhere": lambda: probe.connect(("192.0.2.1", 9)),  # TEST-NET-1, RFC 5737
            }
        )


def _make_process() -> str | None:
    # os.fork would run every library's fork hooks; the number of clone alone is what matters.
    pid = libc.call("clone", signal.SIGCHLD, None, None, None, None)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "a process was made"


def _execute_program() -> str | None:
    # A program that does not exist: a filter refuses before the look-up, so "not found" means that nothing did.
    try:
        os.execve("/nonexistent/program", ["program"], {})  # noqa: S606
    except FileNotFoundError:
        return "execve was looked at"


def _mount() -> str | None:
    libc.mount("tmpfs", SCRATCH_TARGET, "tmpfs", 0)
    return "a file system was mounted"


def _become_root() -> str | None:
    libc.call("setresuid", 0, 0, 0)
    return "uid 0"


def _make_anonymous_file() -> str | None:
    os.close(libc.call("memfd_create", b"probe", 0))
    return "memfd_create"


def _map_shared_memory() -> str | None:
    return _first_possible(
        {
            "shared anonymous mapping": lambda: mmap.mmap(
                -1, mmap.PAGESIZE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
            ),
            "shmget": _make_sysv_segment,
        }
    )


def _make_sysv_segment() -> None:
    identifier = libc.call("shmget", 0, mmap.PAGESIZE, 0o600)
    libc.call("shmctl", identifier, 0, None)  # IPC_RMID


def _load_kernel_program() -> str | None:
    try:
        libc.call("bpf", 0, ctypes.create_string_buffer(128), 128)
    except OSError as error:
        if error.errno == errno.EINVAL:  # it was looked at: the empty order was wrong, not forbidden
            return "bpf was looked at"
        raise
    return "bpf"


def _map_scratch_executable() -> str | None:
    path = f"{SCRATCH_TARGET}/probe-{os.getpid()}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o700)
    try:
        os.unlink(path)
        os.write(descriptor, b"\x00" * 16)
        mmap.mmap(descriptor, 16, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    finally:
        os.close(descriptor)
    return "code was mapped from scratch"


def _hold_capabilities() -> str | None:
    held = credentials.capabilities()
    return f"capabilities {held}" if any(held) else None


def _gain_privileges() -> str | None:
    return None if libc.prctl(libc.PR_GET_NO_NEW_PRIVS) == 1 else "no_new_privs is not set"


def _be_dumped() -> str | None:
    if libc.prctl(libc.PR_GET_DUMPABLE) != 0:
        return "the process is dumpable"
    return None


def _raise_limits() -> str | None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != 0:
        return "a core file may be written"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
    except ValueError:  # what Python makes of EPERM here
        return None
    return "a hard limit was raised"


def _stray_descriptors(allowed: Collection[int]) -> str | None:
    limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 4096)
    stray = descriptors.open_descriptors(limit) - set(allowed)
    return f"open: {sorted(stray)}" if stray else None


def _new_connection() -> str | None:
    return _first_possible(
        {
            "socket": lambda: socket.socket(socket.AF_UNIX).close(),
            "socketpair": socket.socketpair,
        }
    )


_PROBES: tuple[_Probe, ...] = (
    _Probe("read_host_files", (Layer.VIEW, Layer.LANDLOCK), _read_host_files),
    _Probe("write_outside_scratch", (Layer.VIEW, Layer.LANDLOCK), _write_outside_scratch),
    _Probe("see_processes", (Layer.VIEW, Layer.LANDLOCK), _see_processes),
    _Probe("signal_others", (Layer.PID_NAMESPACE, Layer.SECCOMP), _signal_others),
    _Probe("open_network_socket", (Layer.SECCOMP,), _open_network_socket),
    _Probe("reach_network", (Layer.NET_NAMESPACE, Layer.SECCOMP), _reach_network),
    _Probe("make_process", (Layer.SECCOMP,), _make_process),
    _Probe("execute_program", (Layer.SECCOMP,), _execute_program),
    _Probe("mount", (Layer.CREDENTIALS, Layer.SECCOMP), _mount),
    _Probe("become_root", (Layer.CREDENTIALS, Layer.SECCOMP), _become_root),
    _Probe("make_anonymous_file", (Layer.SECCOMP,), _make_anonymous_file),
    _Probe("map_shared_memory", (Layer.SECCOMP,), _map_shared_memory),
    _Probe("load_kernel_program", (Layer.SECCOMP,), _load_kernel_program),
    _Probe("map_scratch_executable", (Layer.VIEW,), _map_scratch_executable),
    _Probe("hold_capabilities", (Layer.CREDENTIALS,), _hold_capabilities),
    _Probe("gain_privileges", (Layer.NO_NEW_PRIVS,), _gain_privileges),
    _Probe("be_dumped", (Layer.CREDENTIALS,), _be_dumped),
    _Probe("raise_limits", (Layer.RLIMITS,), _raise_limits),
)

# Loopback is left out: bubblewrap starts it, with nobody on it but who is inside.
_OUTER_PROBES: tuple[_Probe, ...] = (
    _Probe("read_host_files", (Layer.VIEW,), _read_places_of_no_view),
    _Probe("write_outside_scratch", (Layer.VIEW,), _write_outside_scratch),
    _Probe("see_processes", (Layer.VIEW,), _see_processes),
    _Probe("map_scratch_executable", (Layer.VIEW,), _map_scratch_executable),
    _Probe("signal_others", (Layer.PID_NAMESPACE,), _signal_others),
    _Probe("reach_outside", (Layer.NET_NAMESPACE,), _reach_outside),
    _Probe("mount", (Layer.MOUNT_NAMESPACE,), _mount),
    _Probe("hold_capabilities", (Layer.MOUNT_NAMESPACE,), _hold_capabilities),
    _Probe("gain_privileges", (Layer.MOUNT_NAMESPACE,), _gain_privileges),
)

_SEALED_PROBES: tuple[_Probe, ...] = (_Probe("new_connection", (Layer.SECCOMP,), _new_connection),)
