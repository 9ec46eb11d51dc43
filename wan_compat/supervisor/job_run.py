"""The life of one job, from a request to a verified file. Runs in the supervisor's runner thread.

    inspect -> decide -> [ ( reserve output -> worker -> load -> generate | encode -> verify -> commit ) ]

Everything that can refuse comes before the worker, everything that costs comes after. Whatever happens, the output is
whole or absent, and the worker is either fit for the next job or gone. What stands in parentheses is an attempt; when
one fails, `attempts.py` says whether there is another one, and in what it differs. What stands in brackets is a round:
one video, or those that are made at once; a job of several videos has several rounds, with one worker. What stands when
something fails is kept, and no attempt makes it again.

The worker of a job is job_worker.py's, frames on their way are frame_stream.py's, phases and deadlines job_watch.py's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wan_compat.policies.gpus import GpuChoice
from wan_compat.policies.limits import Deadlines, deadlines, memory_limit
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.phases import phase_timeouts
from wan_compat.policies.requests import ResolvedRequest, resolve_request
from wan_compat.policies.tasks import media_of, wish_of
from wan_compat.policies.videos import Round, params_of, resolved_of, rounds
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import (
    GpuUnusable,
    JobCancelled,
    ModelCorrupt,
    WanCompatError,
)
from wan_compat.protocol.plan import DecodeSpec
from wan_compat.protocol.results import Timings, VideoGenerationResult
from wan_compat.protocol.values import GenerationRequest, PipelineSpec
from wan_compat.supervisor import events as ev
from wan_compat.supervisor import first_use, provenance
from wan_compat.supervisor.attempts import Attempts, add_advice, wait
from wan_compat.supervisor.finished_videos import FinishedVideos
from wan_compat.supervisor.frame_stream import FrameStream
from wan_compat.supervisor.gpus import gpu_for
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.integrity import require_verified
from wan_compat.supervisor.job_context import JobContext, narrower
from wan_compat.supervisor.job_result import Made
from wan_compat.supervisor.job_watch import JobWatch
from wan_compat.supervisor.job_worker import JobWorker
from wan_compat.supervisor.machine import worker_machine
from wan_compat.supervisor.media import copied_media
from wan_compat.supervisor.model_choice import choose_model
from wan_compat.supervisor.model_environment import environment_of
from wan_compat.supervisor.model_parts import parts_of
from wan_compat.supervisor.restart_guard import key_of
from wan_compat.supervisor.round_output import RoundOutput, TakenVideo, check_places
from wan_compat.supervisor.worker import Worker
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
        self._media: tuple[int, ...] = ()  # descriptors of the pictures and videos, open for the time of the job
        self._worker = JobWorker(request, context, self._watch)
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
            self._longest_first_step = longest_first_step(request, model, resolved, found.gpu)
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
                self._worker.release()
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
                self._worker.failed(error, ready.limits)
                if isinstance(error, WanCompatError):
                    context.pool.guard.failed(key_of(request), error)
                if isinstance(error, OSError):
                    raise
                step = attempts.after(
                    error,
                    self._watch.failed_in(),
                    model.pipeline,
                    latents=self._worker.fit and self._has_latents(model),
                )
            wanted = wanted.after(len(self._finished.results) - wanted.first)
            if step.kind != "decode":
                self._worker.fit = False
                self._worker.release()
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
        """One attempt, with outputs of its own. The worker stays held, however this ends; results of the videos that
        stand are kept, even if others fail."""
        self._worker.fit = False
        request, resolved = self._request, ready.resolved
        self._watch.video = wanted.first

        def label(number: int) -> str:
            return provenance.label(request, model, resolved_of(resolved, number, self._denoised))

        with RoundOutput(request, resolved, wanted, self._watch, self._context, label) as outputs:
            chosen = self._choice.chosen if self._choice is not None else None
            worker = self._worker.acquire(
                ready.order(model),
                ready.limits,
                wants_bytes=chosen.ram_bytes if chosen is not None else self._weight_bytes,
                wants_vram_bytes=chosen.vram_bytes if chosen is not None else 0,
            )
            try:
                with worker.noting_violations():
                    self._worker.load(worker, model)
                    if not request.load_only:
                        self._stream(worker, model, ready, outputs, step.decoding if step is not None else None)
                self._worker.fit = True
                attempts.succeeded()
                self._context.pool.guard.succeeded(key_of(request))
            finally:
                # Also what stood before something else of the same round failed.
                loaded = request.load_only and self._worker.fit
                taken = [TakenVideo(0, None, None, None, [])] if loaded else outputs.taken
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
            timings=self._watch.timings,
            warnings=self._watch.warnings,
            recovery=self._recovery,
        )
        self._finished.keep(taken, self._denoised, made, worker)
        if taken:
            self._watch.timings = Timings()

    def _emit_of_video(self, event: ev.Event) -> None:
        """Tell of recovery which video it is for."""
        if isinstance(event, ev.Recovering | ev.Recovered):
            event = dataclasses.replace(event, video=self._watch.video)
        self._context.emit(event)

    def _has_latents(self, model: ModelDecision) -> bool:
        """Whether a worker that failed now has what it denoised: it does not for pipelines that decode in segments,
        and for code of the repository, which decodes as it likes."""
        own = model.pipeline.code is not None or model.pipeline.restricted is not None
        return self._watch.failed_in() in ("decode", "encode") and not own and model.pipeline.frames == "vae"

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

        def end(first_frame: float) -> None:
            outputs.end(first_frame, ready.limits.encode_tail_s, self._worker.check_files)

        stream = FrameStream(worker, spec, outputs, sink, self._watch, self._context.emit, end)
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
        said = stream.run()
        for note in said.notes:
            self._watch.warn(note)
        for note in said.fitted:
            self._tell_mend(f"incompatible arguments of {model.pipeline.pipeline_class}", note)
        stream.finish()
        self._watch.timings = dataclasses.replace(
            self._watch.timings, text_encode_s=said.text_encode_s, denoise_s=said.denoise_s, decode_s=said.decode_s
        )
