"""The life of one job, from a request to a verified file. Runs in the supervisor's runner thread.

    inspect -> decide -> ( prepare output -> worker -> load -> generate | encode -> verify -> commit )

Everything that can refuse comes before the worker, everything that costs comes after. Whatever happens, the output is
whole or absent, and the worker is either fit for the next job or gone. What stands in parentheses is an attempt; when
one fails, `attempts.py` says whether there is another one, and in what it differs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from typing import TYPE_CHECKING

from wan_compat.policies.facts import FileFact
from wan_compat.policies.limits import Deadlines, deadlines, memory_limit
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.phases import phase_timeouts
from wan_compat.policies.requests import ResolvedRequest, resolve_request
from wan_compat.policies.tasks import media_of, wish_of
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import (
    CorruptFrame,
    DeadlineExceeded,
    EncodingFailed,
    JobCancelled,
    ProtocolViolation,
    WanCompatError,
)
from wan_compat.protocol.plan import DecodeSpec
from wan_compat.protocol.results import (
    OutputReport,
    ProcessedFrames,
    Timings,
    VideoGenerationResult,
)
from wan_compat.protocol.states import WorkerState
from wan_compat.protocol.values import GenerationRequest, Isolation
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor import audit_log, first_use, provenance
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.admitted_files import check_unchanged
from wan_compat.supervisor.attempts import Attempts, add_advice, wait
from wan_compat.supervisor.frame_sink import FrameSink, FramesInMemory
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.integrity import require_verified
from wan_compat.supervisor.job_context import JobContext, narrower
from wan_compat.supervisor.job_result import Made, compose_result
from wan_compat.supervisor.job_watch import JobWatch
from wan_compat.supervisor.machine import worker_machine
from wan_compat.supervisor.media import copied_media
from wan_compat.supervisor.model_choice import choose_model
from wan_compat.supervisor.model_environment import environment_of
from wan_compat.supervisor.model_parts import parts_of
from wan_compat.supervisor.restart_guard import key_of
from wan_compat.supervisor.worker import Worker, WorkerOrder
from wan_compat.supervisor.worker_log import open_log_file

if TYPE_CHECKING:
    from wan_compat.policies.planning.choice import Choice
    from wan_compat.policies.recovery.steps import Step
    from wan_compat.supervisor.delivery import Delivery
    from wan_compat.supervisor.environments import Environment


class JobRun:
    """One job. `execute` returns the result or raises the error with its code."""

    def __init__(self, request: GenerationRequest, context: JobContext) -> None:
        self._request = request
        self._context = context
        self._watch = JobWatch(request, context)
        self._recovery: list[dict[str, str]] = []
        self._timings = Timings()
        self._admitted: tuple[FileFact, ...] = ()
        self._media: tuple[int, ...] = ()  # descriptors of the pictures and videos, open for the time of the job
        self._worker: Worker | None = None  # of this attempt; of the one before, while its latents are decoded again
        self._fit = False  # the worker can serve another job
        self._weight_bytes = 0
        self._choice: Choice | None = None  # how the model is made to fit; None where no plan is made

    def execute(self) -> VideoGenerationResult:
        """Run the job. Errors tell what was tried, and what a person can do."""
        model: list[ModelDecision] = []
        try:
            return self._execute(model)
        except WanCompatError as error:
            from wan_compat.policies.recovery.advice import Subject

            repository = model[0].repository if model else None
            add_advice(error, Subject(self._request.model, repository, self._request.output is not None))
            raise

    def _execute(self, decided: list[ModelDecision]) -> VideoGenerationResult:
        request, context = self._request, self._context
        host = context.pool.share(read_host())
        requested = narrower(request.memory_limit_bytes, context.policy.memory_limit_bytes)
        limit = memory_limit(requested, host)
        model = choose_model(
            request.model,
            request.mode,
            threads=host.cpu_count,
            memory_limit_bytes=limit,
            restricted=request.restricted,
            wish=wish_of(request),
            parts=parts_of(request),
            recover=request.recover and not context.policy.require_manifest,
        )
        decided.append(model)
        self._tell_mends(model)
        if request.restricted and model.pipeline.restricted is None:
            self._watch.warn("the repository names no code of its own: --restricted changes nothing")
        if context.policy.require_manifest:
            require_verified(request.model, model.admitted)
        environment = environment_of(request.model)
        self._weight_bytes = model.weight_bytes
        self._note_first_use()
        with contextlib.ExitStack() as stack:
            media = stack.enter_context(copied_media(media_of(request)))
            self._media = media.descriptors
            resolved = resolve_request(request, model, seed=secrets.randbelow(1 << 31), media=media.specs)
            from wan_compat.supervisor.job_plan import plan_job  # 10 ms that the import of this module need not pay

            planned = plan_job(request, model, resolved, worker_machine(limit, host=host))
            model, self._choice = planned.model, planned.choice
            limits = deadlines(
                weight_bytes=model.weight_bytes,
                timeout_s=self._watch.timeout_s,
                frames=resolved.params.frames,
                num_media=len(media.specs),
                asked=phase_timeouts(request.phase_timeouts, context.policy.phase_timeouts),
            )
            self._watch.keep_to(limits)
            gpu_limit = narrower(request.gpu_memory_limit_bytes, context.policy.gpu_memory_limit_bytes)
            site = environment.site if environment is not None else None
            attempts = Attempts(request, resolved.params.frames, context.emit, self._recovery)
            step: Step | None = None
            try:
                while True:
                    order = context.pool.order(
                        context.policy, request.mode, model, requested, limit, gpu_limit, site, request.model
                    )
                    try:
                        return self._attempt(order, model, resolved, limits, environment, step, attempts)
                    except (WanCompatError, OSError) as error:
                        self._watch.rest()
                        self._fit = self._worker is not None and self._is_fit(self._worker, error, limits)
                        if isinstance(error, WanCompatError):
                            context.pool.guard.failed(key_of(request), error)
                        if isinstance(error, OSError):
                            raise
                        step = attempts.after(
                            error,
                            self._watch.failed_in(),
                            model.pipeline,
                            latents=self._fit and self._has_latents(model),
                        )
                    if step.kind != "decode":
                        self._fit = False
                        self._release()
                        model = dataclasses.replace(model, pipeline=step.pipeline)
                    if wait(step.delay_s, self._watch.interrupted):
                        raise JobCancelled("cancelled before another attempt")
            finally:
                self._release()

    def _attempt(
        self,
        order: WorkerOrder,
        model: ModelDecision,
        resolved: ResolvedRequest,
        limits: Deadlines,
        environment: Environment | None,
        step: Step | None,
        attempts: Attempts,
    ) -> VideoGenerationResult:
        """One attempt, with an output of its own. The worker stays in `self._worker`, however this ends."""
        self._fit = False
        with contextlib.ExitStack() as stack:
            delivery = self._prepare_output(stack, resolved)
            worker = self._worker = self._worker or self._acquire_with_log(order, limits)
            with worker.noting_violations():
                self._load(worker, model)
                decoding = step.decoding if step is not None else None
                frames: ProcessedFrames | None = None
                output: OutputReport | None = None
                if not self._request.load_only:
                    frames, output = self._generate(worker, model, resolved, limits, delivery, decoding)
            self._fit = True
            attempts.succeeded()
            self._context.pool.guard.succeeded(key_of(self._request))
            total_s = time.monotonic() - self._watch.started
            self._timings = dataclasses.replace(self._timings, total_s=total_s)
            result = compose_result(
                Made(
                    request=self._request,
                    model=model,
                    resolved=resolved,
                    environment=environment,
                    choice=self._choice,
                    generated=self._watch.generated[0] if self._watch.generated else None,
                    frames=frames,
                    output=output,
                    timings=self._timings,
                    warnings=self._watch.warnings,
                    recovery=self._recovery,
                ),
                worker,
            )
            if delivery is not None and output is not None:
                delivery.write_sidecar(provenance.document(self._request, model, resolved, result), output)
            return result

    def _is_fit(self, worker: Worker, error: WanCompatError | OSError, limits: Deadlines) -> bool:
        """Whether the worker could do something else now."""
        if isinstance(error, JobCancelled | EncodingFailed | DeadlineExceeded | OSError):
            return self._quiet(worker, limits)
        # A failure that the worker reported itself leaves it fit for the next job.
        return worker.alive and worker.state is WorkerState.LOADED and not isinstance(error, ProtocolViolation)

    def _has_latents(self, model: ModelDecision) -> bool:
        """Whether a worker that failed now has what it denoised: it does not for pipelines that decode in segments,
        and for code of the repository, which decodes as it likes."""
        own = model.pipeline.code is not None or model.pipeline.restricted is not None
        return self._watch.failed_in() in ("decode", "encode") and not own and model.pipeline.frames == "vae"

    def _release(self) -> None:
        if self._worker is None:
            return
        worker, self._worker = self._worker, None
        keep = self._fit and self._request.isolation is Isolation.MODEL
        if keep:
            worker.log.tee(None)
        self._context.pool.release(worker, keep=keep)

    def _note_first_use(self) -> None:
        """Record it; that opens no door and closes none, so that a record which cannot be made stops nothing."""
        try:
            first_use.remember(self._request.model, self._request.mode, confirmed=False)
        except (WanCompatError, OSError) as error:
            self._watch.warn(f"the first use of this model could not be recorded: {error}")

    def _tell_mends(self, model: ModelDecision) -> None:
        """What was broken in the model's files and is helped: told like every other recovery, and as a warning."""
        for mend in model.mends:
            self._context.emit(ev.Recovering(mend.error, mend.action))
            entry = {"error": mend.error, "action": mend.action, "outcome": "succeeded"}
            self._recovery.append(entry)
            self._context.emit(ev.Recovered(**entry))
            self._watch.warn(f"{mend.error}; {mend.action}")

    # -- steps ---------------------------------------------------------------------------------------------------

    def _prepare_output(self, stack: contextlib.ExitStack, resolved: ResolvedRequest) -> Delivery | None:
        if self._request.output is None or self._request.load_only:
            return None
        from wan_compat.supervisor.delivery import prepare_delivery

        delivery = stack.enter_context(
            prepare_delivery(
                self._request.output,
                resolved.params.frames,
                resolved.fps,
                self._request,
                overwrite=self._request.overwrite,
            )
        )
        stack.enter_context(self._context.pool.leftover(delivery.part_path))
        delivery.note_spill = lambda path: stack.enter_context(self._context.pool.leftover(path))
        delivery.check_stop = self._watch.check_stop
        self._watch.preview = delivery.show_latents
        delivery.announce_preview = lambda path, index: self._context.emit(ev.Preview(path, index))
        return delivery

    def _acquire_with_log(self, order: WorkerOrder, limits: Deadlines) -> Worker:
        if self._request.worker_log is None:
            return self._acquire(order, limits)
        with contextlib.ExitStack() as stack:
            log_file = stack.enter_context(open_log_file(self._request.worker_log))
            worker = self._acquire(order, limits)
            stack.pop_all()
        worker.log.tee(log_file)
        return worker

    def _acquire(self, order: WorkerOrder, limits: Deadlines) -> Worker:
        self._watch.enter("start_worker")
        self._context.pool.guard.wait_turn(
            key_of(self._request), "workers of this model", self._watch.interrupted, self._watch.warn
        )
        began = time.monotonic()
        worker = self._context.pool.acquire(
            order,
            limits,
            fresh=self._request.isolation is Isolation.JOB,
            cancelled=self._watch.interrupted,
            wake_fd=self._context.wake_fd,
            job=self._context.job,
            wants_bytes=self._choice.chosen.ram_bytes if self._choice is not None else self._weight_bytes,
        )
        self._watch.rest()
        self._context.hold(worker.name)
        self._timings = dataclasses.replace(self._timings, worker_start_s=time.monotonic() - began)
        assert worker.tier is not None
        self._context.emit(ev.Started(worker.tier.tier.value, worker.layers))
        if worker.tier.tier is Tier.E:
            self._watch.warn("NOT SANDBOXED: this model could do to this machine whatever its user can")
        if worker.jobs_started == 0 and (worker.downgraded_because or worker.tier.tier is Tier.E):
            audit_log.note(
                audit_log.AuditEvent.DOWNGRADE,
                model=self._request.model,
                tier=worker.tier.tier.value,
                reasons=list(worker.downgraded_because),
            )
        for reason in worker.downgraded_because:
            self._watch.warn(f"running in tier {worker.tier.tier.value}, because {reason}")
        return worker

    def _load(self, worker: Worker, model: ModelDecision) -> None:
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
        self._timings = dataclasses.replace(self._timings, load_s=time.monotonic() - began)
        check_unchanged(model.admitted)
        if not loaded.streaming:
            self._watch.warn(f"the video is decoded as a whole, which needs more memory: {loaded.streaming_reason}")

    def _generate(
        self,
        worker: Worker,
        model: ModelDecision,
        resolved: ResolvedRequest,
        limits: Deadlines,
        delivery: Delivery | None,
        decoding: DecodeSpec | None,
    ) -> tuple[ProcessedFrames | None, OutputReport | None]:
        spec = resolved.params.frames
        if delivery is None:
            sink = FramesInMemory(spec.frame_bytes * spec.num_frames)
            self._stream(worker, resolved, limits, sink, decoding)
            self._check_files()
            return sink.frames(resolved), None
        delivery.start(provenance.label(self._request, model, resolved))
        told = len(delivery.warnings)
        for warning in delivery.warnings:
            self._watch.warn(warning)
        first = self._stream(worker, resolved, limits, delivery, decoding)
        self._watch.enter("encode")
        delivery.finish(limits.encode_tail_s)
        self._watch.rest()
        for warning in delivery.warnings[told:]:
            self._watch.warn(warning)
        self._check_files()
        output = delivery.commit()
        self._timings = dataclasses.replace(self._timings, encode_s=time.monotonic() - first)
        self._recovery += delivery.recovery
        self._context.emit(ev.Encoded(output.path))
        return None, output

    def _check_files(self) -> None:
        """Compare the model's files once more: what the worker mapped could be written to while it was at work."""
        for path in check_unchanged(self._admitted):
            self._watch.warn(f"{path} was touched during the job: a hard link, a mode, or bytes with the time set back")

    def _stream(
        self,
        worker: Worker,
        resolved: ResolvedRequest,
        limits: Deadlines,
        sink: FrameSink,
        decoding: DecodeSpec | None = None,
    ) -> float:
        """Generate, and move each frame from the ring to the sink as it comes; return the first frame's moment.

        With `decoding`, the latents of the attempt before are decoded again, and nothing is denoised.
        """
        spec = resolved.params.frames
        worker.jobs_started += 1
        job = worker.jobs_started
        ring = worker.ring
        ring.begin(job, spec)
        self._watch.generated.clear()
        began = time.monotonic()
        first: float | None = None
        offset = 0
        if decoding is None:
            self._watch.denoised = False
            self._watch.enter("text_encode")
            ring.send_media(job, self._media)
            worker.send(
                m.Generate(
                    job=job,
                    params=resolved.params,
                    count_memory=self._request.count_memory,
                    preview_latents=self._request.preview_latents,
                )
            )
        else:
            self._watch.enter("decode")
            worker.send(m.DecodeAgain(job=job, frames=spec, decoding=decoding))
        while not (self._watch.generated and ring.complete):
            waiting = ring.published > ring.consumed
            write = [sink.fileno()] if waiting and sink.fileno() >= 0 else []
            heard = self._watch.pump(worker, write)
            for message in heard.messages:
                self._watch.hear(message)
            sink.raise_if_ended()
            while ring.published > ring.consumed:
                with ring.front() as frame, frame[offset:] as rest:
                    taken = sink.write_some(rest)
                if taken == 0:
                    break
                offset += taken
                if offset == spec.frame_bytes:
                    offset = 0
                    if first is None:
                        first = time.monotonic()
                        self._context.emit(ev.FirstFrame(first - began))
                    ring.release()
                    ring.collect()
            if self._watch.generated and ring.published < spec.num_frames:
                raise CorruptFrame(f"the worker finished after {ring.published} of {spec.num_frames} frames")
            if ring.published == ring.consumed:
                sink.idle()
        ring.end()
        self._watch.rest()
        for note in self._watch.generated[0].notes:
            self._watch.warn(note)
        assert first is not None
        self._timings = dataclasses.replace(
            self._timings,
            text_encode_s=self._watch.generated[0].text_encode_s,
            denoise_s=self._watch.generated[0].denoise_s,
            decode_s=self._watch.generated[0].decode_s,
            first_frame_s=first - began,
        )
        return first

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
