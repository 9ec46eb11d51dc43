"""The life of one job, from a request to a verified file. Runs in the supervisor's runner thread.

    inspect -> decide -> ( prepare output -> worker -> load -> generate | encode -> verify -> commit )

Everything that can refuse comes before the worker, everything that costs comes after. Whatever happens, the output is
whole or absent, and the worker is either fit for the next job or gone. What stands in parentheses is an attempt; when
one fails, `attempts.py` says whether there is another one, and in what it differs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from wan_compat._version import __version__
from wan_compat.policies.facts import FileFact
from wan_compat.policies.limits import Deadlines, deadlines, memory_limit
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.pace import Pace
from wan_compat.policies.policy import Policy
from wan_compat.policies.requests import ResolvedRequest, resolve_request
from wan_compat.policies.tasks import media_of, wish_of
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import (
    CorruptFrame,
    DeadlineExceeded,
    EncodingFailed,
    GenerationFailed,
    JobCancelled,
    JobTimeout,
    ProtocolViolation,
    WanCompatError,
    from_worker,
)
from wan_compat.protocol.plan import DecodeSpec
from wan_compat.protocol.results import (
    GenerationMetadata,
    OutputReport,
    ProcessedFrames,
    SandboxReport,
    Timings,
    VideoGenerationResult,
)
from wan_compat.protocol.states import WorkerState
from wan_compat.protocol.values import MAX_STEPS, GenerationRequest, Isolation
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor import audit_log, first_use, provenance
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.admitted_files import check_unchanged
from wan_compat.supervisor.attempts import Attempts, add_advice, wait
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.integrity import require_verified
from wan_compat.supervisor.machine import worker_machine
from wan_compat.supervisor.media import copied_media
from wan_compat.supervisor.model_choice import choose_model, code_report
from wan_compat.supervisor.model_environment import environment_of
from wan_compat.supervisor.model_parts import changes_of, parts_of
from wan_compat.supervisor.worker import Heard, Worker, WorkerOrder
from wan_compat.supervisor.worker_log import open_log_file
from wan_compat.supervisor.worker_pool import WorkerPool

if TYPE_CHECKING:
    from wan_compat.policies.planning.choice import Choice
    from wan_compat.policies.recovery.steps import Step
    from wan_compat.supervisor.delivery import Delivery
    from wan_compat.supervisor.environments import Environment


COUNTED_PHASES = ("text_encode", "denoise_high", "denoise_low", "decode")


@dataclasses.dataclass(frozen=True)
class JobContext:
    """What the runner gives to a run: where events go, how cancellation shows, and the pool."""

    pool: WorkerPool
    emit: Callable[[ev.Event], None]
    cancelled: Callable[[], bool]
    wake_fd: int
    policy: Policy
    job: str | None = None
    hold: Callable[[str], None] = lambda worker: None  # hears which worker does the job


class FrameSink(Protocol):
    """Takes the frames of a job in order."""

    def write_some(self, view: memoryview) -> int:
        """Take as many bytes as possible without blocking; 0 when full."""

    def fileno(self) -> int:
        """Descriptor to poll for writing, -1 when there is nothing to wait for."""

    def raise_if_ended(self) -> None:
        """Raise the error that ended the sink before its time."""

    def idle(self) -> None:
        """Learn that no frame is waiting, so that the time until the next one is not the sink's."""


class FramesInMemory:
    """Collects frames into one buffer, for `output=None`."""

    def __init__(self, size: int) -> None:
        self._buffer = bytearray(size)
        self._filled = 0

    def write_some(self, view: memoryview) -> int:
        self._buffer[self._filled : self._filled + len(view)] = view
        self._filled += len(view)
        return len(view)

    def fileno(self) -> int:
        return -1

    def raise_if_ended(self) -> None:
        """Memory does not end."""

    def idle(self) -> None:
        """Memory is never late."""

    def frames(self, resolved: ResolvedRequest) -> ProcessedFrames:
        import numpy as np

        spec = resolved.params.frames
        pixels = np.frombuffer(self._buffer, dtype=np.uint8).reshape(spec.num_frames, spec.height, spec.width, 3)
        return ProcessedFrames(frames=pixels, fps=resolved.fps, duration=spec.num_frames / resolved.fps)


