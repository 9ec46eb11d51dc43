"""What pipelines of Wan's relatives are called with besides, how many steps they take, which frames are the job's.

    arguments   words of their own for what was given, and what follows from the length
    steps       all that a generation takes: they begin anew for every segment, chunk or size
    skipped     frames that they return before those that were made
    trimmed     whether they make whole chunks, of which the job's frames are the first

policies/relatives.py and relative_requests.py decided before that lengths and media fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.values import GenerationParams

# What the authors of SkyReels-V2 advise: clips of 97 frames, of which 17 are those of the clip before.
_CLIP_FRAMES, _OVERLAP = 97, 17
_SEGMENT_FRAMES, _SEGMENT_FRAMES_2 = 77, 81  # of Animate and Animate-2, trained with them
_CHUNK_FRAMES = 33  # of Helios: 9 latent frames
_PYRAMID_STAGES = 3

Arguments = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """See above. `arguments` gets the parameters, what was given by diffusers' names, and the pipeline."""

    arguments: Callable[[GenerationParams, Mapping[str, Any], Any], Arguments]
    steps: Callable[[GenerationParams, Any], int | None] = lambda params, pipeline: None
    skipped: Callable[[Mapping[str, Any]], int] = lambda given: 0
    trimmed: bool = False


def family_of(pipeline_class: str) -> Family | None:
    return _FAMILIES.get(pipeline_class)


# ---- Animate ---------------------------------------------------------------------------------------------------------


def _animate(params: GenerationParams, given: Mapping[str, Any], _pipeline: Any) -> Arguments:
    arguments = dict(given)
    if "mask" in arguments:
        arguments["mask_video"] = arguments.pop("mask")
    # A shorter clip is one segment: diffusers would pad it to 77 frames, compute them all and drop the rest.
    length = min(_SEGMENT_FRAMES, params.frames.num_frames)
    mode = "replace" if "background_video" in arguments else "animate"
    return {**arguments, "mode": mode, "segment_frame_length": length}


def _animate_steps(params: GenerationParams, _pipeline: Any) -> int:
    return params.num_inference_steps * _segments(params.frames.num_frames, _SEGMENT_FRAMES)


def _animate2(params: GenerationParams, given: Mapping[str, Any], _pipeline: Any) -> Arguments:
    arguments = {name: value for name, value in given.items() if name != "video"}
    length = min(_SEGMENT_FRAMES_2, params.frames.num_frames)
    return {**arguments, "driving_video": given["video"], "segment_frame_length": length}


def _animate2_steps(params: GenerationParams, _pipeline: Any) -> int:
    return params.num_inference_steps * _segments(params.frames.num_frames, _SEGMENT_FRAMES_2)


