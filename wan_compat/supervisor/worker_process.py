"""The process of one worker, held by its pidfd: whether it lives, and how it is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

from wan_compat.supervisor.wake import readable


class WorkerProcess:
    """Before `began` there is none, and after `close` none is held.

    Belongs to the worker's thread, but for `kill_on_request` and `pid`.

    Attributes:
        pid: 0 before there is one.
        pidfd: Becomes readable when it ended; -1 while none is held.
        dead: It was seen to have ended.
        killed_on_request: Somebody asked for its death.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.pidfd = -1
        self.dead = self.killed_on_request = False
        self._lock = threading.Lock()  # a number that was closed may be somebody else's descriptor already

    def began(self, pid: int, pidfd: int) -> None:
        with self._lock:
            self.pid, self.pidfd = pid, pidfd
        if self.killed_on_request:
            self.kill_on_request()

    def kill_on_request(self) -> None:
        """From any thread; a process that is not there yet is killed as soon as it is."""
        self.killed_on_request = True
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    @property
    def lives(self) -> bool:
        """Whether it is there, as far as was seen."""
        return self.pidfd >= 0 and not self.dead

    def kill(self) -> None:
        if self.lives:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; return whether that came."""
        self.dead = bool(readable([self.pidfd], timeout_s))
        return self.dead

    def close(self) -> None:
        if self.pidfd >= 0:
            with self._lock:
                os.close(self.pidfd)
                self.pidfd = -1
