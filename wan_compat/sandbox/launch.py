"""Starting one confined process by forking the one that calls, with everything it has imported.

    launcher                        A                                B (the worker, pid 1 of its namespace)
       | fork ----------------------> |
       |                              | join the cgroups: every later page is charged there
       |                              | unshare the namespaces
       | <------------- "unshared" -- |
       | write id maps -- "mapped" -> |
       |                              | fork ------------------------> |
       | <------ "forked", B's pid -- | exit                           | wait
       | reap A                                                        |
       | ------------------------------------------------- "go" -----> | enter every layer
       | <----------------------------------------------- "entered" -- | body(report)

Two forks, because a process that unshares the pid namespace stays in the old one itself: only its children are in the
new. B waits until A has been reaped, because the parent-death signal is tied to the parent of the moment: set earlier,
it would fire when A exits. The launcher is a subreaper, so that B becomes its child and not init's.

What a fork inherits: B's memory is a copy of the launcher's, so the launcher must never have held a secret, a model or
a prompt, its environment must have been scrubbed, and it must have one thread (a lock held by another would be held
for ever). Descriptors, signal handlers, the signal mask, buffered output and the working folder are inherited too, and
are undone here. Address layout is inherited and stays: workers of one launcher share it, so restart it now and then.
Random generators of libraries are inherited in their state; whoever writes `body` reseeds them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from wan_compat.protocol.errors import SandboxEntryFailed
from wan_compat.sandbox import bpf, credentials, descriptors, landlock, libc, namespaces, rlimits, seccomp, view
from wan_compat.sandbox.failure import entering, failed
from wan_compat.sandbox.libc import become_subreaper
from wan_compat.sandbox.report import EntryReport
from wan_compat.sandbox.spec import NAMESPACE_LAYERS, ConfinementSpec, Layer, to_wire
from wan_compat.sandbox.syscalls import architecture

__all__ = ["EntryReport", "Launched", "become_subreaper", "launch"]

# When memory runs out on the machine, the worker goes first and not the user's editor.
OOM_SCORE = b"500"
_MAX_MESSAGE_BYTES = 64 << 10


@dataclasses.dataclass(frozen=True)
class Launched:
    """A worker that has entered. The caller owns the descriptors, closes them, and reaps `pid`, which is its child.

    `notify_fd` is the listener of its flagrant calls (`seccomp_notify`); -1 where they kill by themselves.
    """

    pid: int
    pidfd: int
    report: EntryReport
    notify_fd: int = -1


def launch(
    spec: ConfinementSpec,
    body: Callable[[EntryReport], None],
    *,
    keep_fds: Sequence[int],
    output_fd: int,
    timeout_s: float = 10.0,
    notify: bool = False,
) -> Launched:
    """Fork a process, confine it by `spec`, and run `body` in it.

    Runs in a process with one thread that is a subreaper (the zygote). Returns when the new process has entered every
    layer and is about to call `body`; when that returns the process exits with 0, when it raises, with 1 and a
    traceback on `output_fd`.

    Args:
        spec: What to enter. Layers it does not name are not entered, and the report says so.
        body: Called inside. Its memory is a copy of the caller's.
        keep_fds: Descriptors that stay open inside, under the same numbers (3 or more).
        output_fd: Becomes the stdout and stderr of the new process.
        timeout_s: How long entering may take.
        notify: Ask for a listener of flagrant calls. They kill where the kernel has none to give, and without `notify`.

    Raises:
        SandboxEntryFailed: A layer could not be entered. The process is then dead and reaped, nothing is left of it.
    """
    _check(spec)
    if Layer.SECCOMP in spec.layers and Layer.PID_NAMESPACE in spec.layers:
        # Assembled once, here, and not in each child.
        flagrant = bpf.NOTIFY if notify else bpf.KILL_PROCESS
        seccomp.entry_filter(architecture(), 1, allow_gpu=spec.gpu is not None, flagrant=flagrant)
    for stream in (sys.stdout, sys.stderr):  # or the child would print once more what waits in the buffers
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    started = time.perf_counter()
    # A socket pair, because a descriptor comes back through it.
    status, status_inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    go_read, go_write = os.pipe()
    try:
        a = os.fork()
        if a == 0:
            own = _Own(tuple(keep_fds), output_fd, status_inside, go_read, notify)
            _run_a(spec, body, own, (status.fileno(), go_write), started)
        status_inside.close()
        os.close(go_read)
        go_read = -1
        return _see_it_in(spec, a, status, go_write, time.monotonic() + timeout_s)
    finally:
        status.close()
        status_inside.close()
        for descriptor in (go_read, go_write):
            if descriptor >= 0:
                os.close(descriptor)


# ---- the launcher's side --------------------------------------------------------------------------------------------


def _see_it_in(spec: ConfinementSpec, a: int, status: socket.socket, go_write: int, deadline: float) -> Launched:
    b = -1
    pidfd = -1
    a_lives = True
    received: list[int] = []
    try:
        for message in _messages(status, deadline, received):
            event = message.get("event")
            if event == "unshared":
                if Layer.USER_NAMESPACE in spec.layers:
                    namespaces.write_id_maps(a, spec.identity)
                os.write(go_write, b"m")
            elif event == "forked":
                b = int(message["pid"])
                os.waitpid(a, 0)
                a_lives = False
                pidfd = os.pidfd_open(b)  # our child by now: its pid cannot be reused before we reap it
                os.write(go_write, b"g")
            elif event == "entered":
                report = EntryReport.from_wire(message["report"])
                return Launched(b, pidfd, report, received.pop() if received else -1)
            else:
                raise failed(message["layer"], message["message"], message["hint"], message["errno"])
        raise failed("launch", "the process died while it entered the sandbox", "look at its output for the cause")
    except BaseException:
        if a_lives:
            _clear_away(a)
        elif b > 0:
            os.kill(b, signal.SIGKILL)  # our child, not yet reaped: the number is still its own
            os.waitpid(b, 0)
        for descriptor in (pidfd, *received):
            if descriptor >= 0:
                os.close(descriptor)
        raise


def _messages(status: socket.socket, deadline: float, received: list[int]) -> Iterator[dict[str, Any]]:
    """Yield what A and B say; a descriptor that comes along is added to `received` before its message is yielded."""
    buffer = b""
    poll = select.poll()
    poll.register(status, select.POLLIN)
    while True:
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            yield json.loads(line)
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise failed(
                "launch", "entering the sandbox took too long", "look at the load of the machine, or try again"
            )
        chunk, descriptors_received, _, _ = socket.recv_fds(status, 8192, 1, socket.MSG_CMSG_CLOEXEC)
        received += descriptors_received
        if not chunk:
            return
        buffer += chunk
        if len(buffer) > _MAX_MESSAGE_BYTES:
            raise failed("launch", "the process reported nonsense", "report this as a bug")


def _clear_away(a: int) -> None:
    """Kill and reap A, which is our child still, and a B that it may have made but not reported.

    A leads a process group that B is in until it is let go, so B is found without its pid. Never call this once A has
    been reaped: its number could then be another group's.
    """
    for kill in (os.killpg, os.kill):  # also A alone, should it not have come to making its group
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(a, signal.SIGKILL)
    # B first, while A's unreaped pid still keeps the group's number from being used again.
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, a, os.WEXITED | os.WNOWAIT)
        while True:
            os.waitpid(-a, 0)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(a, 0)


def _check(spec: ConfinementSpec) -> None:
    """Refuse a spec or a caller for which the layers could not keep their promise."""
    layers = spec.layers
    if Layer.VIEW in layers and Layer.MOUNT_NAMESPACE not in layers:
        raise failed(Layer.VIEW, "a view needs a mount namespace of its own", "add the layer mount_namespace")
    if layers & spec.outer:
        raise failed("launch", "a layer is both in force already and to be entered", "name it once")
    if (Layer.CGROUP in spec.in_force) != bool(spec.cgroup_dirs):
        raise failed(
            Layer.CGROUP,
            f"the spec has {len(spec.cgroup_dirs)} cgroup folders and layer cgroup is {Layer.CGROUP in spec.in_force}",
            "name both or neither",
        )
    if layers & {Layer.LANDLOCK, Layer.SECCOMP} and Layer.NO_NEW_PRIVS not in layers:
        raise failed(Layer.NO_NEW_PRIVS, "Landlock and seccomp need no_new_privs", "add the layer no_new_privs")
    if layers and layers.isdisjoint({Layer.CREDENTIALS}):
        raise failed(Layer.CREDENTIALS, "no confinement holds while privileges are kept", "add the layer credentials")
    if os.geteuid() == 0 and spec.identity is None:
        raise failed(Layer.CREDENTIALS, "root's worker has no identity", "give the spec an Identity")
    if os.geteuid() != 0 and spec.identity is not None:
        raise failed(Layer.CREDENTIALS, "only root can give the worker an identity", "leave identity out of the spec")
    if os.geteuid() != 0 and layers & NAMESPACE_LAYERS and Layer.USER_NAMESPACE not in layers:
        raise failed(
            Layer.USER_NAMESPACE, "an ordinary user needs a user namespace for the others", "add user_namespace"
        )
    targets = [bind.target for bind in spec.view.binds] + [file.target for file in spec.view.files]
    if len(set(targets)) != len(targets):
        raise failed(Layer.VIEW, "two things of the view have the same target", "remove one of them")
    threads = libc.count_threads()
    if threads != 1:
        raise failed("launch", f"the launcher has {threads} threads; a fork copies only one", "launch earlier")
    if not libc.is_subreaper():
        raise failed("launch", "the launcher is not a subreaper", "call become_subreaper() once, first")


# ---- inside A and B: nothing below returns --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Own:
    """What A and B have been handed besides the spec."""

    keep_fds: tuple[int, ...]
    output_fd: int
    status: socket.socket
    go_read: int
    notify: bool


def _run_a(
    spec: ConfinementSpec,
    body: Callable[[EntryReport], None],
    own: _Own,
    not_ours: tuple[int, ...],
    started: float,
) -> NoReturn:
    clock = _Clock(started)
    try:
        os.setpgid(0, 0)
        # A launcher that is not dumpable itself hands that on, and then /proc/A/uid_map belongs to root (proc(5)).
        libc.prctl(libc.PR_SET_DUMPABLE, 1)
        for descriptor in not_ours:
            os.close(descriptor)
        _reset_signals()
        clock.note("fork")
        _join_cgroups(spec)
        clock.note("cgroup")
        picked = view.pick_up_private_files(spec) if Layer.VIEW in spec.layers else view.PickedUp()
        clock.note("pick_up")
        namespaces.unshare(spec.layers)
        clock.note("unshare")
        _tell(own.status, {"event": "unshared"})
        if os.read(own.go_read, 1) != b"m":
            os._exit(1)
        clock.note("id_maps")
        b = os.fork()
        if b > 0:
            _tell(own.status, {"event": "forked", "pid": b})
            os._exit(0)
        _run_b(spec, body, own, picked, clock)
    except BaseException as error:  # noqa: BLE001 - whatever it was, this process must end here and say so
        _tell_failure(own.status, error)
    finally:
        os._exit(1)


def _run_b(
    spec: ConfinementSpec,
    body: Callable[[EntryReport], None],
    own: _Own,
    picked: view.PickedUp,
    clock: _Clock,
) -> NoReturn:
    try:
        if os.read(own.go_read, 1) != b"g":
            os._exit(1)
        clock.note("reparented")
        report, listener = _enter(spec, own, picked, clock)
        _tell(own.status, {"event": "entered", "report": to_wire(report)}, listener)
        if listener >= 0:
            os.close(listener)
        own.status.close()
        os.close(own.go_read)
    except BaseException as error:  # noqa: BLE001 - as above: fail closed
        _tell_failure(own.status, error)
        os._exit(1)
    code = 1
    try:
        body(report)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:  # noqa: BLE001 - the last frame of this process
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _enter(
    spec: ConfinementSpec,
    own: _Own,
    picked: view.PickedUp,
    clock: _Clock,
) -> tuple[EntryReport, int]:
    """Enter the layers in the order of `Layer`. Each raises SandboxEntryFailed if it cannot be had.

    Returns:
        What was entered, and the filter's listener or -1.
    """
    layers = spec.layers
    entered: list[Layer] = []
    abi, listener = 0, -1

    def done(layer: Layer) -> None:
        entered.append(layer)
        clock.note(layer.value)

    entered.extend(layer for layer in Layer if layer in layers & (NAMESPACE_LAYERS | {Layer.CGROUP}) | spec.outer)
    os.setsid()
    namespaces.name_host(spec)
    _replace_streams(own.output_fd)
    if Layer.DESCRIPTORS in layers:
        descriptors.close_all_but((*own.keep_fds, own.status.fileno(), own.go_read, *picked.mounts.values()))
        done(Layer.DESCRIPTORS)
    if Layer.VIEW in layers:
        view.build(spec, picked)
        done(Layer.VIEW)
    elif Layer.VIEW in spec.outer:
        view.check_admitted(spec)
    os.umask(0o077)
    if Layer.RLIMITS in layers:
        rlimits.apply(spec)
        done(Layer.RLIMITS)
    if Layer.CREDENTIALS in layers:
        credentials.drop(spec.identity)
        done(Layer.CREDENTIALS)
    if Layer.NO_NEW_PRIVS in layers:
        credentials.forbid_new_privileges()
        done(Layer.NO_NEW_PRIVS)
    credentials.die_with_parent()
    _leave_if_alone(own.go_read)
    if layers:
        view.check_readable(spec)
        view.check_devices(spec)
    if Layer.LANDLOCK in layers:
        abi = landlock.restrict(view.access_rules(spec))
        done(Layer.LANDLOCK)
    if Layer.SECCOMP in layers:
        listener = seccomp.install_entry_filter(allow_gpu=spec.gpu is not None, notify=own.notify)
        done(Layer.SECCOMP)
    report = EntryReport(
        layers=tuple(layer.value for layer in entered),
        timings_s=clock.finish(),
        landlock_abi=abi,
        no_new_privs=libc.prctl(libc.PR_GET_NO_NEW_PRIVS) == 1,
        uid=os.geteuid(),
        gid=os.getegid(),
        pid_inside=os.getpid(),
    )
    return report, listener


def _join_cgroups(spec: ConfinementSpec) -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as file:
        file.write(OOM_SCORE)
    for folder in spec.cgroup_dirs if Layer.CGROUP in spec.layers else ():
        # Moving a process takes a lock for which the kernel waits out an RCU grace period, 8 to 13 ms; a thread that
        # moves itself need not (cgroup_attach_lock in kernel/cgroup/cgroup.c). We have one thread, so in version 1,
        # whose `tasks` takes threads, that is the same move in 0.2 ms. Version 2 has no such file.
        members = f"{folder}/tasks" if os.path.exists(f"{folder}/tasks") else f"{folder}/cgroup.procs"
        with entering(Layer.CGROUP, f"joining {folder}"), open(members, "wb") as file:
            file.write(b"0")


def _leave_if_alone(go_read: int) -> None:
    """The launcher may have died before the parent-death signal was set, which then never comes."""
    poll = select.poll()
    poll.register(go_read, select.POLLIN)
    if poll.poll(0):  # nothing is ever written after "go", so this is its end
        os._exit(1)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        # SIGPIPE stays ignored, as Python has it: a closed log must raise, not kill.
        if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE):
            with contextlib.suppress(OSError, ValueError):
                if signal.getsignal(number) not in (signal.SIG_DFL, None):
                    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _replace_streams(output_fd: int) -> None:
    """Also Python's own objects: the launcher's may be wrapped, captured or closed."""
    descriptors.replace_standard(output_fd)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")  # type: ignore[misc]
    for name, number in (("stdout", 1), ("stderr", 2)):
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _tell(status: socket.socket, message: dict[str, Any], attached: int = -1) -> None:
    data = json.dumps(message).encode() + b"\n"
    if attached >= 0:
        socket.send_fds(status, [data], [attached])
    else:
        status.sendall(data)


def _tell_failure(status: socket.socket, error: BaseException) -> None:
    if isinstance(error, SandboxEntryFailed):
        layer, number = error.details.get("layer", "launch"), error.details.get("errno")
        message, hint = error.message, error.hint or ""
    else:
        layer, number = "launch", getattr(error, "errno", None)
        message, hint = f"{type(error).__name__}: {error}", "report this as a bug"
    with contextlib.suppress(OSError):
        _tell(status, {"event": "failed", "layer": layer, "message": message, "hint": hint, "errno": number})


class _Clock:
    """How long each part of the entry took, from the launcher's fork on (perf_counter is machine-wide on Linux)."""

    def __init__(self, started: float) -> None:
        self._first = self._last = started
        self._timings_s: dict[str, float] = {}

    def note(self, name: str) -> None:
        now = time.perf_counter()
        self._timings_s[name] = now - self._last
        self._last = now

    def finish(self) -> dict[str, float]:
        return {**self._timings_s, "total": time.perf_counter() - self._first}
