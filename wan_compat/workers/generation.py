"""One generation: from final parameters to published frames, with progress, checks and timings on the way.

    text_encode   from the call to the first transformer forward (an image's encoding included)
    denoise       to the last step's callback
    decode        to the last published frame

The pipeline decides nothing here: every parameter is final, and what diffusers would silently round (a size that the
patches do not divide, a number of frames that the VAE cannot make) is refused before anything is computed.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from wan_compat.protocol.errors import ModelNotCompatible, UnusableFrames
from wan_compat.protocol.messages import Generate, Generated, Picture, Progress
from wan_compat.protocol.states import MAX_STEPS_OF_PHASE
from wan_compat.protocol.values import FrameSpec
from wan_compat.workers.arguments import arguments, check_sizes
from wan_compat.workers.call_fitting import fit_call, lacking
from wan_compat.workers.cancellation import Cancellation
from wan_compat.workers.families import family_of
from wan_compat.workers.frames import FrameWriter
from wan_compat.workers.latent_previews import LatentPreviews
from wan_compat.workers.loader import LoadedModel
from wan_compat.workers.media import NO_MEDIA, Media
from wan_compat.workers.optimizations import caching
from wan_compat.workers.own_pipeline import wanted_arguments
from wan_compat.workers.phase_memory import PhaseMemory
from wan_compat.workers.returned_frames import returned_videos
from wan_compat.workers.together import together


def generate(
    model: LoadedModel,
    order: Generate,
    writer: FrameWriter,
    cancellation: Cancellation,
    report: Callable[[Progress], None],
    media: Media = NO_MEDIA,
    keep: Callable[[torch.Tensor], None] = lambda _latents: None,
) -> Generated:
    """Run one generation and publish its frames.

    Args:
        model: Is not changed, however this ends.
        order: What to make.
        writer: Of this job; takes the frames.
        cancellation: Checked at every block, step, decoded piece and wait.
        report: Receives the Progress of each step.
        media: The pictures and videos of the job, decoded.
        keep: Is shown the latents before they are decoded.

    Raises:
        InvalidRequest: The model cannot make what was asked.
        UnusableFrames: NaN or infinite latents or pixels, or too few frames.
        JobCancelled: A stop was requested.
        Exception: Whatever torch and diffusers raise; failures.py translates it.
    """
    params = order.params
    pipeline = model.pipeline
    check_sizes(pipeline, params)
    given = arguments(model, params, media)
    family = family_of(model.spec.pipeline_class)
    # Of the classes that were asked about before, another version of diffusers may take other arguments.
    taken, wanted = model.call_arguments, wanted_arguments(pipeline)
    given, fitted = fit_call(given, taken, wanted, params, model.spec.device)
    if lost := lacking(given, ("height", "width", "prompt")):
        raise ModelNotCompatible(f"{model.spec.pipeline_class} takes no {' and no '.join(lost)}")
    steps = family.steps(params, pipeline) if family is not None else None
    run = Run(pipeline, order.job, cancellation, report, steps)
    publish = streamed(pipeline, order.job, params.frames, writer, cancellation, report)

    transformers = (pipeline.transformer, getattr(pipeline, "transformer_2", None))
    memory = PhaseMemory(pipeline, model.spec.device, count=order.count_memory)
    if order.preview_latents:
        run.picture = LatentPreviews(pipeline).picture
    run.on_denoised = lambda: memory.begin("decode")
    computed = model.embeddings.computed if model.embeddings is not None else 0
    with (
        caching(pipeline, model.spec.plan.cache, params.num_inference_steps) as cached,
        memory.counting(),
        run.watching(transformers),
        model.frame_exit.publishing(publish, keep, videos=writer.videos, next_video=writer.next_video)
        if model.frame_exit
        else contextlib.nullcontext(),
        together(pipeline, given, writer.videos) as call,
    ):
        output = pipeline(**call, callback_on_step_end=run.on_step_end)
    if model.frame_exit is None:
        first = family.skipped(given) if family is not None else 0
        last = first + params.frames.num_frames if family is not None and family.trimmed else None
        publish_returned(output, slice(first, last), order, writer, cancellation, report)
    writer.finish()
    kept = model.embeddings is not None and model.embeddings.computed == computed
    return run.finished(model.spec.device).model_copy(
        update={
            "applied": (*cached, *(("embeddings:kept",) if kept else ())),
            "fitted": fitted,
            "peak_allocated_bytes": memory.peaks,
            "peak_vram_bytes": max(memory.peaks.values(), default=None) if model.spec.device == "cuda" else None,
        }
    )


def streamed(
    pipeline: Any,
    job: int,
    frames: FrameSpec,
    writer: FrameWriter,
    cancellation: Cancellation,
    report: Callable[[Progress], None],
) -> Callable[[torch.Tensor], None]:
    """Return what publishes the pieces that leave a VAE, with a step of progress for each latent frame."""
    ratio = pipeline.vae_scale_factor_temporal
    each = (frames.num_frames - 1) // ratio + 1

    def publish(pixels: torch.Tensor) -> None:
        cancellation.check()
        writer.publish(pixels)
        video, frame = divmod(writer.published - 1, frames.num_frames)
        step, total = video * each + min(frame // ratio + 1, each), writer.videos * each
        if step <= MAX_STEPS_OF_PHASE:
            report(Progress(job=job, phase="decode", step=step, total=min(total, MAX_STEPS_OF_PHASE)))

    return publish


def publish_returned(
    output: Any,
    wanted: slice,
    order: Generate,
    writer: FrameWriter,
    cancellation: Cancellation,
    report: Callable[[Progress], None],
) -> None:
    """Publish the frames that a pipeline returned, one video after the other, with a step of progress for each.

    Args:
        wanted: Which frames of each video.

    Raises:
        GenerationFailed: It returned no video, or another number of them than was asked for.
    """
    total = writer.videos * max(1, order.params.frames.num_frames)
    for number, video in enumerate(returned_videos(output, writer.videos)):
        if number:
            writer.next_video()
        for picture in itertools.islice(video, wanted.start, wanted.stop):
            cancellation.check()
            writer.publish_picture(picture)
            if writer.published <= MAX_STEPS_OF_PHASE:
                step, steps = writer.published, min(total, MAX_STEPS_OF_PHASE)
                report(Progress(job=order.job, phase="decode", step=step, total=steps))


def free_memory(model: LoadedModel | None) -> None:
    """Give back what a generation left, however it ended. Call when no exception of it is referenced any more."""
    gc.collect()
    if model is not None and model.spec.device == "cuda":
        torch.cuda.empty_cache()


class Run:
    """The clock, the checks and the progress of one generation."""

    def __init__(
        self,
        pipeline: Any,
        job: int,
        cancellation: Cancellation,
        report: Callable[[Progress], None],
        steps: int | None = None,
    ) -> None:
        self._pipeline, self._job = pipeline, job
        self._steps, self._taken = steps, 0  # all steps, where a pipeline counts them anew for each segment
        self._cancellation, self._report = cancellation, report
        self._started = time.perf_counter()
        self._encoded: float | None = None
        self._denoised: float | None = None
        self.on_denoised: Callable[[], None] = lambda: None  # called after the last step
        self.picture: Callable[[torch.Tensor, int, int], Picture | None] = lambda *_: None

    @contextlib.contextmanager
    def watching(self, transformers: Iterable[torch.nn.Module | None]) -> Iterator[None]:
        """See the first forward of any of the transformers: that is where text encoding is over."""
        hooks = [part.register_forward_pre_hook(self._on_transformer) for part in transformers if part is not None]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def on_step_end(self, pipeline: Any, _index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Diffusers calls this after each scheduler step."""
        self._taken += 1
        step = self._taken
        # A video to video run takes the last of the scheduler's steps only.
        total = max(self._steps or getattr(pipeline, "num_timesteps", 0), step)
        self.denoised()
        # Looking costs a pass over the latents and, on a GPU, a synchronisation: four times is often enough.
        if step in (1, math.ceil(total / 4), math.ceil(total / 2), total):
            _check_finite(values["latents"], step, total)
        picture = self.picture(values["latents"], step, total)
        self._report(
            Progress(
                job=self._job, phase="denoise", step=step, total=total, picture=picture, timestep=_number(timestep)
            )
        )
        if step == total:
            self.on_denoised()
        return {}

    def next_pass(self) -> None:
        """Count steps anew: the pipeline is called once more within the same generation."""
        self._taken = 0

    def denoised(self) -> None:
        """Note that a step is over, and look for a requested stop."""
        self._denoised = time.perf_counter()
        self._cancellation.check()

    def finished(self, device: str) -> Generated:
        now = time.perf_counter()
        encoded = self._encoded if self._encoded is not None else self._started
        denoised = self._denoised if self._denoised is not None else encoded
        return Generated(
            job=self._job,
            text_encode_s=encoded - self._started,
            denoise_s=denoised - encoded,
            decode_s=now - denoised,
            peak_vram_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else None,
        )

    def _on_transformer(self, *_: Any) -> None:
        if self._encoded is None:
            self._encoded = time.perf_counter()
            self._report(Progress(job=self._job, phase="text_encode", step=1, total=1))


def _number(timestep: Any) -> float | None:
    """Return a scheduler's timestep; None for one that is no single finite number, as a pipeline may have them."""
    try:
        number = float(timestep)
    except (TypeError, ValueError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def _check_finite(latents: torch.Tensor, step: int, total: int) -> None:
    if not bool(torch.isfinite(latents).all()):
        raise UnusableFrames(
            f"the latents contain NaN or infinite values after step {step} of {total}",
            fixes=(
                "run the transformer in bfloat16 or float32 instead of float16",
                "check the model's files: broken or wrongly converted weights do this",
            ),
        )
