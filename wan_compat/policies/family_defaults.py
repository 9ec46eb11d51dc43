"""What a family's authors recommend, for what a request leaves open: sizes, steps, guidance, frame rate.

From the README files and shared configurations of Wan-Video/Wan2.1 and Wan2.2; of the relatives, from the examples and
call arguments of their pipelines in diffusers. What a scheduler is made with, the flow
shift among it, stays as the model's own scheduler_config.json has it. The compatibility registry says the same for
each official model (`defaults`); a test compares the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wan_compat.policies.models import ModelDecision
from wan_compat.policies.pipelines import Weights


@dataclasses.dataclass(frozen=True)
class FamilyDefaults:
    """`height` and `width` in pixels, `fps` of the file; `guidance_scale_2` is the second expert's."""

    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    fps: float


WAN21 = FamilyDefaults(480, 832, 81, 50, 5.0, None, 16.0)
WAN22_TI2V_5B = FamilyDefaults(704, 1280, 121, 50, 5.0, None, 24.0)
_TWO_EXPERTS: Mapping[Weights, FamilyDefaults] = {
    "text_only": FamilyDefaults(720, 1280, 81, 40, 4.0, 3.0, 16.0),
    "image": FamilyDefaults(720, 1280, 81, 40, 3.5, 3.5, 16.0),
    "vace": FamilyDefaults(480, 832, 81, 50, 5.0, None, 16.0),
}
# Weights that run through modular blocks -> the same weights elsewhere.
_SAME: Mapping[Weights, Weights] = {
    "modular_text": "text",
    "modular_text_2": "text_only",
    "modular_image": "image_clip",
    "modular_pair": "image_pair",
    "modular_image_2": "image",
    "modular_vace": "vace",
    "modular_helios": "helios",
    "modular_helios_pyramid": "helios_pyramid",
    "modular_helios_distilled": "helios_distilled",
}
_ONE_EXPERT: Mapping[Weights, FamilyDefaults] = {
    "text_image": WAN22_TI2V_5B,
    "image_clip": FamilyDefaults(480, 832, 81, 40, 5.0, None, 16.0),
    "image_pair": FamilyDefaults(720, 1280, 81, 50, 5.5, None, 16.0),
    "animate": FamilyDefaults(720, 1280, 77, 20, 1.0, None, 30.0),
    "skyreels": FamilyDefaults(544, 960, 97, 50, 6.0, None, 24.0),
    "skyreels_image": FamilyDefaults(544, 960, 97, 50, 5.0, None, 24.0),
    "skyreels_df": FamilyDefaults(544, 960, 97, 50, 6.0, None, 24.0),
    "chronoedit": FamilyDefaults(480, 832, 5, 50, 5.0, None, 16.0),
    "lucy": FamilyDefaults(480, 832, 81, 50, 5.0, None, 24.0),
    "anyflow": FamilyDefaults(480, 832, 81, 4, 1.0, None, 16.0),
    "anyflow_far": FamilyDefaults(480, 832, 81, 4, 1.0, None, 16.0),
    "helios": FamilyDefaults(384, 640, 129, 50, 5.0, None, 24.0),
    "helios_pyramid": FamilyDefaults(384, 640, 129, 30, 5.0, None, 24.0),
    "helios_distilled": FamilyDefaults(384, 640, 129, 6, 1.0, None, 24.0),
    "animate2": FamilyDefaults(800, 640, 81, 40, 3.0, None, 24.0),
    "animate2_distilled": FamilyDefaults(800, 640, 81, 10, 1.0, None, 24.0),
}


def family_defaults(model: ModelDecision) -> FamilyDefaults:
    """Return the defaults of a model's weights; a pipeline of the repository's own is judged by what its parts are."""
    defaults = _of_weights(model)
    if model.guidance_scale is None:
        return defaults
    return dataclasses.replace(defaults, guidance_scale=model.guidance_scale)


def _of_weights(model: ModelDecision) -> FamilyDefaults:
    two = has_two_experts(model)
    weights = model.way.weights if model.way is not None else ("text_only" if two else "text")
    weights = _SAME.get(weights, weights)
    if two and weights in _TWO_EXPERTS:
        return _TWO_EXPERTS[weights]
    if weights not in _ONE_EXPERT and model.vae_config.get("z_dim") == 48:
        return WAN22_TI2V_5B
    return _ONE_EXPERT.get(weights, WAN21)


def has_two_experts(model: ModelDecision) -> bool:
    return any(component.name == "transformer_2" for component in model.pipeline.components)
