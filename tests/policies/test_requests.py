"""Defaults of the families, and sizes that are refused rather than rounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policies.test_models import CONFIGS, FILES, INDEX, decide, facts
from wan_compat.policies.requests import resolve_request
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.values import GenerationRequest

WAN21 = decide(facts())
A14B = decide(
    facts(
        [*FILES, "transformer_2/config.json", "transformer_2/diffusion_pytorch_model.safetensors"],
        INDEX | {"boundary_ratio": 0.875, "transformer_2": ["diffusers", "WanTransformer3DModel"]},
        CONFIGS | {"transformer_2": CONFIGS["transformer"]},
    )
)
TI2V = decide(
    facts(
        configs=CONFIGS
        | {
            "transformer": {"in_channels": 48, "out_channels": 48, "patch_size": [1, 2, 2]},
            "vae": {"z_dim": 48, "scale_factor_spatial": 16},
        }
    )
)


def resolve(model, **fields):
    return resolve_request(GenerationRequest(model="/models/m", prompt="p", **fields), model, seed=77)


@pytest.mark.parametrize(
    ("model", "size", "steps", "guidance", "fps"),
    [
        (WAN21, (480, 832, 81), 50, (5.0, None), 16.0),
        (A14B, (720, 1280, 81), 40, (4.0, 3.0), 16.0),
        (TI2V, (704, 1280, 121), 50, (5.0, None), 24.0),
    ],
)
def test_defaults_are_those_of_the_family(model, size, steps, guidance, fps):
    resolved = resolve(model)
    frames = resolved.params.frames
    assert (frames.height, frames.width, frames.num_frames) == size
    assert resolved.params.num_inference_steps == steps
    assert (resolved.params.guidance_scale, resolved.params.guidance_scale_2) == guidance
    assert resolved.fps == fps and resolved.params.seed == 77


def test_second_guidance_follows_the_first_when_that_is_given():
    assert resolve(A14B, guidance_scale=2.0).params.guidance_scale_2 is None
    assert resolve(A14B, guidance_scale_2=2.0).params.guidance_scale_2 == 2.0


def test_seed_of_the_request_wins():
    assert resolve(WAN21, seed=0).params.seed == 0


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"height": 70}, "--height 64 or 80"),
        ({"width": 1000}, "--width 992 or 1008"),
        ({"num_frames": 80}, "--num-frames 77 or 81"),
        ({"num_frames": 2}, "--num-frames 1 or 5"),
    ],
)
def test_size_that_does_not_fit_names_the_nearest_that_do(fields, hint):
    with pytest.raises(InvalidRequest) as caught:
        resolve(WAN21, **fields)
    assert caught.value.hint is not None and caught.value.hint.endswith(hint.removeprefix("use "))


@given(st.integers(16, 4096), st.integers(1, 4001))
def test_every_size_is_taken_exactly_or_refused(height, frames):
    try:
        resolved = resolve(WAN21, height=height, num_frames=frames)
    except InvalidRequest:
        assert height % 16 or frames % 4 != 1
    else:
        assert (resolved.params.frames.height, resolved.params.frames.num_frames) == (height, frames)
