"""What a supervisor says about itself (protocol/status.py), put together from its queue, pool and records.

For onlookers in any thread: nothing here waits, and nothing here changes what is looked at.
"""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from wan_compat._version import __version__
from wan_compat.protocol.errors import EnvironmentLacks, clean_text
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.worker import Worker

if TYPE_CHECKING:
    from wan_compat.protocol.status import JobStatus, MachineStatus, Note, NoteLevel, SupervisorStatus, WorkerStatus
    from wan_compat.protocol.values import Mode
    from wan_compat.supervisor.job_queue import JobQueue

_TEXT_CHARS = 500


class Records:
    """What happened lately, and how many jobs ended how. Thread-safe, bounded.

    Args:
        tell: Given every note, once it is here.
    """

    def __init__(self, tell: Callable[[Note], None] = lambda _note: None) -> None:
        from wan_compat.protocol.status import MAX_LISTED_JOBS, MAX_NOTES

        self._tell = tell
        self._lock = threading.Lock()
        self._notes: collections.deque[Note] = collections.deque(maxlen=MAX_NOTES)
        self._ended: collections.deque[JobStatus] = collections.deque(maxlen=MAX_LISTED_JOBS)
        self._counts: collections.Counter[str] = collections.Counter()

    def note(
        self, level: NoteLevel, text: str, *, code: str | None = None, job: str | None = None, worker: str | None = None
    ) -> None:
        from wan_compat.protocol.status import Note

        entry = Note(
            at_unix_s=time.time(), level=level, text=clean_text(text, _TEXT_CHARS), code=code, job=job, worker=worker
        )
        with self._lock:
            self._notes.appendleft(entry)
        self._tell(entry)

    def ended(self, job: JobStatus) -> None:
        with self._lock:
            self._ended.appendleft(job)
            self._counts[job.state] += 1

    def read(self) -> tuple[tuple[Note, ...], tuple[JobStatus, ...], dict[str, int]]:
        """Return notes and ended jobs, newest first, and how many jobs ended in each state."""
        with self._lock:
            return tuple(self._notes), tuple(self._ended), dict(self._counts)


class Named(Protocol):
    """Of a supervisor, what it says of itself."""

    id: str
    program: str
    mode: Mode
    workers: int


def supervisor_status(
    named: Named,
    started_unix_s: float,
    queue: JobQueue,
    records: Records,
    workers: Sequence[tuple[Worker, bool]],
    cpu_percents: Mapping[int, float],
) -> SupervisorStatus:
    """Return the status of a whole supervisor.

    Args:
        workers: Those that live, and whether each is idle.
        cpu_percents: By process id.
    """
    from wan_compat.protocol.status import MAX_LISTED_JOBS, MAX_WORKERS, SupervisorStatus

    notes, ended, counts = records.read()
    running = [job.status() for job in queue.running()[:MAX_LISTED_JOBS]]
    return SupervisorStatus(
        id=named.id,
        pid=os.getpid(),
        program=clean_text(named.program, _TEXT_CHARS),
        version=__version__,
        mode=named.mode.value,
        started_unix_s=started_unix_s,
        now_unix_s=time.time(),
        paused=queue.paused,
        draining=queue.draining,
        max_workers=named.workers,
        workers=tuple(
            worker_status(worker, idle=idle, cpu_percent=cpu_percents.get(worker.pid))
            for worker, idle in workers[-MAX_WORKERS:]  # those that are just being ended come on top
        ),
        running=tuple(job for job in running if job.state == "running"),
        queued=tuple(job.status() for job in queue.waiting(MAX_LISTED_JOBS)),
        ended=ended,
        queued_count=len(queue),
        done_count=counts.get("done", 0),
        failed_count=counts.get("failed", 0),
        cancelled_count=counts.get("cancelled", 0),
        notes=notes,
        machine=machine_status(),
    )


def worker_status(worker: Worker, *, idle: bool, cpu_percent: float | None) -> WorkerStatus:
    """Return what a monitor shows of a worker."""
    from wan_compat.protocol.status import WorkerStatus

    tier = worker.tier.tier if worker.tier is not None else worker.wanted_tier
    starting, ending = worker.tier is None, worker.ending
    return WorkerStatus(
        id=worker.name,
        pid=worker.pid,
        activity="ending" if ending else "starting" if starting else "idle" if idle else "busy",
        mode=worker.order.mode.value,
        tier="E" if tier is None else tier.value,
        model=clean_text(worker.order.model, _TEXT_CHARS),
        job=worker.job,
        rss_bytes=worker.used_now(),
        memory_limit_bytes=worker.order.memory_limit_bytes,
        vram_bytes=worker.vram_bytes,
        cpu_percent=cpu_percent,
        started_unix_s=worker.started_unix_s,
        unusual=worker.unusual,
        jobs_done=max(0, worker.jobs_started - (0 if idle else 1)),
    )


def machine_status() -> MachineStatus:
    """Return what the machine has and uses."""
    from wan_compat.protocol.status import MachineStatus
    from wan_compat.supervisor.gpu_glance import GLANCE

    total, used = GLANCE.memory() or (None, None)
    try:
        host = read_host()
    except EnvironmentLacks:
        return MachineStatus(vram_total_bytes=total, vram_used_bytes=used, load_1=os.getloadavg()[0])
    return MachineStatus(
        ram_total_bytes=host.memory_total_bytes,
        ram_available_bytes=host.memory_available_bytes,
        vram_total_bytes=total,
        vram_used_bytes=used,
        cpu_count=host.cpu_count,
        load_1=os.getloadavg()[0],
    )