class JobRun:
    """One job. `execute` returns the result or raises the error with its code."""

    def __init__(self, request: GenerationRequest, context: JobContext) -> None:
        self._request = request
        self._context = context
        self._started = time.monotonic()
        self._phase = "prepare"
        self._pace = Pace()
        self._preview: Callable[[int, bytes, int, int], str | None] | None = None  # writes into the preview folder
        self._timeout_s = _narrower(request.timeout_s, context.policy.timeout_s)
        self._warnings: list[str] = []
        self._recovery: list[dict[str, str]] = []
        self._timings = Timings()
        # In a list, because a type checker takes an attribute set to None for None until the end of the function.
        self._generated: list[m.Generated] = []
        self._admitted: tuple[FileFact, ...] = ()
        self._media: tuple[int, ...] = ()  # descriptors of the pictures and videos, open for the time of the job
        self._worker: Worker | None = None  # of this attempt; of the one before, while its latents are decoded again
        self._fit = False  # the worker can serve another job
        self._denoised = False
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
        requested = _narrower(request.memory_limit_bytes, context.policy.memory_limit_bytes)
        limit = memory_limit(requested, host)
        model = choose_model(
            request.model,
            request.mode,
            threads=host.cpu_count,
            memory_limit_bytes=limit,
            restricted=request.restricted,
            wish=wish_of(request),
            parts=parts_of(request),
        )
        decided.append(model)
        if request.restricted and model.pipeline.restricted is None:
            self._warn("the repository names no code of its own: --restricted changes nothing")
        if context.policy.require_manifest:
            require_verified(request.model, model.admitted)
        environment = environment_of(request.model)
        limits = deadlines(weight_bytes=model.weight_bytes, timeout_s=self._timeout_s)
        self._note_first_use()
        with contextlib.ExitStack() as stack:
            media = stack.enter_context(copied_media(media_of(request)))
            self._media = media.descriptors
            resolved = resolve_request(request, model, seed=secrets.randbelow(1 << 31), media=media.specs)
            from wan_compat.supervisor.job_plan import plan_job  # 10 ms that the import of this module need not pay

            planned = plan_job(request, model, resolved, worker_machine(limit, host=host))
            model, self._choice = planned.model, planned.choice
            gpu_limit = _narrower(request.gpu_memory_limit_bytes, context.policy.gpu_memory_limit_bytes)
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
                        self._fit = self._worker is not None and self._is_fit(self._worker, error, limits)
                        if isinstance(error, OSError):
                            raise
                        step = attempts.after(
                            error, self._failed_in(), model.pipeline, latents=self._fit and self._has_latents(model)
                        )
                    if step.kind != "decode":
                        self._fit = False
                        self._release()
                        model = dataclasses.replace(model, pipeline=step.pipeline)
                    if wait(step.delay_s, self._interrupted):
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
                self._load(worker, model, limits)
                decoding = step.decoding if step is not None else None
                frames: ProcessedFrames | None = None
                output: OutputReport | None = None
                if not self._request.load_only:
                    frames, output = self._generate(worker, model, resolved, limits, delivery, decoding)
            self._fit = True
            attempts.succeeded()
            result = self._result(worker, model, resolved, frames, output, environment)
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
        return self._failed_in() in ("decode", "encode") and not own and model.pipeline.frames == "vae"

    def _failed_in(self) -> str:
        """The phase of a failure. Nothing tells that decoding began before its first frame is there."""
        return "decode" if self._phase == "denoise" and self._denoised else self._phase

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
            self._warn(f"the first use of this model could not be recorded: {error}")

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
        delivery.check_stop = self._check_stop
        self._preview = delivery.show_latents
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
        self._enter("start_worker")
        began = time.monotonic()
        worker = self._context.pool.acquire(
            order,
            limits,
            fresh=self._request.isolation is Isolation.JOB,
            cancelled=self._interrupted,
            wake_fd=self._context.wake_fd,
            job=self._context.job,
        )
        self._context.hold(worker.name)
        self._timings = dataclasses.replace(self._timings, worker_start_s=time.monotonic() - began)
        assert worker.tier is not None
        self._context.emit(ev.Started(worker.tier.tier.value, worker.layers))
        if worker.tier.tier is Tier.E:
            self._warn("NOT SANDBOXED: this model could do to this machine whatever its user can")
        if worker.jobs_started == 0 and (worker.downgraded_because or worker.tier.tier is Tier.E):
            audit_log.note(
                audit_log.AuditEvent.DOWNGRADE,
                model=self._request.model,
                tier=worker.tier.tier.value,
                reasons=list(worker.downgraded_because),
            )
        for reason in worker.downgraded_because:
            self._warn(f"running in tier {worker.tier.tier.value}, because {reason}")
        return worker

    def _load(self, worker: Worker, model: ModelDecision, limits: Deadlines) -> None:
        self._admitted = model.admitted
        if worker.loaded() is not None:
            return
        self._enter("load")
        began = time.monotonic()
        worker.send(m.LoadModel(pipeline=model.pipeline))
        while (loaded := worker.loaded()) is None:
            for message in self._pump(worker, limits, began + limits.load_s).messages:
                self._hear(message)
        self._timings = dataclasses.replace(self._timings, load_s=time.monotonic() - began)
        check_unchanged(model.admitted)
        if not loaded.streaming:
            self._warn(f"the video is decoded as a whole, which needs more memory: {loaded.streaming_reason}")

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
            self._warn(warning)
        first = self._stream(worker, resolved, limits, delivery, decoding)
        self._enter("encode")
        delivery.finish(limits.encode_tail_s)
        for warning in delivery.warnings[told:]:
            self._warn(warning)
        self._check_files()
        output = delivery.commit()
        self._timings = dataclasses.replace(self._timings, encode_s=time.monotonic() - first)
        self._recovery += delivery.recovery
        self._context.emit(ev.Encoded(output.path))
        return None, output

    def _check_files(self) -> None:
        """Compare the model's files once more: what the worker mapped could be written to while it was at work."""
        for path in check_unchanged(self._admitted):
            self._warn(f"{path} was touched during the job: a hard link, a mode, or bytes with the time set back")

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
        self._generated.clear()
        began = time.monotonic()
        first: float | None = None
        offset = 0
        if decoding is None:
            self._denoised = False
            self._enter("text_encode")
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
            self._enter("decode")
            worker.send(m.DecodeAgain(job=job, frames=spec, decoding=decoding))
        while not (self._generated and ring.complete):
            waiting = ring.published > ring.consumed
            write = [sink.fileno()] if waiting and sink.fileno() >= 0 else []
            heard = self._pump(worker, limits, began + limits.generate_s, write=write)
            for message in heard.messages:
                self._hear(message)
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
            if self._generated and ring.published < spec.num_frames:
                raise CorruptFrame(f"the worker finished after {ring.published} of {spec.num_frames} frames")
            if ring.published == ring.consumed:
                sink.idle()
        ring.end()
        for note in self._generated[0].notes:
            self._warn(note)
        assert first is not None
        self._timings = dataclasses.replace(
            self._timings,
            text_encode_s=self._generated[0].text_encode_s,
            denoise_s=self._generated[0].denoise_s,
            decode_s=self._generated[0].decode_s,
            first_frame_s=first - began,
        )
        return first

    def _result(
        self,
        worker: Worker,
        model: ModelDecision,
        resolved: ResolvedRequest,
        frames: ProcessedFrames | None,
        output: OutputReport | None,
        environment: Environment | None,
    ) -> VideoGenerationResult:
        from wan_compat.policies.planning.contract import plan_of

        loaded = worker.loaded()
        assert worker.tier is not None and loaded is not None
        total = time.monotonic() - self._started
        self._timings = dataclasses.replace(self._timings, total_s=total)
        params = resolved.params
        peak = worker.peak_bytes()
        generated = self._generated[0] if self._generated else None  # None: it was loaded only
        decoding = "streaming" if loaded.streaming else "whole"
        dtypes = sorted({component.dtype for component in model.pipeline.components if component.dtype})
        return VideoGenerationResult(
            success=True,
            output_path=output.path if output else None,
            frames=frames,
            generation_time=total,
            memory_used=peak,
            metadata=GenerationMetadata(
                model_path=self._request.model,
                pipeline_class=model.pipeline.pipeline_class,
                optimizations_applied=[
                    *dtypes,
                    f"conv3d:{model.pipeline.conv3d}",
                    f"decode:{decoding}",
                    *loaded.applied,
                    *(generated.applied if generated is not None else ()),
                    *changes_of(model),
                ],
                generation_params=params.model_dump(exclude={"frames"})
                | params.frames.model_dump()
                | {"fps": resolved.fps},
                system_info={
                    "wan_compat": __version__,
                    "python": platform.python_version(),
                    "machine": platform.machine(),
                    "kernel": platform.release(),
                    **({"environment": environment.id} if environment is not None else {}),
                    **worker.versions,
                },
                repository=model.repository,
                revision=model.revision,
                # The plan that was chosen, with what recovery made of it.
                plan=None
                if self._choice is None
                else plan_of(self._choice).to_json() | model.pipeline.plan.model_dump(mode="json"),
            ),
            errors=[],
            warnings=list(self._warnings),
            timings=self._timings,
            sandbox=SandboxReport(
                tier=worker.tier.tier.value,
                layers=list(worker.layers),
                memory_limit_bytes=worker.order.memory_limit_bytes,
                self_test=dict(worker.self_test),
                outer=worker.outer_by,
            ),
            peak={
                "worker_rss_bytes": peak,
                "worker_after_bytes": worker.used_bytes(),
                "vram_bytes": generated.peak_vram_bytes if generated is not None else None,
                **_counted(generated),
            },
            recovery=list(self._recovery),
            output=output,
            code=code_report(self._request.mode, model),
            loras=list(model.loras),
        )

    # -- waiting -------------------------------------------------------------------------------------------------

    def _pump(self, worker: Worker, limits: Deadlines, until: float, write: list[int] | None = None) -> Heard:
        """Wait for the worker for a moment, under the deadlines of the phase and of the job."""
        heard = worker.pump(0.5, limits.silence_s, read=[self._context.wake_fd], write=write or [])
        self._check_stop()
        if (stalled := self._pace.stalled_s(time.monotonic())) is not None:
            raise DeadlineExceeded(
                f"a step of {self._phase} has not ended after {stalled:.0f} s, far longer than those before it",
                hint="see whether the machine swaps or something else takes it, and try again",
            )
        if time.monotonic() > until:
            raise DeadlineExceeded(
                f"{self._phase} took longer than allowed", hint="allow more with --timeout, or ask for fewer frames"
            )
        return heard

    def _interrupted(self) -> bool:
        """Return whether the job was cancelled; raise JobTimeout when its whole time is over."""
        total = self._timeout_s
        if total is not None and time.monotonic() - self._started > total:
            raise JobTimeout(
                f"the job took longer than {total:g} s (during {self._phase})",
                hint="allow more with --timeout, or ask for fewer frames or steps",
            )
        return self._context.cancelled()

    def _check_stop(self) -> None:
        """Raise what ends the job; for where something else than the worker is waited for."""
        if self._interrupted():
            raise JobCancelled(f"cancelled during {self._phase}")

    def _hear(self, message: object) -> None:
        if isinstance(message, m.Progress):
            self._denoised = self._denoised or (message.phase == "denoise" and message.step == message.total)
            if message.phase != self._phase:
                self._enter(message.phase)
            pace = self._pace.progress(message.phase, message.step, message.total, time.monotonic())
            self._context.emit(
                ev.Progress(message.phase, message.step, message.total, pace.rate_s, pace.eta_s, message.timestep)
            )
            if message.picture is not None and self._request.preview_latents and message.phase == "denoise":
                self._show_latents(message.step, message.picture)
        elif isinstance(message, m.Failed):
            raise from_worker(message.code, message.message, message.fixes, message.component)
        elif isinstance(message, m.Generated):
            self._generated.append(message)
        elif isinstance(message, m.Cancelled):
            raise GenerationFailed("the worker stopped by itself")

    def _show_latents(self, step: int, picture: m.Picture) -> None:
        import base64

        pixels = base64.b64decode(picture.pixels)
        # Padding can say otherwise than the length did; and no job has more steps, whatever its worker counts.
        if len(pixels) != picture.width * picture.height * 3 or step > MAX_STEPS:
            return
        path = self._preview(step, pixels, picture.width, picture.height) if self._preview is not None else None
        self._context.emit(ev.LatentPreview(step, picture.width, picture.height, pixels, path))

    def _warn(self, message: str) -> None:
        if message in self._warnings:  # by an earlier attempt
            return
        self._warnings.append(message)
        self._context.emit(ev.Warned(message))

    def _enter(self, phase: ev.PhaseName) -> None:
        self._phase = phase
        self._pace.start(phase, time.monotonic())
        self._context.emit(ev.PhaseStarted(phase))

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


def _counted(generated: m.Generated | None) -> dict[str, int]:
    """Return the most bytes of tensors in each phase, where they were counted; of the phases that there are, since a
    worker may name others."""
    found = generated.peak_allocated_bytes if generated is not None else {}
    return {f"{phase}_bytes": found[phase] for phase in COUNTED_PHASES if phase in found}


N = TypeVar("N", int, float)


def _narrower(first: N | None, second: N | None) -> N | None:
    present = [value for value in (first, second) if value is not None]
    return min(present) if present else None
