"""The zygotes of one supervisor: one for each environment and lightness, started when needed, leased by workers.

A zygote is ended only when no worker uses it, because a worker's end is learnt from its socket. One that died is used
no more at once, and closed when its last worker is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from wan_compat.policies.limits import Deadlines
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    JobCancelled,
    JobTimeout,
    MemoryExceeded,
    PhaseTimeout,
    WorkerStartFailed,
)
from wan_compat.supervisor.restart_guard import RestartGuard
from wan_compat.supervisor.zygote import Zygote

MAX_ZYGOTES = 3  # each holds the libraries; a job that needs another one gets it in the place of an unused one


class Starter:
    """For whom a worker is started, and how long that may take."""

    def __init__(self, deadlines: Deadlines, cancelled: Callable[[], bool], wake_fd: int, job: str | None) -> None:
        self.deadlines, self.cancelled, self.wake_fd, self.job = deadlines, cancelled, wake_fd, job


class Zygotes:
    """Thread-safe. `program`: what Python runs as a zygote. `guard`: remembers those that died."""

    def __init__(self, program: Sequence[str], guard: RestartGuard) -> None:
        self._program, self._guard = program, guard
        self._lock = threading.RLock()
        self._zygotes: dict[tuple[bool, str | None], Zygote] = {}  # by lightness and environment
        self._retired: list[Zygote] = []  # those that ended while a worker of theirs was still being ended
        self._leases: dict[str, Zygote] = {}  # by the worker that uses it

    def lease(self, worker: str, light: bool, site: str | None, starter: Starter) -> Zygote:
        """Return a zygote that is ready, leased to a worker until `give_back`."""
        key = (light, site)
        with self._lock:
            zygote = self._zygotes.get(key)
            if zygote is not None and not zygote.alive():
                self._retire(key)
                self._guard.died(key, "the zygote ended")
                zygote = None
        if zygote is None:
            self._guard.wait_turn(key, "zygotes", starter.cancelled)
        with self._lock:
            zygote = self._zygotes.get(key)  # by now another runner may have started it
            if zygote is None:
                self._make_room()
                zygote = self._zygotes[key] = Zygote(light=light, program=self._program, site=site)
            self._leases[worker] = zygote
        try:
            zygote.wait_ready(starter.deadlines.zygote_s, starter.cancelled, starter.wake_fd)
        except (JobCancelled, JobTimeout, PhaseTimeout):
            raise  # the job is over; the imports go on, for the next one
        except BaseException as error:
            with self._lock:
                first = self._zygotes.get(key) is zygote  # several runners may have waited for it
                if first:
                    self._retire(key)
            if first and isinstance(error, WorkerStartFailed | MemoryExceeded | DeadlineExceeded):
                self._guard.died(key, f"{error.code}: {error.message}")
            raise
        return zygote

    def _make_room(self) -> None:
        while len(self._zygotes) >= MAX_ZYGOTES:
            used = {id(zygote) for zygote in self._leases.values()}
            unused = next((key for key, zygote in self._zygotes.items() if id(zygote) not in used), None)
            if unused is None:
                return  # as many as there are workers, which are bounded too
            self._retire(unused)

    def _retire(self, key: tuple[bool, str | None]) -> None:
        """Use a zygote no more, and end it as soon as nobody waits for it or asks it about a worker's end."""
        zygote = self._zygotes.pop(key)
        if any(leased is zygote for leased in self._leases.values()):
            self._retired.append(zygote)
        else:
            zygote.close()

    def give_back(self, worker: str) -> None:
        """A worker needs its zygote no more, or never got it."""
        with self._lock:
            zygote = self._leases.pop(worker, None)
            if zygote in self._retired and not any(leased is zygote for leased in self._leases.values()):
                self._retired.remove(zygote)
                zygote.close()

    def close_unused(self) -> None:
        """End those that no worker uses."""
        with self._lock:
            for key, zygote in list(self._zygotes.items()):
                if not any(leased is zygote for leased in self._leases.values()):
                    self._retire(key)

    def close(self) -> None:
        """End all of them, and with them whatever they forked."""
        with self._lock:
            for zygote in (*self._zygotes.values(), *self._retired):
                zygote.close()
            self._zygotes.clear()
            self._retired.clear()
