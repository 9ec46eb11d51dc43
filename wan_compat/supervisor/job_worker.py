"""The worker of one job: taken from the pool, loaded, and afterwards fit for the next job or gone."""

from __future__ import annotations

import contextlib
import dataclasses
import time

from wan_compat.policies.facts import FileFact
from wan_compat.policies.limits import Deadlines
from wan_compat.policies.models import ModelDecision
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    EncodingFailed,
    JobCancelled,
    ProtocolViolation,
    WanCompatError,
    WorkerSilent,
    WorkerStalled,
)
from wan_compat.protocol.states import WorkerState
from wan_compat.protocol.values import GenerationRequest, Isolation
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor import audit_log
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.admitted_files import check_unchanged
from wan_compat.supervisor.job_context import JobContext
from wan_compat.supervisor.job_watch import JobWatch
from wan_compat.supervisor.restart_guard import key_of
from wan_compat.supervisor.worker import Worker
from wan_compat.supervisor.worker_log import open_log_file
from wan_compat.supervisor.worker_order import WorkerOrder


class JobWorker:
    """Belongs to the run of one job, which has one worker at a time.

    Attributes:
        held: The worker of this attempt; of the one before, while its latents are decoded again.
        fit: It can serve another job.
    """

    def __init__(self, request: GenerationRequest, context: JobContext, watch: JobWatch) -> None:
        self._request, self._context, self._watch = request, context, watch
        self._admitted: tuple[FileFact, ...] = ()
        self.held: Worker | None = None
        self.fit = False

    def acquire(self, order: WorkerOrder, limits: Deadlines, *, wants_bytes: int, wants_vram_bytes: int) -> Worker:
        """Return the worker that is held, or take one from the pool, which waits until there is one.

        Args:
            wants_bytes, wants_vram_bytes: What the job is planned to need.
        """
        if self.held is None:
            with contextlib.ExitStack() as stack:
                log_file = None
                if self._request.worker_log is not None:
                    log_file = stack.enter_context(open_log_file(self._request.worker_log))
                self.held = self._from_pool(order, limits, wants_bytes, wants_vram_bytes)
                stack.pop_all()
            if log_file is not None:
                self.held.log.tee(log_file)
        return self.held

    def load(self, worker: Worker, model: ModelDecision) -> None:
        """Have the model loaded, if it is not."""
        self._admitted = model.admitted
        if worker.loaded() is not None:
            return
        self._watch.enter("load")
        began = time.monotonic()
        worker.send(m.LoadModel(pipeline=model.pipeline))
        while (loaded := worker.loaded()) is None:
            for message in self._watch.pump(worker).messages:
                self._watch.hear(message)
        self._watch.rest()
        self._watch.timings = dataclasses.replace(self._watch.timings, load_s=time.monotonic() - began)
        check_unchanged(model.admitted)
        if not loaded.streaming:
            self._watch.warn(f"the video is decoded as a whole, which needs more memory: {loaded.streaming_reason}")

    def check_files(self) -> None:
        """Compare the model's files once more: what the worker mapped could be written to while it was at work."""
        for path in check_unchanged(self._admitted):
            self._watch.warn(f"{path} was touched during the job: a hard link, a mode, or bytes with the time set back")

    def failed(self, error: WanCompatError | OSError, limits: Deadlines) -> None:
        """An attempt ended with `error`: see whether the worker could do something else now."""
        self.fit = self.held is not None and self._is_fit(self.held, error, limits)

    def release(self) -> None:
        """Give it back: warm if it is fit, to be ended otherwise."""
        if self.held is None:
            return
        worker, self.held = self.held, None
        keep = self.fit and self._request.isolation is Isolation.MODEL
        if keep:
            worker.log.tee(None)
        self._context.pool.release(worker, keep=keep)

    # -- inside --------------------------------------------------------------------------------------------------

    def _from_pool(self, order: WorkerOrder, limits: Deadlines, wants_bytes: int, wants_vram_bytes: int) -> Worker:
        request, context, watch = self._request, self._context, self._watch
        watch.enter("start_worker")
        context.pool.guard.wait_turn(key_of(request), "workers of this model", watch.interrupted, watch.warn)
        began = time.monotonic()
        worker = context.pool.acquire(
            order,
            limits,
            fresh=request.isolation is Isolation.JOB,
            cancelled=watch.interrupted,
            wake_fd=context.wake_fd,
            job=context.job,
            wants_bytes=wants_bytes,
            wants_vram_bytes=wants_vram_bytes,
        )
        watch.rest()
        context.hold(worker.name)
        watch.timings = dataclasses.replace(watch.timings, worker_start_s=time.monotonic() - began)
        assert worker.tier is not None
        context.emit(ev.Started(worker.tier.tier.value, worker.layers))
        if worker.tier.tier is Tier.E:
            watch.warn("NOT SANDBOXED: this model could do to this machine whatever its user can")
        if worker.jobs_started == 0 and (worker.downgraded_because or worker.tier.tier is Tier.E):
            audit_log.note(
                audit_log.AuditEvent.DOWNGRADE,
                model=request.model,
                tier=worker.tier.tier.value,
                reasons=list(worker.downgraded_because),
            )
        for reason in worker.downgraded_because:
            watch.warn(f"running in tier {worker.tier.tier.value}, because {reason}")
        return worker

    def _is_fit(self, worker: Worker, error: WanCompatError | OSError, limits: Deadlines) -> bool:
        if isinstance(error, WorkerSilent | WorkerStalled):
            return False  # it would not hear a Cancel either
        if isinstance(error, JobCancelled | EncodingFailed | DeadlineExceeded | OSError):
            return self._quiet(worker, limits)
        # A failure that the worker reported itself leaves it fit for the next job.
        return worker.alive and worker.state is WorkerState.LOADED and not isinstance(error, ProtocolViolation)

    def _quiet(self, worker: Worker, limits: Deadlines) -> bool:
        """Ask a busy worker to stop; return whether it came to rest and can be kept."""
        if not worker.alive or worker.loaded() is None:
            return False
        with contextlib.suppress(WanCompatError):
            if worker.state is WorkerState.GENERATING:
                worker.send(m.Cancel(job=worker.jobs_started))
            deadline = time.monotonic() + limits.cancel_grace_s
            while worker.state is WorkerState.GENERATING and time.monotonic() < deadline:
                worker.pump(0.1)
                while worker.ring.published > worker.ring.consumed:
                    worker.ring.release()
            worker.ring.end()
            return worker.state is WorkerState.LOADED
        return False
