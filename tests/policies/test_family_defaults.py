"""What is done where a request says nothing: the family's own numbers, as the compatibility registry has them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import wan_compat
from tests.policies.test_tasks import decide
from wan_compat.policies.family_defaults import _ONE_EXPERT as OF_RELATIVES
from wan_compat.policies.family_defaults import family_defaults
from wan_compat.policies.pipeline_parts import Weights
from wan_compat.policies.requests import resolve_request
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.values import GenerationRequest

REGISTRY = Path(wan_compat.__file__).parent / "data" / "compatibility_registry.json"
# An official model of each kind, as the table of test_tasks.py calls it.
OFFICIAL = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("t2v", ()),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": ("i2v", ("image",)),
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers": ("flf2v", ("image", "last_image")),
    "Wan-AI/Wan2.1-VACE-1.3B-diffusers": ("vace", ()),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": ("a14b", ()),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": ("i2v22", ("image",)),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": ("ti2v", ()),
    "linoyts/Wan2.2-VACE-Fun-14B-diffusers": ("vace22", ()),
}


@pytest.mark.parametrize("repository", OFFICIAL)
def test_defaults_are_those_of_the_registry(repository):
    known = json.loads(REGISTRY.read_text())["models"][repository]["defaults"]
    name, roles = OFFICIAL[repository]
    defaults = family_defaults(decide(name, None, *roles))
    for field in ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "fps"):
        assert getattr(defaults, field) == known[field], field
    assert defaults.guidance_scale_2 == known.get("guidance_scale_2")


# The relatives whose weights all have one size; SkyReels-V2's larger ones are not told apart by their weights.
RELATIVES: dict[str, Weights] = {
    "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers": "skyreels",
    "Skywork/SkyReels-V2-I2V-14B-540P-Diffusers": "skyreels_image",
    "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers": "skyreels_df",
    "nvidia/ChronoEdit-14B-Diffusers": "chronoedit",
    "decart-ai/Lucy-Edit-Dev": "lucy",
    "nvidia/AnyFlow-Wan2.1-T2V-1.3B-Diffusers": "anyflow",
    "nvidia/AnyFlow-Wan2.1-T2V-14B-Diffusers": "anyflow",
    "nvidia/AnyFlow-FAR-Wan2.1-1.3B-Diffusers": "anyflow_far",
    "nvidia/AnyFlow-FAR-Wan2.1-14B-Diffusers": "anyflow_far",
    "BestWishYsh/Helios-Base": "helios",
    "BestWishYsh/Helios-Mid": "helios_pyramid",
    "BestWishYsh/Helios-Distilled": "helios_distilled",
    "Wan-AI/Wan2.2-Animate-2-14B-Diffusers": "animate2",
    "Wan-AI/Wan2.2-Animate-2-14B-Distilled-Diffusers": "animate2_distilled",
}


@pytest.mark.parametrize("repository", RELATIVES)
def test_defaults_of_relatives_are_those_of_the_registry_and_can_be_asked_for(repository):
    known = json.loads(REGISTRY.read_text())["models"][repository]["defaults"]
    defaults = dataclasses.asdict(OF_RELATIVES[RELATIVES[repository]])
    assert {field: known.get(field) for field in defaults} == defaults
    assert known["num_frames"] % 4 == 1


def resolve(name, *roles, task=None, **fields):
    return resolve_request(GenerationRequest(model="m", prompt="p", **fields), decide(name, task, *roles), seed=1)


def test_one_frame_is_all_that_t2i_makes():
    assert resolve("t2v", task="t2i").params.frames.num_frames == 1
    with pytest.raises(InvalidRequest, match="t2i makes one frame, not 5"):
        resolve("t2v", task="t2i", num_frames=5)


def test_a_strength_that_leaves_no_step_is_refused_with_one_that_does():
    with pytest.raises(InvalidRequest, match="leaves no step") as caught:
        resolve("t2v", "video", strength=0.1, num_inference_steps=4)
    assert "--strength 0.25" in caught.value.fixes[0]
    assert resolve("t2v", "video", strength=0.25, num_inference_steps=4).params.strength == 0.25
