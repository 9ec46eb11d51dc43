"""What a pipeline is called with: from final parameters and decoded media to diffusers' own names.

Nothing is left out in silence: a number or picture that the pipeline's `__call__` does not take is an error, except
those that only some pipelines have and that were judged before (num_frames of a video to video job is its video's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.media import MediaRole
from wan_compat.protocol.values import GenerationParams, seed_after
from wan_compat.workers.call_fitting import OTHER_NAMES
from wan_compat.workers.families import family_of
from wan_compat.workers.media import NO_MEDIA, Media
from wan_compat.workers.own_pipeline import ANYTHING

if TYPE_CHECKING:  # the loader imports more than a restricted run needs here
    from wan_compat.workers.loader import LoadedModel

# Role -> the argument, and whether that takes a list.
MEDIA_NAMES: Mapping[MediaRole, tuple[str, bool]] = {
    "image": ("image", False),
    "last_image": ("last_image", False),
    "video": ("video", True),
    "mask": ("mask", True),
    "reference": ("reference_images", True),
    "pose_video": ("pose_video", True),
    "face_video": ("face_video", True),
    "background_video": ("background_video", True),
}
# What not every pipeline has, and what is lost without it is nothing.
_OF_SOME = ("num_frames",)


def arguments(model: LoadedModel, params: GenerationParams, media: Media = NO_MEDIA) -> dict[str, Any]:
    """Return what a Wan pipeline is called with.

    Raises:
        InvalidRequest: The pipeline takes no picture, or no option, of this name.
    """
    given: dict[str, Any] = {
        "prompt": params.prompt,
        "negative_prompt": params.negative_prompt,
        "height": params.frames.height,
        "width": params.frames.width,
        "num_frames": params.frames.num_frames,
        "num_inference_steps": params.num_inference_steps,
        "guidance_scale": params.guidance_scale,
        "max_sequence_length": params.max_sequence_length,
        "generator": _generator(params.seed),
        "output_type": "pt",  # the tensor is one pixel: the frames leave through FrameExit
    }
    if params.videos_at_once > 1 and not {"num_videos_per_prompt", ANYTHING}.isdisjoint(model.call_arguments):
        # A pipeline that takes no number makes as many as it always does: returned_frames.py counts them.
        given["num_videos_per_prompt"] = params.videos_at_once
        given["generator"] = [_generator(seed_after(params.seed, number)) for number in range(params.videos_at_once)]
    # Diffusers refuses it for a pipeline without a boundary between two experts.
    config = getattr(model.pipeline, "config", None)
    two_scales = "guidance_scale_2" in model.call_arguments and getattr(config, "boundary_ratio", None) is not None
    if params.guidance_scale_2 is not None and two_scales:
        given["guidance_scale_2"] = params.guidance_scale_2
    if model.spec.code is None and ANYTHING not in model.call_arguments:  # of own code, call_fitting.py finds out
        taken = model.call_arguments
        left_out = {name for name in _OF_SOME if taken.isdisjoint((name, *OTHER_NAMES[name]))}
        given = {name: value for name, value in given.items() if name not in left_out}
    asked = _asked(params, media)
    family = family_of(model.spec.pipeline_class) if model.spec.code is None else None
    if family is not None:
        asked = family.arguments(params, asked, model.pipeline)
        given = {name: value for name, value in given.items() if name in model.call_arguments}
    for name in asked:
        if name not in model.call_arguments and ANYTHING not in model.call_arguments:
            raise InvalidRequest(f"{model.spec.pipeline_class} takes no {name}", hint=f"leave {name} out")
    return given | asked


def _generator(seed: int) -> torch.Generator:
    # On the CPU whatever the device, as diffusers advises: a seed then gives the same noise everywhere.
    return torch.Generator("cpu").manual_seed(seed)


def _asked(params: GenerationParams, media: Media) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for role, pictures in media.pictures.items():
        name, as_list = MEDIA_NAMES[role]
        asked[name] = list(pictures) if as_list else pictures[0]
    for option in ("strength", "conditioning_scale"):
        if (value := getattr(params, option)) is not None:
            asked[option] = value
    return asked


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
