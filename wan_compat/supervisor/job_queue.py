"""The waiting jobs of one supervisor, for many threads: in order, bounded, paused, drained, closed.

The order itself is policies/queue.py. Whoever takes a job gives its place back with `done`, so that draining knows
when nothing runs any more.
"""

from __future__ import annotations

import threading
import time
from itertools import islice
from typing import Any

from wan_compat.policies.queue import FairOrder
from wan_compat.protocol.errors import InvalidRequest, QueueFull
from wan_compat.supervisor.job import Job


class JobQueue:
    """Thread-safe. `max_queued` bounds what waits; what runs does not count."""

    def __init__(self, max_queued: int) -> None:
        self.max_queued = max_queued
        self._order: FairOrder[Job[Any]] = FairOrder()
        self._changed = threading.Condition()
        self._running: dict[str, Job[Any]] = {}
        self._waiting_takers = 0
        self.paused = self.draining = self.closed = False

    def put(self, job: Job[Any]) -> None:
        """Queue a job.

        Raises:
            QueueFull: `max_queued` jobs wait already.
            InvalidRequest: The queue is closed, or takes no more.
        """
        with self._changed:
            if self.closed:
                raise InvalidRequest("the supervisor is closed")
            if self.draining:
                raise InvalidRequest("the supervisor takes no more jobs: it is being drained")
            if len(self._order) >= self.max_queued:
                raise QueueFull(
                    f"{len(self._order)} jobs wait already, and no more than {self.max_queued} may",
                    hint="submit the next one when one has ended, or allow more with max_queued",
                    details={"queued": len(self._order), "max_queued": self.max_queued},
                )
            self._order.add(job, priority=job.ticket.priority, group=job.ticket.group)
            self._changed.notify_all()

    def take(self, timeout_s: float | None = None) -> Job[Any] | None:
        """Wait for the next job and take it; it counts as running until `done`. None: closed, or nothing came."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            self._waiting_takers += 1
            try:
                while not self.closed:
                    job = None if self.paused else self._order.take()
                    if job is not None:
                        self._running[job.id] = job
                        job.begin()
                        return job
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        return None
                    self._changed.wait(left)
                return None
            finally:
                self._waiting_takers -= 1

    def done(self, job: Job[Any]) -> None:
        """The job is over, and so is its turn."""
        with self._changed:
            self._running.pop(job.id, None)
            self._changed.notify_all()

    def remove(self, job: Job[Any]) -> bool:
        """Take a job out that still waits; return whether it did. The caller finishes it."""
        with self._changed:
            removed = self._order.remove(job)
            self._changed.notify_all()
            return removed

    def find(self, job_id: str) -> Job[Any] | None:
        """Return a job that waits or runs, by its id."""
        with self._changed:
            if (running := self._running.get(job_id)) is not None:
                return running
            return next((job for job in self._order if job.id == job_id), None)

    def pause(self, paused: bool) -> None:
        """Take no job from the queue while paused; what runs goes on."""
        with self._changed:
            self.paused = paused
            self._changed.notify_all()

    def drain(self) -> None:
        """Accept no more jobs."""
        with self._changed:
            self.draining, self.paused = True, False
            self._changed.notify_all()

    def wait_empty(self, timeout_s: float | None) -> bool:
        """Wait until nothing waits and nothing runs; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._order and not self._running, timeout_s)

    def close(self) -> list[Job[Any]]:
        """End the queue and return what still waited, for the caller to finish."""
        with self._changed:
            self.closed = True
            rest = []
            while (job := self._order.take()) is not None:
                rest.append(job)
            self._changed.notify_all()
            return rest

    def needs_taker(self) -> bool:
        """Whether more jobs wait than there are threads waiting for one."""
        with self._changed:
            return len(self._order) > self._waiting_takers

    def __len__(self) -> int:
        return len(self._order)

    def waiting(self, limit: int) -> list[Job[Any]]:
        """Return the first waiting jobs in the order in which they will run."""
        with self._changed:
            return list(islice(self._order, limit))

    def running(self) -> list[Job[Any]]:
        with self._changed:
            return list(self._running.values())
