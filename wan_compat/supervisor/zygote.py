"""The supervisor's side of a zygote: starts it, has workers forked by it, hears which ones ended.

The zygote runs `wan_compat.workers.zygote` in a process of its own with an environment of ten harmless variables; it
imports the worker's libraries once, so that a worker is there in milliseconds. The light zygote imports nothing and is
the second path, for when the full one cannot fork (docs/adr/).

A zygote asks the kernel to be killed when the thread that started it ends (PR_SET_PDEATHSIG means the thread, not the
process): start it from a thread that lives as long as the supervisor does.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from wan_compat.protocol.errors import (
    DeadlineExceeded,
    JobCancelled,
    MemoryExceeded,
    SandboxEntryFailed,
    WanCompatError,
    WorkerExtraMissing,
    WorkerStartFailed,
)
from wan_compat.protocol.launch import (
    SPAWNED_DESCRIPTORS,
    SpawnFailed,
    SpawnWorker,
    WorkerExited,
    WorkerSpawned,
    ZygoteReady,
    receive_packet,
    send_packet,
)
from wan_compat.sandbox.spec import SCRATCH_TARGET, Layer
from wan_compat.supervisor.wake import readable
from wan_compat.supervisor.worker_log import BoundedLog

# Set by hand, not inherited: nothing of the user's environment (tokens, proxies, paths) may be in a worker's memory.
ZYGOTE_ENVIRONMENT = {
    "HOME": SCRATCH_TARGET,
    "TMPDIR": SCRATCH_TARGET,
    "PATH": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    # One thread before any fork: libgomp's and OpenBLAS's pools do not survive it and every child would hang.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Threads that wait spin for some microseconds and then sleep. libgomp's own choice, to spin for milliseconds, made
    # the demo's denoising up to 27 times slower on a machine with other work on its cores (docs/adr/0011).
    "GOMP_SPINCOUNT": "1000",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "DIFFUSERS_VERBOSITY": "error",
    # Should a library ask for GPUs while it is imported: by the driver's list, as CUDA itself does not survive a fork.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}

ZYGOTE_PROGRAM = ("-m", "wan_compat.workers.zygote")

REPLY_TIMEOUT_S = 20.0
# How long one thread at most keeps the others from the socket while it waits; how often one looks at what they heard.
_TURN_S = 0.05
_LOOK_S = 0.2


class Zygote:
    """One running zygote process, for all runner threads of a supervisor: whoever reads its socket notes what he hears
    for the others. `close` is for when nobody uses it any more.

    `outer`: the layers that are in force around it already (`bwrap_zygote.py`); none here. `site`: the packages of an
    isolated environment, which come before the usual ones.
    """

    outer: frozenset[Layer] = frozenset()

    def __init__(
        self, *, light: bool = False, program: Sequence[str] = ZYGOTE_PROGRAM, site: str | None = None
    ) -> None:
        self.light = light
        self.ready: ZygoteReady | None = None
        self._exits: dict[str, int] = {}
        self._turn = threading.RLock()  # of the socket and the log
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log_reader, log_writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(log_reader, False)
        self.log = BoundedLog(log_reader)
        try:
            argv = [sys.executable, "-I", *program, "--control-fd", str(theirs.fileno())]
            argv += ["--light"] if light else []
            argv += ["--site", site] if site is not None else []
            self._process = self._start(argv, theirs.fileno(), log_writer)
        except OSError as error:
            ours.close()
            self.log.close()
            raise WorkerStartFailed(f"{sys.executable!r} could not be started: {error.strerror}") from error
        except BaseException:
            ours.close()
            self.log.close()
            raise
        finally:
            theirs.close()
            os.close(log_writer)
        self._socket = ours

    def _start(self, argv: list[str], control_fd: int, log_writer: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*argv, "--parent-pid", str(os.getpid())],
            env=ZYGOTE_ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log_writer,
            stderr=log_writer,
            pass_fds=[control_fd],
            start_new_session=True,  # the terminal's Ctrl-C is for the supervisor alone
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Descriptor to poll for news of ended workers."""
        return self._socket.fileno()

    def wait_ready(self, deadline_s: float, cancelled: Callable[[], bool], wake_fd: int) -> None:
        """Wait until the imports are done.

        Args:
            cancelled: Asked at least every second; may raise what ends the job.
            wake_fd: Becomes readable when it is worth asking at once.

        Raises:
            JobCancelled: `cancelled` said so.
            WorkerExtraMissing: The libraries are not installed.
            WorkerStartFailed, DeadlineExceeded: It ended, or took longer than `deadline_s`.
        """
        deadline = time.monotonic() + deadline_s
        while self.ready is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"the zygote was not ready after {deadline_s:g} s")
            ready = readable((self._socket.fileno(), wake_fd), min(left, _LOOK_S))
            if cancelled():
                raise JobCancelled("cancelled while the worker's libraries were being imported")
            with self._turn:
                self.log.collect()
                if self.ready is None and self._socket.fileno() in ready and self._is_readable(0.0):
                    message = self._receive()
                    if isinstance(message, ZygoteReady):
                        self.ready = message

    def spawn(self, message: SpawnWorker, descriptors: tuple[int, ...]) -> tuple[int, int, int]:
        """Have one worker forked and confined; return (pid, pidfd, listener of forbidden calls or -1).

        The descriptors belong to the caller.

        Raises:
            SandboxEntryFailed: A layer could not be entered; nothing of the worker is left.
            WorkerStartFailed: The fork itself failed; `details["code"]` tells why.
        """
        with self._turn:
            try:
                send_packet(self._socket, message, descriptors)
            except ConnectionError as error:  # it ended since it was last looked at
                raise self._died() from error
            deadline = time.monotonic() + REPLY_TIMEOUT_S
            while True:
                if not self._is_readable(deadline - time.monotonic()):
                    raise WorkerStartFailed(f"the zygote did not fork a worker within {REPLY_TIMEOUT_S:g} s")
                reply, received = self._receive_with_descriptors()
                complete = 1 <= len(received) <= len(SPAWNED_DESCRIPTORS)
                if isinstance(reply, WorkerSpawned) and reply.worker == message.worker and complete:
                    return _host_pid(received[0]), received[0], received[1] if len(received) > 1 else -1
                for descriptor in received:
                    os.close(descriptor)
                if isinstance(reply, SpawnFailed):
                    raise _spawn_error(reply)

    def exit_status(self, worker: str, timeout_s: float) -> int | None:
        """Return the wait status of an ended worker, waiting up to `timeout_s` for the zygote to tell it."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            with self._turn:
                if worker in self._exits:
                    return self._exits.pop(worker)
                if self._is_readable(min(left, _TURN_S)):
                    try:
                        self._receive()
                    except WanCompatError:
                        return None
                elif left <= 0:
                    return None

    def _is_readable(self, timeout_s: float) -> bool:
        return bool(readable([self._socket.fileno()], timeout_s))

    def _receive(self) -> object:
        message, descriptors = self._receive_with_descriptors()
        for descriptor in descriptors:
            os.close(descriptor)
        return message

    def _receive_with_descriptors(self) -> tuple[object, tuple[int, ...]]:
        try:
            packet = receive_packet(self._socket, "from")
        except ConnectionResetError:  # it was killed with something of ours unread
            packet = None
        if packet is None:
            raise self._died()
        message, descriptors = packet
        if isinstance(message, WorkerExited):
            self._exits[message.worker] = message.status
        return message, descriptors

    def _died(self) -> WanCompatError:
        status = self._process.wait()
        self.log.collect()
        tail = self.log.tail()
        if "No module named" in tail:
            return WorkerExtraMissing(
                f"the worker's libraries are not installed: {tail.strip().splitlines()[-1]}",
                hint='install them with: pip install "wan-compat[worker]"',
            )
        if status == -signal.SIGKILL:
            doing = "importing" if self.ready is None else "starting a worker"
            return MemoryExceeded(f"the zygote was killed while {doing}; most likely memory ran out")
        return WorkerStartFailed(f"the zygote ended with status {status}: {tail[-1500:].strip()}")

    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End it and everything it forked: end of file first, so that it reaps its workers, then SIGKILL."""
        self._socket.close()
        try:
            self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.log.close()


def _host_pid(pidfd: int) -> int:
    """Return the number that a process has here: the one that the zygote told may be of a namespace of its own."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


def _spawn_error(reply: SpawnFailed) -> WanCompatError:
    if reply.layer is not None:
        return SandboxEntryFailed(reply.message, fixes=reply.fixes, details={"layer": reply.layer})
    return WorkerStartFailed(reply.message, fixes=reply.fixes, details={"code": reply.code})