def _segments(frames: int, length: int) -> int:
    return -(-(frames - 1) // max(1, min(length, frames) - 1))  # one frame is the last of the segment before


# ---- SkyReels-V2, diffusion forcing ----------------------------------------------------------------------------------


def _forcing(params: GenerationParams, given: Mapping[str, Any], _pipeline: Any) -> Arguments:
    return {**given, "overlap_history": _OVERLAP} if params.frames.num_frames > _CLIP_FRAMES else dict(given)


def _forcing_after_video(params: GenerationParams, given: Mapping[str, Any], _pipeline: Any) -> Arguments:
    # With a shorter clip than base_num_frames, diffusers counts no iteration and fails on the latents of none.
    base = min(_CLIP_FRAMES, params.frames.num_frames)
    return {**given, "overlap_history": _OVERLAP, "base_num_frames": base}


def _forcing_steps(params: GenerationParams, pipeline: Any) -> int:
    step = pipeline.vae_scale_factor_temporal
    latents, clip, overlap = ((frames - 1) // step + 1 for frames in (params.frames.num_frames, _CLIP_FRAMES, _OVERLAP))
    clips = 1 if latents <= clip else 1 + -(-(latents - clip) // (clip - overlap))
    return params.num_inference_steps * clips


# ---- ChronoEdit ------------------------------------------------------------------------------------------------------


def _chronoedit(params: GenerationParams, given: Mapping[str, Any], _pipeline: Any) -> Arguments:
    """More than the 5 frames of an edit are the way there: temporal reasoning, kept through every step to be shown."""
    if params.frames.num_frames == 5:
        return dict(given)
    steps = params.num_inference_steps
    return {**given, "enable_temporal_reasoning": True, "num_temporal_reasoning_steps": steps}


# ---- AnyFlow ---------------------------------------------------------------------------------------------------------


def _anyflow(_params: GenerationParams, given: Mapping[str, Any], _pipeline: Any) -> Arguments:
    """A picture is a video of one frame. What is given stays the beginning of what is made."""
    arguments = dict(given)
    frames = [arguments.pop("image")] if "image" in arguments else arguments.get("video")
    if frames is not None:
        # (1, frames, 3, height, width) in [0, 1], as the pipelines' documentation asks: one of them takes nothing else.
        pixels = np.stack([np.asarray(frame, dtype=np.float32) for frame in frames]) / 255
        arguments["video"] = torch.from_numpy(pixels).permute(0, 3, 1, 2).unsqueeze(0)
    return arguments


def _anyflow_far(params: GenerationParams, given: Mapping[str, Any], pipeline: Any) -> Arguments:
    latents = (params.frames.num_frames - 1) // pipeline.vae_scale_factor_temporal + 1
    chunks = list(pipeline.transformer.config.chunk_partition)
    for count, end in enumerate(accumulate(chunks), 1):
        if end == latents:
            return {**_anyflow(params, given, pipeline), "chunk_partition": chunks[:count]}
    raise InvalidRequest(f"{latents} latent frames are no whole chunks of {chunks}")


# ---- Helios ----------------------------------------------------------------------------------------------------------


def _helios(_params: GenerationParams, given: Mapping[str, Any], _pipeline: Any) -> Arguments:
    return dict(given)


def _helios_chunks(params: GenerationParams) -> int:
    return -(-params.frames.num_frames // _CHUNK_FRAMES)


def _helios_steps(params: GenerationParams, _pipeline: Any) -> int:
    return params.num_inference_steps * _helios_chunks(params)


def _pyramid(params: GenerationParams, given: Mapping[str, Any], pipeline: Any) -> Arguments:
    steps = [params.num_inference_steps // _PYRAMID_STAGES] * _PYRAMID_STAGES
    # The distilled model's authors give the first chunk, on which all others rest, twice the steps.
    return {
        **given,
        "pyramid_num_inference_steps_list": steps,
        "is_amplify_first_chunk": bool(pipeline.config.is_distilled),
    }


def _pyramid_blocks(params: GenerationParams, given: Mapping[str, Any], _pipeline: Any) -> Arguments:
    """Modular: twice the steps for the first chunk is the distilled blocks' own default."""
    return {
        **given,
        "pyramid_num_inference_steps_list": [params.num_inference_steps // _PYRAMID_STAGES] * _PYRAMID_STAGES,
    }


def _distilled_steps(params: GenerationParams, _pipeline: Any) -> int:
    return params.num_inference_steps * (_helios_chunks(params) + 1)


def _pyramid_steps(params: GenerationParams, pipeline: Any) -> int:
    chunks = _helios_chunks(params) + (1 if pipeline.config.is_distilled else 0)
    return params.num_inference_steps * chunks


_FAMILIES: Mapping[str, Family] = {
    "WanAnimatePipeline": Family(_animate, _animate_steps),
    "SkyReelsV2DiffusionForcingPipeline": Family(_forcing, _forcing_steps),
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": Family(_forcing, _forcing_steps),
    # It returns the given video too, and repeats the frames that it went on from.
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": Family(
        _forcing_after_video, _forcing_steps, skipped=lambda given: len(given["video"])
    ),
    "WanAnimate2ModularPipeline": Family(_animate2, _animate2_steps),
    "WanAnimate2DistilledModularPipeline": Family(_animate2, _animate2_steps),
    "ChronoEditPipeline": Family(_chronoedit),
    "AnyFlowPipeline": Family(_anyflow),
    "AnyFlowFARPipeline": Family(_anyflow_far),
    "HeliosPipeline": Family(_helios, _helios_steps, trimmed=True),
    "HeliosPyramidPipeline": Family(_pyramid, _pyramid_steps, trimmed=True),
    "HeliosModularPipeline": Family(_helios, _helios_steps, trimmed=True),
    "HeliosPyramidModularPipeline": Family(_pyramid_blocks, _helios_steps, trimmed=True),
    "HeliosPyramidDistilledModularPipeline": Family(_pyramid_blocks, _distilled_steps, trimmed=True),
}
