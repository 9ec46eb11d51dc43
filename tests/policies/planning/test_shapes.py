"""Sizes from configurations, which are a model's own words: none makes planning long, and nonsense counts as the default."""

from __future__ import annotations

import dataclasses

import pytest

from wan_compat.policies.planning.choice import choose
from wan_compat.policies.planning.courses import Job
from wan_compat.policies.planning.machine import MachineFacts
from wan_compat.policies.planning.shapes import VaeShape, denoiser_shape, vae_shape

GB = 10**9


@pytest.mark.parametrize("value", [1 << 63, 0, -1, 1.5, True, None, "x", [], [0], [[1]], {}])
def test_what_is_no_sensible_number_counts_as_the_default(value):
    names = [field.name for field in dataclasses.fields(VaeShape) if field.name not in ("is_residual", "out_channels")]
    assert vae_shape(dict.fromkeys(names, value)) == vae_shape({})
    for class_name in ("WanTransformer3DModel", "AnyFlowFARTransformer3DModel", "WanAnimate2Transformer3DModel"):
        keys = ("attention_head_dim", "ffn_dim", "num_layers", "patch_size", "chunk_partition", "full_chunk_limit")
        strange = denoiser_shape(dict.fromkeys(keys, value), class_name, expand_timesteps=False)
        assert strange == denoiser_shape({}, class_name, expand_timesteps=False)


def test_a_vae_has_no_more_blocks_than_can_be_walked_through():
    """A million of them held `plan`, and so a supervisor, for minutes."""
    assert vae_shape({"num_res_blocks": 64}).num_res_blocks == 64
    assert vae_shape({"num_res_blocks": 65}) == vae_shape({"num_res_blocks": 1_000_000}) == vae_shape({})


def test_chunks_that_are_longer_than_any_video_leave_nothing_to_propose(official):
    shape = official("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    far = denoiser_shape({"chunk_partition": [64] * 3}, "AnyFlowFARTransformer3DModel", expand_timesteps=False)
    odd = dataclasses.replace(shape, pipeline_class="AnyFlowFARPipeline", denoiser=far)
    tiny = MachineFacts(GB, GB, GB, 1)
    assert choose(odd, Job(480, 832, 81), tiny).nearest is None
