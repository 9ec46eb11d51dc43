"""The threads that run jobs, one each at a time, and the pool of workers that they share.

A runner is started when more jobs wait than runners do, up to `workers` of them, and lives until the supervisor is
closed: a zygote dies with the thread that started it. The last one to leave closes the pool; the others wait for that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wan_compat.supervisor.job import Job
from wan_compat.supervisor.job_queue import JobQueue
from wan_compat.supervisor.wake import Wake

if TYPE_CHECKING:
    from wan_compat.supervisor.worker_pool import WorkerPool

TEND_S = 1.0  # how often idle workers are looked after


class Runners:
    """
    Args:
        queue: Where jobs come from; each is given back to it with `done` by `run`'s caller here.
        workers: How many threads at most.
        make_pool: Called once, when the first one starts.
        run: Does one job, to its end; never raises.
    """

    def __init__(
        self,
        queue: JobQueue,
        workers: int,
        make_pool: Callable[[], WorkerPool],
        run: Callable[[Job[Any], WorkerPool, Wake], None],
    ) -> None:
        self._queue, self._workers, self._make_pool, self._run_job = queue, workers, make_pool, run
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._active = 0
        self._wakes: dict[str, Wake] = {}  # by the job that runs
        self._closed = threading.Event()
        self.pool: WorkerPool | None = None

    def __bool__(self) -> bool:
        return bool(self._threads)

    def ensure(self, *, at_once: bool = False) -> None:
        """See to it that somebody takes the next job, unless all are busy; with `at_once` before there is one."""
        with self._lock:
            if at_once and self._threads:
                return
            if len(self._threads) >= self._workers or not (at_once or self._queue.needs_taker()):
                return
            self.pool = self.pool or self._make_pool()
            # Daemons, so that a program that forgets to close can still end; atexit then closes for it.
            name = f"wan-compat-runner-{len(self._threads) + 1}"
            thread = threading.Thread(target=self._run, args=(self.pool,), name=name, daemon=True)
            self._threads.append(thread)
            self._active += 1
            thread.start()

    def wake(self, job: Job[Any]) -> None:
        """Make the runner of a job look up; nothing if none runs it."""
        with self._lock:
            wake = self._wakes.get(job.id)
        if wake is not None:
            wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of all runners, and of their workers. For when the queue was closed."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, pool: WorkerPool) -> None:
        wake = Wake()
        try:
            while not self._queue.closed:
                job = self._queue.take(TEND_S if pool.has_idle else None)
                if job is None:
                    pool.tend()
                    continue
                with self._lock:
                    self._wakes[job.id] = wake
                try:
                    self._run_job(job, pool, wake)
                finally:
                    with self._lock:
                        del self._wakes[job.id]
                    self._queue.done(job)
                    del job  # nor wait for the next one with this one's frames in hand
        finally:
            self._leave(pool)
            wake.close()

    def _leave(self, pool: WorkerPool) -> None:
        with self._lock:
            self._active -= 1
            last = self._active == 0
        if last:
            pool.close()
            self._closed.set()
        else:
            self._closed.wait()
