"""One generation by a repository's restricted function: what it is given, and what is taken from it.

    def generate(pipe, request):        any name; model_index.json says which
        return pipe()                   the video, (num_frames, 3, height, width) in [0, 1]

The function is given two handles, not the pipeline: every model, scheduler and configuration stays out of its reach.
It may call `pipe` any number of times, with other parameters, sizes and latents, look at each step, and do with the
tensors what the proxies of torch offer. What it returns or yields are the frames, of the size that was asked for.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from pydantic import ValidationError

from wan_compat.protocol.errors import GenerationFailed, InvalidRequest, WanCompatError
from wan_compat.protocol.messages import Generate, Generated, Progress
from wan_compat.protocol.states import MAX_STEPS_OF_PHASE
from wan_compat.protocol.values import GenerationParams
from wan_compat.workers.arguments import arguments, check_sizes
from wan_compat.workers.cancellation import Cancellation
from wan_compat.workers.frames import FrameWriter
from wan_compat.workers.generation import Run
from wan_compat.workers.loader import LoadedModel
from wan_compat.workers.media import NO_MEDIA, Media
from wan_compat.workers.restricted.proxies import ATTRIBUTES
from wan_compat.workers.restricted.run import explained

OnStep = Callable[[int, int, torch.Tensor], torch.Tensor | None]

_SIZES = ("height", "width", "num_frames")
_CHOICES = (
    *("prompt", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "guidance_scale_2"),
    "max_sequence_length",
)


def generate_restricted(
    model: LoadedModel,
    order: Generate,
    writer: FrameWriter,
    cancellation: Cancellation,
    report: Callable[[Progress], None],
    media: Media = NO_MEDIA,
) -> Generated:
    """Run one generation and publish its frames. Arguments as in workers/generation.py.

    Raises:
        GenerationFailed: The code failed, was denied something, or returned no frames or others than agreed.
        InvalidRequest, UnusableFrames, MemoryExceeded, JobCancelled: As there.
    """
    assert model.restricted is not None
    if media.pictures:
        raise InvalidRequest("restricted code is given no pictures", hint="leave them out")
    if order.params.videos_at_once > 1:
        raise InvalidRequest("restricted code makes one video at once", hint="leave --videos-at-once out")
    check_sizes(model.pipeline, order.params)
    steps = _Steps(report)
    run = Run(model.pipeline, order.job, cancellation, steps.passed_on)
    pipe = Pipe(model, order.params, run, cancellation, steps)
    pipeline, total = model.pipeline, order.params.frames.num_frames
    try:
        with torch.no_grad(), run.watching((pipeline.transformer, getattr(pipeline, "transformer_2", None))):
            for picture in _pictures(model.restricted(pipe, Request(order.params))):
                cancellation.check()
                writer.publish_picture(picture)
                steps.publishing = True
                report(Progress(job=order.job, phase="decode", step=writer.published, total=total))
    except WanCompatError:
        raise
    except Exception as error:
        raise explained(error) from error
    writer.finish(may_be_constant=True)
    return run.finished(model.spec.device)


class Request:
    """What was asked for, as the function reads it: `request.prompt`, `request.num_frames`, ..."""

    __slots__ = (*_CHOICES, *_SIZES)

    def __init__(self, params: GenerationParams) -> None:
        for name in _CHOICES:
            setattr(self, name, getattr(params, name))
        for name in _SIZES:
            setattr(self, name, getattr(params.frames, name))


class Pipe:
    """The loaded pipeline, as the function calls it. What holds the real one has names that it cannot say."""

    def __init__(
        self, model: LoadedModel, params: GenerationParams, run: Run, cancellation: Cancellation, steps: _Steps
    ) -> None:
        self._model, self._params = model, params
        self._run, self._cancellation, self._steps = run, cancellation, steps

    def __call__(
        self,
        *,
        latents: torch.Tensor | None = None,
        on_step: OnStep | None = None,
        output: Literal["video", "latents"] = "video",
        **changes: Any,
    ) -> torch.Tensor:
        """Run the pipeline once; what is left out is as in the request.

        Args:
            latents: Initial noise of shape `latent_shape(...)`; None draws it from the seed.
            on_step: Called after each step with its number, their count and the latents; what it returns, if not
                None, takes their place.
            output: "latents" leaves decoding to `decode`.
            changes: prompt, negative_prompt, seed, num_inference_steps, guidance_scale, guidance_scale_2,
                max_sequence_length, height, width, num_frames.

        Returns:
            (num_frames, 3, height, width) in [0, 1], or latents.
        """
        params = self._changed(changes)
        check_sizes(self._model.pipeline, params)
        if output not in ("video", "latents"):
            raise ValueError(f"output is 'video' or 'latents', not {output!r}")
        given = arguments(self._model, params)
        given["output_type"] = "latent" if output == "latents" else "pt"
        if latents is not None:
            shape = self.latent_shape(*(getattr(params.frames, name) for name in _SIZES))
            given["latents"] = _tensor_of(latents, shape, "latents")
        total = params.num_inference_steps

        def after_step(pipeline: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            self._run.on_step_end(pipeline, index, timestep, values)
            if on_step is None:
                return {}
            before = values["latents"]
            after = on_step(index + 1, total, before)
            if after is None:
                return {}
            return {"latents": _tensor_of(after, tuple(before.shape), "what on_step returned").to(before.dtype)}

        frames = self._model.pipeline(**given, callback_on_step_end=after_step).frames
        self._run.next_pass()
        self._steps.next_pass()
        return frames if output == "latents" else frames[0]  # type: ignore[no-any-return]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents as the pipeline does: (1, channels, frames, height, width) to a video."""
        self._cancellation.check()
        if type(latents) is not torch.Tensor or latents.ndim != 5 or latents.shape[0] != 1:
            raise ValueError("latents are a tensor of shape (1, channels, frames, height, width)")
        vae, pipeline = self._model.pipeline.vae, self._model.pipeline
        latents = latents.to(vae.device, vae.dtype)
        # Inverted twice, as in diffusers' pipeline_wan.py: the same bits need the same operations.
        mean, inverse_std = torch.tensor(vae.config.latents_mean), 1.0 / torch.tensor(vae.config.latents_std)
        mean, inverse_std = (values.view(1, -1, 1, 1, 1).to(latents) for values in (mean, inverse_std))
        decoded = vae.decode(latents / inverse_std + mean, return_dict=False)[0]
        return pipeline.video_processor.postprocess_video(decoded, output_type="pt")[0]  # type: ignore[no-any-return]

    def latent_shape(
        self, height: int | None = None, width: int | None = None, num_frames: int | None = None
    ) -> tuple[int, ...]:
        """Return the shape of the latents of a video; what is left out is as in the request."""
        sizes = {"height": height, "width": width, "num_frames": num_frames}
        frames = self._changed({name: size for name, size in sizes.items() if size is not None}).frames
        pipeline = self._model.pipeline
        return (
            1,
            (pipeline.transformer or pipeline.transformer_2).config.in_channels,
            (frames.num_frames - 1) // pipeline.vae_scale_factor_temporal + 1,
            frames.height // pipeline.vae_scale_factor_spatial,
            frames.width // pipeline.vae_scale_factor_spatial,
        )

    def _changed(self, changes: dict[str, Any]) -> GenerationParams:
        """Return the request's parameters with `changes`, within the bounds of any request."""
        unknown = sorted(set(changes) - {*_CHOICES, *_SIZES})
        if unknown:
            raise TypeError(f"pipe takes no {', '.join(unknown)}")
        values = self._params.model_dump()
        values["frames"] |= {name: changes[name] for name in _SIZES if name in changes}
        values |= {name: value for name, value in changes.items() if name in _CHOICES}
        try:
            return GenerationParams(**values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise ValueError(f"{first['loc'][-1]}: {first['msg']}") from None


ATTRIBUTES[Pipe] = frozenset({"decode", "latent_shape"})
ATTRIBUTES[Request] = frozenset(Request.__slots__)


class _Steps:
    """Counts the steps of all passes as one phase: for the supervisor, progress never goes back."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report
        self._before = self._last = 0
        self.publishing = False

    def passed_on(self, progress: Progress) -> None:
        if self.publishing:
            return  # frames are on their way, and denoising was said to be over
        if progress.phase == "denoise":
            self._last = self._before + progress.step
            progress = progress.model_copy(update={"step": self._last, "total": self._before + progress.total})
        if progress.total <= MAX_STEPS_OF_PHASE:
            self._report(progress)

    def next_pass(self) -> None:
        self._before = self._last


def _tensor_of(value: Any, shape: tuple[int, ...], what: str) -> torch.Tensor:
    if type(value) is not torch.Tensor or tuple(value.shape) != shape:
        found = tuple(value.shape) if type(value) is torch.Tensor else type(value).__name__
        raise ValueError(f"{what}: {found}, not a tensor of shape {shape}")
    return value


def _pictures(output: Any) -> Iterator[torch.Tensor]:
    """Yield (3, height, width) from a tensor of all frames, or from whatever gives one after the other."""
    if type(output) is not torch.Tensor and not isinstance(output, Iterable):
        raise GenerationFailed(f"the restricted function returned {type(output).__name__}, which is no video")
    for picture in output:
        if type(picture) is not torch.Tensor:
            raise GenerationFailed(f"the restricted function returned {type(picture).__name__} as a frame")
        yield picture
