"""One job in its runner's thread, from what runs it to what it ends with: whatever happens, the runner survives it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.protocol.errors import GenerationFailed, WanCompatError
from wan_compat.supervisor import audit_log
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.system_limits import limit_reached

if TYPE_CHECKING:
    from wan_compat.policies.policy import Policy
    from wan_compat.protocol.results import ConversionReport, VideoGenerationResult
    from wan_compat.supervisor.job import Job
    from wan_compat.supervisor.wake import Wake
    from wan_compat.supervisor.worker_pool import WorkerPool


def execute_job(
    job: Job[Any],
    pool: WorkerPool,
    wake: Wake,
    *,
    policy: Policy,
    emit: Callable[[ev.Event], None],
    is_over: Callable[[], bool],
) -> VideoGenerationResult | ConversionReport | WanCompatError:
    """Run a job; return its result or its error.

    Args:
        wake: Interrupts what the job waits for.
        policy: What it may do and use.
        emit: Told what happens.
        is_over: Whether it is to stop.
    """
    # A program that only submits to a served supervisor, or only checks, need not wait for what runs jobs.
    from wan_compat.supervisor.job_context import JobContext
    from wan_compat.supervisor.job_run import JobRun

    def cancelled() -> bool:
        wake.clear()
        return is_over()

    context = JobContext(
        pool=pool, emit=emit, cancelled=cancelled, wake_fd=wake.fd, policy=policy, job=job.id, hold=job.hold
    )
    try:
        if isinstance(job.request, ConversionRequest):
            from wan_compat.supervisor.conversion import ConversionRun

            return ConversionRun(job.request, context).execute()
        return JobRun(job.request, context).execute()
    except WanCompatError as error:
        audit_log.note_error(error, model=job.request.model, mode=job.request.mode.value)
        return error
    except Exception as error:  # noqa: BLE001 - the runner must survive its own bugs; the job tells them
        failure = limit_reached(error) or GenerationFailed(
            f"internal error: {type(error).__name__}: {error}", hint="please report this with the traceback"
        )
        failure.__cause__ = error
        return failure


def forget_frames(error: BaseException | None) -> None:
    """Drop the local variables that an error's traceback keeps alive: buffers with whole videos are among them, for as
    long as somebody keeps the job."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
