"""From what was asked to what will be done: defaults of the model's family, and every bound checked before loading.

Sizes are never rounded: diffusers floors height, width and num_frames with a warning at most, which users find out
from the finished video (diffusers issues 13034, 11163, 11167). Here a value that does not fit is an error that names
the nearest ones that do.
"""

from __future__ import annotations

import dataclasses
import math

from wan_compat.policies.family_defaults import family_defaults, has_two_experts
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.relative_requests import check_relative, media_for
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.media import MediaSpec
from wan_compat.protocol.values import MAX_SIDE, FrameSpec, GenerationParams, GenerationRequest

# Pipelines of diffusers that make several videos of one prompt in one call, tried; some with what workers/together.py
# does for them. Tried and left out (diffusers 0.42.1): diffusion forcing and LucyEdit lay what they go by beside the
# latents of one video (sizes that do not match), Helios takes one generator, as blocks do that begin with a picture or
# a video, ChronoEdit decodes all videos together, and Animate keeps the segments of all.
MAKES_SEVERAL = frozenset({
    "WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline", "SkyReelsV2Pipeline",
    "SkyReelsV2ImageToVideoPipeline", "AnyFlowPipeline", "WanModularPipeline", "Wan22ModularPipeline",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ResolvedRequest:
    params: GenerationParams
    fps: float


def resolve_request(
    request: GenerationRequest, model: ModelDecision, *, seed: int, media: tuple[MediaSpec, ...] = ()
) -> ResolvedRequest:
    """Fill in defaults and check sizes.

    Args:
        seed: Used when the request names none.
        media: What `media_of(request)` named, as it will be handed to the worker.

    Raises:
        InvalidRequest: A size does not fit the model (the message names the nearest sizes that do), or what is asked
            for would denoise nothing.
    """
    defaults = family_defaults(model)
    height = request.height or defaults.height
    width = request.width or defaults.width
    task = model.way.task if model.way is not None else "t2v"
    num_frames = request.num_frames or (1 if task == "t2i" else defaults.num_frames)
    if task == "t2i" and num_frames != 1:
        raise InvalidRequest(f"t2i makes one frame, not {num_frames}", hint="leave --num-frames out, or use --task t2v")
    _check_multiple("height", height, model.size_multiple)
    _check_multiple("width", width, model.size_multiple)
    step = model.frame_multiple
    if num_frames % step != 1 % step:
        below = (num_frames - 1) // step * step + 1
        raise InvalidRequest(
            f"num_frames is {num_frames}; this model's VAE takes {step}k + 1 frames",
            hint=f"use --num-frames {below} or {below + step}",
        )
    _check_at_once(request, model)
    steps = request.num_inference_steps or defaults.num_inference_steps
    check_relative(model, num_frames, steps)
    if request.strength is not None and int(steps * request.strength) < 1:
        # diffusers would take the first of no timesteps (pipeline_wan_video2video.py, get_timesteps).
        raise InvalidRequest(
            f"strength {request.strength:g} of {steps} steps leaves no step to take",
            hint=f"use --strength {math.ceil(100 / steps) / 100:g} or more, or more --num-inference-steps",
        )
    if request.guidance_scale_2 is not None and not has_two_experts(model):
        raise InvalidRequest(
            "guidance_scale_2 is for models with two transformers; this one has one", hint="leave guidance_scale_2 out"
        )
    return ResolvedRequest(
        params=GenerationParams(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed if request.seed is not None else seed,
            num_inference_steps=steps,
            guidance_scale=float(
                request.guidance_scale if request.guidance_scale is not None else defaults.guidance_scale
            ),
            # Unless both are left open, the second expert follows the first, as in WanPipeline.
            guidance_scale_2=request.guidance_scale_2
            if request.guidance_scale_2 is not None or request.guidance_scale is not None
            else defaults.guidance_scale_2,
            max_sequence_length=request.max_sequence_length or 512,
            task=task,
            media=media_for(model, media),
            strength=request.strength,
            conditioning_scale=request.conditioning_scale,
            frames=FrameSpec(height=height, width=width, num_frames=num_frames),
        ),
        fps=float(request.fps or defaults.fps),
    )


def _check_at_once(request: GenerationRequest, model: ModelDecision) -> None:
    """What a repository's code makes at once is its own affair: it is counted when it is there."""
    pipeline = model.pipeline
    makes_several = pipeline.code is not None or pipeline.pipeline_class in MAKES_SEVERAL
    if min(request.num_videos, request.videos_at_once) == 1 or (makes_several and pipeline.restricted is None):
        return
    whose = "restricted code" if pipeline.restricted is not None else pipeline.pipeline_class
    raise InvalidRequest(
        f"{whose} makes one video at once, not {request.videos_at_once}",
        hint="leave --videos-at-once out: they are then made one after the other",
    )


def _check_multiple(name: str, value: int, multiple: int) -> None:
    if value % multiple == 0:
        return
    below = max(multiple, value // multiple * multiple)
    above = min(below + multiple, MAX_SIDE // multiple * multiple)
    raise InvalidRequest(
        f"{name} is {value}; this model needs multiples of {multiple}",
        hint=f"use --{name} {below}" + (f" or {above}" if above != below else ""),
    )
