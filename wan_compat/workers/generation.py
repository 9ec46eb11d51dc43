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
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from wan_compat.protocol.errors import InvalidRequest, UnusableFrames
from wan_compat.protocol.messages import Generate, Generated, Progress
from wan_compat.protocol.values import GenerationParams
from wan_compat.workers.cancellation import Cancellation
from wan_compat.workers.frames import FrameWriter
from wan_compat.workers.loader import LoadedModel


def generate(
    model: LoadedModel,
    order: Generate,
    writer: FrameWriter,
    cancellation: Cancellation,
    report: Callable[[Progress], None],
) -> Generated:
    """Run one generation and publish its frames.

    Args:
        model: Is not changed, however this ends.
        order: What to make.
        writer: Of this job; takes the frames.
        cancellation: Checked at every block, step, decoded piece and wait.
        report: Receives the Progress of each step.

    Raises:
        InvalidRequest: The model cannot make what was asked.
        UnusableFrames: NaN or infinite latents or pixels, or too few frames.
        JobCancelled: A stop was requested.
        Exception: Whatever torch and diffusers raise; failures.py translates it.
    """
    params = order.params
    pipeline = model.pipeline
    assert model.frame_exit is not None  # own_generation.py is for the others
    check_sizes(pipeline, params)
    run = Run(pipeline, order.job, cancellation, report)
    latent_frames = (params.frames.num_frames - 1) // pipeline.vae_scale_factor_temporal + 1

    def publish(pixels: torch.Tensor) -> None:
        cancellation.check()
        writer.publish(pixels)
        done = (writer.published - 1) // pipeline.vae_scale_factor_temporal + 1
        report(Progress(job=order.job, phase="decode", step=min(done, latent_frames), total=latent_frames))

    if model.spec.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    transformers = (pipeline.transformer, getattr(pipeline, "transformer_2", None))
    with run.watching(transformers), model.frame_exit.publishing(publish):
        pipeline(**arguments(model, params), callback_on_step_end=run.on_step_end)
    writer.finish()
    return run.finished(model.spec.device)


def free_memory(model: LoadedModel | None) -> None:
    """Give back what a generation left, however it ended. Call when no exception of it is referenced any more."""
    gc.collect()
    if model is not None and model.spec.device == "cuda":
        torch.cuda.empty_cache()


class Run:
    """The clock, the checks and the progress of one generation."""

    def __init__(self, pipeline: Any, job: int, cancellation: Cancellation, report: Callable[[Progress], None]) -> None:
        self._pipeline, self._job = pipeline, job
        self._cancellation, self._report = cancellation, report
        self._started = time.perf_counter()
        self._encoded: float | None = None
        self._denoised: float | None = None

    @contextlib.contextmanager
    def watching(self, transformers: Iterable[torch.nn.Module | None]) -> Iterator[None]:
        """See the first forward of any of the transformers: that is where text encoding is over."""
        hooks = [part.register_forward_pre_hook(self._on_transformer) for part in transformers if part is not None]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def on_step_end(self, pipeline: Any, index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Diffusers calls this after each scheduler step."""
        step = index + 1
        total = max(len(pipeline.scheduler.timesteps), step)
        self.denoised()
        # Looking costs a pass over the latents and, on a GPU, a synchronisation: four times is often enough.
        if step in (1, math.ceil(total / 4), math.ceil(total / 2), total):
            _check_finite(values["latents"], step, total)
        self._report(Progress(job=self._job, phase="denoise", step=step, total=total))
        return {}

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


def arguments(model: LoadedModel, params: GenerationParams) -> dict[str, Any]:
    """Return what a Wan pipeline is called with."""
    given: dict[str, Any] = {
        "prompt": params.prompt,
        "negative_prompt": params.negative_prompt,
        "height": params.frames.height,
        "width": params.frames.width,
        "num_frames": params.frames.num_frames,
        "num_inference_steps": params.num_inference_steps,
        "guidance_scale": params.guidance_scale,
        "max_sequence_length": params.max_sequence_length,
        # On the CPU whatever the device, as diffusers advises: a seed then gives the same noise everywhere.
        "generator": torch.Generator("cpu").manual_seed(params.seed),
        "output_type": "pt",  # the tensor is one pixel: the frames leave through FrameExit
    }
    # Diffusers refuses it for a pipeline without a boundary between two experts.
    config = getattr(model.pipeline, "config", None)
    two_scales = "guidance_scale_2" in model.call_arguments and getattr(config, "boundary_ratio", None) is not None
    if params.guidance_scale_2 is not None and two_scales:
        given["guidance_scale_2"] = params.guidance_scale_2
    return given


def check_sizes(pipeline: Any, params: GenerationParams) -> None:
    """Raise InvalidRequest for sizes that the model cannot make and diffusers would silently round."""
    frames = params.frames
    temporal = pipeline.vae_scale_factor_temporal
    if (frames.num_frames - 1) % temporal:
        raise InvalidRequest(
            f"this model cannot make {frames.num_frames} frames",
            hint=f"num_frames must be one more than a multiple of {temporal}",
        )
    patch = (pipeline.transformer or pipeline.transformer_2).config.patch_size
    for name, length, size in (("height", frames.height, patch[1]), ("width", frames.width, patch[2])):
        multiple = math.lcm(pipeline.vae_scale_factor_spatial * size, 16)
        if length % multiple:
            raise InvalidRequest(
                f"{name} {length} is not a multiple of {multiple}",
                hint=f"use {length // multiple * multiple or multiple} or {(length // multiple + 1) * multiple}",
            )


def _check_finite(latents: torch.Tensor, step: int, total: int) -> None:
    if not bool(torch.isfinite(latents).all()):
        raise UnusableFrames(
            f"the latents contain NaN or infinite values after step {step} of {total}",
            fixes=(
                "run the transformer in bfloat16 or float32 instead of float16",
                "check the model's files: broken or wrongly converted weights do this",
            ),
        )
