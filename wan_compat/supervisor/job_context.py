"""What a runner gives to the run of one job, and the smaller of two limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from wan_compat.policies.policy import Policy
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.worker_pool import WorkerPool

N = TypeVar("N", int, float)


@dataclasses.dataclass(frozen=True)
class JobContext:
    """Where events go, how cancellation shows, and the pool.

    job: The job's id. hold: Hears which worker does the job.
    """

    pool: WorkerPool
    emit: Callable[[ev.Event], None]
    cancelled: Callable[[], bool]
    wake_fd: int
    policy: Policy
    job: str | None = None
    hold: Callable[[str], None] = lambda worker: None


def narrower(first: N | None, second: N | None) -> N | None:
    """Return the smaller one of the limits that there are."""
    present = [value for value in (first, second) if value is not None]
    return min(present) if present else None
