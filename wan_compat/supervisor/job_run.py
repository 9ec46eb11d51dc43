"""The life of one job, from a request to a verified file. Runs in the supervisor's runner thread.

    inspect -> decide -> [ ( reserve output -> worker -> load -> generate | encode -> verify -> commit ) ]

Everything that can refuse comes before the worker, everything that costs comes after. Whatever happens, the output is
whole or absent, and the worker is either fit for the next job or gone. What stands in parentheses is an attempt; when
one fails, `attempts.py` says whether there is another one, and in what it differs. What stands in brackets is a round:
one video, or those that are made at once; a job of several videos has several rounds, with one worker. What stands when
something fails is kept, and no attempt makes it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wan_compat.policies.facts import FileFact
from wan_compat.policies.gpus import GpuChoice
from wan_compat.policies.limits import Deadlines, deadlines, memory_limit
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.phases import phase_timeouts
from wan_compat.policies.requests import ResolvedRequest, resolve_request
from wan_compat.policies.tasks import media_of, wish_of
from wan_compat.policies.videos import Round, params_of, resolved_of, rounds
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import (
    CorruptFrame,
    DeadlineExceeded,
    EncodingFailed,
    GpuUnusable,
    JobCancelled,
    ModelCorrupt,
    ProtocolViolation,
    WanCompatError,
    WorkerSilent,
    WorkerStalled,
)
from wan_compat.protocol.plan import DecodeSpec
from wan_compat.protocol.results import Timings, VideoGenerationResult
from wan_compat.protocol.states import WorkerState
from wan_compat.protocol.values import GenerationRequest, Isolation, PipelineSpec
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor import audit_log, first_use, provenance
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.admitted_files import check_unchanged
from wan_compat.supervisor.attempts import Attempts, add_advice, wait
from wan_compat.supervisor.finished_videos import FinishedVideos
from wan_compat.supervisor.gpus import gpu_for
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.integrity import require_verified
from wan_compat.supervisor.job_context import JobContext, narrower
from wan_compat.supervisor.job_result import Made
from wan_compat.supervisor.job_watch import JobWatch
from wan_compat.supervisor.machine import worker_machine
from wan_compat.supervisor.media import copied_media
from wan_compat.supervisor.model_choice import choose_model
from wan_compat.supervisor.model_environment import environment_of
from wan_compat.supervisor.model_parts import parts_of
from wan_compat.supervisor.restart_guard import key_of
from wan_compat.supervisor.round_output import RoundOutput, TakenVideo, check_places
from wan_compat.supervisor.worker import Worker
from wan_compat.supervisor.worker_log import open_log_file
from wan_compat.supervisor.worker_order import WorkerOrder

if TYPE_CHECKING:
    from wan_compat.policies.planning.choice import Choice
    from wan_compat.policies.recovery.steps import Step
    from wan_compat.supervisor.environments import Environment


@dataclasses.dataclass(frozen=True)
class _Ready:
    """What stays the same in all rounds and attempts of a job. `order`: what a worker is started for, by its model."""

    resolved: ResolvedRequest
    limits: Deadlines
    environment: Environment | None
    order: Callable[[ModelDecision], WorkerOrder]


class JobRun:
    """One job. `execute` returns the result or raises the error with its code."""

    def __init__(self, request: GenerationRequest, context: JobContext) -> None:
        self._request = request
        self._context = context
        self._watch = JobWatch(request, context)
        self._mended: list[dict[str, str]] = []  # of files and calls, once for all videos
        self._recovery: list[dict[str, str]] = []  # of the video that is being made
        self._timings = Timings()
        self._admitted: tuple[FileFact, ...] = ()
        self._media: tuple[int, ...] = ()  # descriptors of the pictures and videos, open for the time of the job
        self._worker: Worker | None = None  # of this attempt; of the one before, while its latents are decoded again
        self._fit = False  # the worker can serve another job
        self._weight_bytes = 0
        self._on_cpu: PipelineSpec | None = None  # how it would be run should the GPU turn out to be unusable
        self._choice: Choice | None = None  # how the model is made to fit; None where no plan is made
        self._longest_first_step: Callable[[PipelineSpec], float] | None = None
        self._denoised = Round(0, 1)  # the videos whose latents the worker has
        self._finished = FinishedVideos(request, self._watch.started, self._watch.tell)

    def execute(self) -> VideoGenerationResult:
        """Run the job. Errors tell what was tried, and what a person can do."""
        model: list[ModelDecision] = []
        try:
            try:
                return self._execute(model)
            except ModelCorrupt as error:
                if self._watch.failed_in() != "load" or not self._recovers or self._finished.results:
                    raise
                return self._execute(model, error)
        except WanCompatError as error:
            from wan_compat.policies.recovery.advice import Subject

            repository = model[0].repository if model else None
            add_advice(error, Subject(self._request.model, repository, self._request.output is not None))
            raise

    @property
    def _recovers(self) -> bool:
        """Whether the model's files may be helped: not where each of them is to be verified."""
        return self._request.recover and not self._context.policy.require_manifest

    def _execute(self, decided: list[ModelDecision], failed: ModelCorrupt | None = None) -> VideoGenerationResult:
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
            recover=self._recovers,
            failed=failed,
        )
        decided.append(model)
        self._tell_mends(model)
        if request.restricted and model.pipeline.restricted is None:
            self._watch.warn("the repository names no code of its own: --restricted changes nothing")
        if context.policy.require_manifest:
            # Minutes for a large model, the first time.
            require_verified(request.model, model.admitted, progress=lambda *_: self._watch.check_stop())
        environment = environment_of(request.model)
        self._warn_of_newer(model, environment)
        self._weight_bytes = model.weight_bytes
        self._note_first_use()
        with contextlib.ExitStack() as stack:
            media = stack.enter_context(copied_media(media_of(request)))
            self._media = media.descriptors
            resolved = resolve_request(request, model, seed=secrets.randbelow(1 << 31), media=media.specs)
            # 10 ms that the import of this module need not pay.
            from wan_compat.supervisor.job_plan import longest_first_step, plan_job, plan_without_gpu

            gpu_limit = narrower(request.gpu_memory_limit_bytes, context.policy.gpu_memory_limit_bytes)
            found = self._find_gpu()
            machine = worker_machine(limit, host=host, gpu=found.gpu, vram_limit_bytes=gpu_limit)
            planned = plan_job(request, model, resolved, machine)
            if planned.model.pipeline.device != "cpu" and request.device == "auto":
                self._on_cpu = plan_without_gpu(request, model, resolved, machine)
            model, self._choice = planned.model, planned.choice
            self._longest_first_step = longest_first_step(request, model, resolved)
            limits = deadlines(
                weight_bytes=model.weight_bytes,
                timeout_s=self._watch.timeout_s,
                frames=resolved.params.frames,
                num_media=len(media.specs),
                at_once=min(request.num_videos, request.videos_at_once),
                asked=phase_timeouts(request.phase_timeouts, context.policy.phase_timeouts),
            )
            self._watch.keep_to(limits)
            site = environment.site if environment is not None else None
            ready = _Ready(
                resolved,
                limits,
                environment,
                lambda model: context.pool.order(
                    context.policy, request.mode, model, requested, limit, gpu_limit, site, request.model
                ),
            )
            check_places(request, resolved)
            try:
                for wanted in rounds(1 if request.load_only else request.num_videos, request.videos_at_once):
                    model = self._round(wanted, model, ready)
            except WanCompatError as error:
                self._finished.tell(error, resolved)
                raise
            finally:
                self._release()
            return self._finished.result()

    def _round(self, wanted: Round, model: ModelDecision, ready: _Ready) -> ModelDecision:
        """Make the videos of one round, in as many attempts as it takes; return the model as it was loaded at last."""
        request, context = self._request, self._context
        attempts = Attempts(
            request, ready.resolved.params.frames, self._emit_of_video, self._recovery, on_cpu=self._on_cpu
        )
        step: Step | None = None
        while True:
            try:
                self._attempt(wanted, model, ready, step, attempts)
                self._recovery = [*self._mended]
                return model
            except (WanCompatError, OSError) as error:
                self._watch.rest()
                if isinstance(error, GpuUnusable) and self._on_cpu is not None:
                    context.pool.gpu_failed = error.message
                self._fit = self._worker is not None and self._is_fit(self._worker, error, ready.limits)
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
            wanted = wanted.after(len(self._finished.results) - wanted.first)
            if step.kind != "decode":
                self._fit = False
                self._release()
                model = dataclasses.replace(model, pipeline=step.pipeline)
            if wait(step.delay_s, self._watch.interrupted):
                raise JobCancelled("cancelled before another attempt")

    def _attempt(
        self,
        wanted: Round,
        model: ModelDecision,
        ready: _Ready,
        step: Step | None,
        attempts: Attempts,
    ) -> None:
        """One attempt, with outputs of its own. The worker stays in `self._worker`, however this ends; results of the
        videos that stand are kept, even if others fail."""
        self._fit = False
        request, resolved = self._request, ready.resolved
        self._watch.video = wanted.first

        def label(number: int) -> str:
            return provenance.label(request, model, resolved_of(resolved, number, self._denoised))

        with RoundOutput(request, resolved, wanted, self._watch, self._context, label) as outputs:
            worker = self._worker = self._worker or self._acquire_with_log(ready.order(model), ready.limits)
            try:
                with worker.noting_violations():
                    self._load(worker, model)
                    if not request.load_only:
                        self._stream(worker, model, ready, outputs, step.decoding if step is not None else None)
                self._fit = True
                attempts.succeeded()
                self._context.pool.guard.succeeded(key_of(request))
            finally:
                # Also what stood before something else of the same round failed.
                taken = [TakenVideo(0, None, None, None, [])] if request.load_only and self._fit else outputs.taken
                self._keep(taken, model, ready, worker)

    def _keep(self, taken: Sequence[TakenVideo], model: ModelDecision, ready: _Ready, worker: Worker) -> None:
        """Keep the results of videos that stand."""
        made = Made(
            request=self._request,
            model=model,
            resolved=ready.resolved,
            environment=ready.environment,
            choice=self._choice,
            generated=self._watch.generated[0] if self._watch.generated else None,
            frames=None,
            output=None,
            timings=self._timings,
            warnings=self._watch.warnings,
            recovery=self._recovery,
        )
        self._finished.keep(taken, self._denoised, made, worker)
        if taken:
            self._timings = Timings()

    def _emit_of_video(self, event: ev.Event) -> None:
        """Tell of recovery which video it is for."""
        if isinstance(event, ev.Recovering | ev.Recovered):
            event = dataclasses.replace(event, video=self._watch.video)
        self._context.emit(event)

    def _is_fit(self, worker: Worker, error: WanCompatError | OSError, limits: Deadlines) -> bool:
        """Whether the worker could do something else now."""
        if isinstance(error, WorkerSilent | WorkerStalled):
            return False  # it would not hear a Cancel either
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

    def _warn_of_newer(self, model: ModelDecision, environment: Environment | None) -> None:
        from wan_compat.policies.written_by import newer_writer
        from wan_compat.supervisor.installed import find_version

        installed = find_version("diffusers", environment.site if environment is not None else None)
        newer = newer_writer((model.transformer_config, model.vae_config), installed)
        if newer is not None:
            self._watch.warn(newer)

    def _tell_mends(self, model: ModelDecision) -> None:
        """What was broken in the model's files and is helped: told like every other recovery, and as a warning."""
        for mend in model.mends:
            self._tell_mend(mend.error, mend.action)

    def _tell_mend(self, error: str, action: str) -> None:
        entry = {"error": error, "action": action, "outcome": "succeeded"}
        if entry in self._mended:
            return
        self._context.emit(ev.Recovering(error, action))
        self._mended.append(entry)
        self._recovery.append(entry)
        self._context.emit(ev.Recovered(entry["error"], entry["action"], entry["outcome"]))
        self._watch.warn(f"{error}; {action}")

    # -- steps ---------------------------------------------------------------------------------------------------

    def _acquire_with_log(self, order: WorkerOrder, limits: Deadlines) -> Worker:
        if self._request.worker_log is None:
            return self._acquire(order, limits)
        with contextlib.ExitStack() as stack:
            log_file = stack.enter_context(open_log_file(self._request.worker_log))
            worker = self._acquire(order, limits)
            stack.pop_all()
        worker.log.tee(log_file)
        return worker

    def _find_gpu(self) -> GpuChoice:
        """Choose the GPU that the job is planned for, and say why there is none where one was found."""
        request, pool = self._request, self._context.pool
        if request.device == "auto" and pool.gpu_failed is not None:
            self._watch.warn(f"the GPU is left alone, as it could not be used before: {pool.gpu_failed}")
            return GpuChoice()
        found = gpu_for(request.device, self._context.policy, pool.gpu_use())
        if found.gpu is None:
            for why in found.why_not:
                self._watch.warn(f"computed on the processor: {why}")
        return found

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
            wants_vram_bytes=self._choice.chosen.vram_bytes if self._choice is not None else 0,
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

    def _check_files(self) -> None:
        """Compare the model's files once more: what the worker mapped could be written to while it was at work."""
        for path in check_unchanged(self._admitted):
            self._watch.warn(f"{path} was touched during the job: a hard link, a mode, or bytes with the time set back")

    def _stream(
        self,
        worker: Worker,
        model: ModelDecision,
        ready: _Ready,
        outputs: RoundOutput,
        decoding: DecodeSpec | None = None,
    ) -> None:
        """Generate, and move each frame from the ring to its video as it comes.

        With `decoding`, the latents of the attempt before are decoded again, and nothing is denoised.
        """
        params, wanted = ready.resolved.params, outputs.videos
        spec = params.frames
        if decoding is None:
            self._denoised = wanted
        sink = outputs.begin()
        worker.jobs_started += 1
        job = worker.jobs_started
        ring = worker.ring
        ring.begin(job, spec, wanted.size)
        self._watch.generated.clear()
        began = time.monotonic()
        first: float | None = None  # of this video
        frames = offset = 0  # of it that were taken, and bytes of the next one
        if decoding is None:
            self._watch.denoised = False
            self._watch.enter("text_encode")
            if self._longest_first_step is not None:
                self._watch.expect_first_step(self._longest_first_step(model.pipeline))
            ring.send_media(job, self._media)
            worker.send(
                m.Generate(
                    job=job,
                    params=params_of(params, wanted),
                    count_memory=self._request.count_memory,
                    preview_latents=self._request.preview_latents,
                )
            )
        else:
            self._watch.enter("decode")
            at = wanted.first - self._denoised.first
            worker.send(m.DecodeAgain(job=job, frames=spec, first=at, videos=wanted.size, decoding=decoding))
        while not (self._watch.generated and ring.complete):
            waiting = ring.published > ring.consumed
            write = [sink.fileno()] if waiting and sink.fileno() >= 0 else []
            heard = self._watch.pump(worker, write)
            for message in heard.messages:
                self._watch.hear(message)
            sink.raise_if_ended()
            while ring.published > ring.consumed:
                if frames == spec.num_frames:
                    # The first frame of the next video is the worker's word that this one is good.
                    assert first is not None
                    outputs.end(first, ready.limits.encode_tail_s, self._check_files)
                    sink, first, frames = outputs.begin(), None, 0
                    worker.listen_again()
                    self._watch.enter("decode")
                with ring.front() as frame, frame[offset:] as rest:
                    taken = sink.write_some(rest)
                if taken == 0:
                    break
                offset += taken
                if offset == spec.frame_bytes:
                    offset = 0
                    frames += 1
                    if first is None:
                        first = time.monotonic()
                        self._context.emit(ev.FirstFrame(first - began, self._watch.video))
                        if not outputs.taken:
                            self._timings = dataclasses.replace(self._timings, first_frame_s=first - began)
                    ring.release()
                    ring.collect()
            if self._watch.generated and ring.published < ring.expected:
                raise CorruptFrame(f"the worker finished after {ring.published} of {ring.expected} frames")
            if ring.published == ring.consumed:
                sink.idle()
        ring.end()
        self._watch.rest()
        said = self._watch.generated[0]
        for note in said.notes:
            self._watch.warn(note)
        for note in said.fitted:
            self._tell_mend(f"incompatible arguments of {model.pipeline.pipeline_class}", note)
        assert first is not None
        outputs.end(first, ready.limits.encode_tail_s, self._check_files)
        self._timings = dataclasses.replace(
            self._timings, text_encode_s=said.text_encode_s, denoise_s=said.denoise_s, decode_s=said.decode_s
        )

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
