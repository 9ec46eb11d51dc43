"""What some pipelines ask of a request beyond sizes: lengths that they can make, and how their media are read.

Each would go on without a word: diffusers pads, rounds, or fails in the middle with a message about tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from wan_compat.policies.models import ModelDecision
from wan_compat.protocol.errors import InvalidRequest, ModelCorrupt
from wan_compat.protocol.media import MediaSpec

PYRAMID_STAGES = 3  # of Helios, each with a third of the steps

# Counts the last clip's latents as a whole clip's, and fails on those that are not there (0.42.1; not so from text).
# Clips of 97 frames begin with 17 of the one before.
_WHOLE_CLIPS = "SkyReelsV2DiffusionForcingImageToVideoPipeline"
_CLIP_FRAMES, _CLIP_STEP = 97, 80
# As in diffusers' AnyFlowFARTransformer3DModel: latent frames of each chunk.
_CHUNKS = (1, 3, 3, 3, 3, 3, 3, 2)
_MAX_CHUNKS, _MAX_CHUNK = 64, 64
_FACE_SIZE, _MAX_FACE_SIZE = 512, 1024


def check_relative(model: ModelDecision, num_frames: int, num_inference_steps: int) -> None:
    """Refuse a length or a number of steps that the pipeline cannot make.

    Raises:
        InvalidRequest: With the nearest ones that it can.
        ModelCorrupt: The transformer's configuration has chunks that are none.
    """
    if model.way is None:
        return
    weights, context = model.way.weights, model.way.inputs.context
    if weights in ("animate", "animate2", "animate2_distilled", "chronoedit") and num_frames == 1:
        raise InvalidRequest(f"{model.way.pipeline} makes no single frame", hint="use --num-frames 5 or more")
    if weights == "anyflow_far":
        _check_chunks(model, num_frames, context.at_most if context else 0)
    elif weights in ("anyflow", "skyreels_df") and context is not None and num_frames <= context.at_most:
        raise InvalidRequest(
            f"the first {context.at_most} of the frames are the video's last, and {num_frames} were asked for",
            hint=f"use --num-frames {-(-context.at_most // model.frame_multiple) * model.frame_multiple + 1} or more",
        )
    if model.way.pipeline == _WHOLE_CLIPS and num_frames > _CLIP_FRAMES and (num_frames - _CLIP_FRAMES) % _CLIP_STEP:
        below = _CLIP_FRAMES + (num_frames - _CLIP_FRAMES) // _CLIP_STEP * _CLIP_STEP
        raise InvalidRequest(
            f"num_frames is {num_frames}; beyond {_CLIP_FRAMES}, {_WHOLE_CLIPS} makes whole clips (its own limit)",
            hint=f"use --num-frames {below} or {below + _CLIP_STEP}",
        )
    if model.way.pipeline.startswith("HeliosPyramid") and num_inference_steps % PYRAMID_STAGES:
        below = max(1, num_inference_steps // PYRAMID_STAGES) * PYRAMID_STAGES
        raise InvalidRequest(
            f"{num_inference_steps} steps cannot be shared among the {PYRAMID_STAGES} sizes of {model.way.pipeline}",
            hint=f"use --num-inference-steps {below} or {below + PYRAMID_STAGES}",
        )


def media_for(model: ModelDecision, media: tuple[MediaSpec, ...]) -> tuple[MediaSpec, ...]:
    """Return the media of a job with how each is read for this model."""
    context = model.way.inputs.context if model.way is not None else None
    found: list[MediaSpec] = []
    for spec in media:
        if spec.role == "face_video":
            spec = spec.model_copy(update={"square": face_size(model.transformer_config)})
        elif spec.role == "video" and context is not None:
            spec = spec.model_copy(update={"context": (context.at_least, context.at_most)})
        found.append(spec)
    return tuple(found)


def face_size(transformer: Mapping[str, Any]) -> int:
    """Return the side of the square in which Animate's motion encoder sees a face."""
    size = transformer.get("motion_encoder_size", _FACE_SIZE)
    if type(size) is not int or not 4 <= size <= _MAX_FACE_SIZE:
        raise ModelCorrupt(f"transformer/config.json has motion_encoder_size={size!r}", hint="download it again")
    return size


def _check_chunks(model: ModelDecision, num_frames: int, context_frames: int) -> None:
    chunks = model.transformer_config.get("chunk_partition", _CHUNKS)
    sound = isinstance(chunks, list | tuple) and 1 <= len(chunks) <= _MAX_CHUNKS
    if not sound or not all(type(chunk) is int and 1 <= chunk <= _MAX_CHUNK for chunk in chunks):
        raise ModelCorrupt(f"transformer/config.json has chunk_partition={chunks!r}", hint="download it again")
    able = [(latents - 1) * model.frame_multiple + 1 for latents in accumulate(chunks)]
    if num_frames not in able:
        raise InvalidRequest(
            f"num_frames is {num_frames}; this model makes whole chunks: {', '.join(map(str, able))} frames",
            hint=f"use --num-frames {min(able, key=lambda frames: (abs(frames - num_frames), frames))}",
        )
    if context_frames and context_frames not in able[: able.index(num_frames)]:
        raise InvalidRequest(
            f"the {context_frames} frames of a video that goes before are no whole chunks of {num_frames} frames",
            hint=f"use --num-frames {able[-1]}",
        )
