"""From what was asked to what will be done: defaults of the model's family, and every bound checked before loading.

Sizes are never rounded: diffusers floors height, width and num_frames with a warning at most, which users find out
from the finished video (diffusers issues 13034, 11163, 11167). Here a value that does not fit is an error that names
the nearest ones that do.
"""

from __future__ import annotations

import dataclasses

from wan_compat.policies.models import ModelDecision
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.values import MAX_SIDE, FrameSpec, GenerationParams, GenerationRequest


@dataclasses.dataclass(frozen=True)
class FamilyDefaults:
    """What a family's authors recommend (README files of Wan-Video/Wan2.1 and Wan2.2)."""

    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    fps: float


WAN21 = FamilyDefaults(480, 832, 81, 50, 5.0, None, 16.0)
WAN22_A14B = FamilyDefaults(720, 1280, 81, 40, 4.0, 3.0, 16.0)
WAN22_TI2V_5B = FamilyDefaults(704, 1280, 121, 50, 5.0, None, 24.0)


@dataclasses.dataclass(frozen=True)
class ResolvedRequest:
    params: GenerationParams
    fps: float


def family_defaults(model: ModelDecision) -> FamilyDefaults:
    """Return the defaults: two experts mean A14B; a VAE with 48 latent channels means TI2V-5B; else Wan 2.1."""
    if any(component.name == "transformer_2" for component in model.pipeline.components):
        return WAN22_A14B
    if model.vae_config.get("z_dim") == 48:
        return WAN22_TI2V_5B
    return WAN21


def resolve_request(request: GenerationRequest, model: ModelDecision, *, seed: int) -> ResolvedRequest:
    """Fill in defaults and check sizes. `seed` is used when the request names none.

    Raises:
        InvalidRequest: A size does not fit the model; the message names the nearest sizes that do.
    """
    defaults = family_defaults(model)
    height = request.height or defaults.height
    width = request.width or defaults.width
    num_frames = request.num_frames or defaults.num_frames
    _check_multiple("height", height, model.size_multiple)
    _check_multiple("width", width, model.size_multiple)
    step = model.frame_multiple
    if num_frames % step != 1 % step:
        below = (num_frames - 1) // step * step + 1
        raise InvalidRequest(
            f"num_frames is {num_frames}; this model's VAE takes {step}k + 1 frames",
            hint=f"use --num-frames {below} or {below + step}",
        )
    if request.guidance_scale_2 is not None and defaults.guidance_scale_2 is None:
        raise InvalidRequest(
            "guidance_scale_2 is for models with two transformers; this one has one", hint="leave guidance_scale_2 out"
        )
    return ResolvedRequest(
        params=GenerationParams(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed if request.seed is not None else seed,
            num_inference_steps=request.num_inference_steps or defaults.num_inference_steps,
            guidance_scale=float(
                request.guidance_scale if request.guidance_scale is not None else defaults.guidance_scale
            ),
            # Unless both are left open, the second expert follows the first, as in WanPipeline.
            guidance_scale_2=request.guidance_scale_2
            if request.guidance_scale_2 is not None or request.guidance_scale is not None
            else defaults.guidance_scale_2,
            max_sequence_length=request.max_sequence_length or 512,
            frames=FrameSpec(height=height, width=width, num_frames=num_frames),
        ),
        fps=float(request.fps or defaults.fps),
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
