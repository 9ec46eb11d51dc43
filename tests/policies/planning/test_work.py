"""How long a first step can take follows from its sizes, and is no less than any machine would need."""

from __future__ import annotations

import types
from typing import Any

import pytest

from wan_compat.policies.facts import TensorFact
from wan_compat.policies.limits import LEAST_PHASE_S, LONGEST_PHASE_S
from wan_compat.policies.planning.courses import Job
from wan_compat.policies.planning.machine import GpuFacts
from wan_compat.policies.planning.shapes import ModelShape, model_shape
from wan_compat.policies.planning.work import first_step_s, forward_operations

SMALL = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}  # Wan 2.1 1.3B


def shape(transformer: dict[str, Any], parameters: int) -> ModelShape:
    tensors = {"transformer": {"blocks.0.weight": TensorFact("BF16", (parameters,), 2 * parameters)}}
    return model_shape("WanPipeline", {"transformer": "WanTransformer3DModel"}, tensors, transformer, {})


def on(device: str, threads: int = 8) -> Any:
    return types.SimpleNamespace(device=device, threads=threads)


@pytest.mark.parametrize(
    ("transformer", "job", "published"),
    [
        # Counted by hand from the sizes in the models' configurations, 32,760 and 75,600 tokens.
        (SMALL, Job(480, 832, 81), 2.8e14),
        ({}, Job(720, 1280, 81), 6.5e15),
    ],
)
def test_a_pass_is_counted_as_its_matrices_are(transformer, job, published):
    assert forward_operations(shape(transformer, 10), job) == pytest.approx(published, rel=0.05)


def test_larger_videos_models_and_slower_devices_may_take_longer():
    small, large = shape(SMALL, 1_400_000_000), shape({}, 14_000_000_000)
    clip, video = Job(256, 256, 17), Job(480, 832, 81)
    assert LEAST_PHASE_S["denoise"] < first_step_s(small, clip, on("cuda"))
    assert first_step_s(small, clip, on("cuda")) < first_step_s(small, video, on("cuda"))
    assert first_step_s(small, video, on("cuda")) < first_step_s(small, video, on("cpu"))
    assert first_step_s(small, video, on("cuda")) < first_step_s(large, video, on("cuda"))
    assert first_step_s(small, video, on("cpu")) < first_step_s(small, video, on("cpu", 1))
    assert first_step_s(small, video, on("cpu", 64)) == first_step_s(small, video, on("cpu"))
    assert first_step_s(large, video, on("cuda")) < 86400
    assert first_step_s(large, Job(720, 1280, 81), on("cpu")) == LONGEST_PHASE_S


def test_a_gpu_that_computes_bfloat16_itself_is_given_less():
    small, video = shape(SMALL, 1_400_000_000), Job(480, 832, 81)
    recent, old = (GpuFacts("card", 1, 1, capability) for capability in ((8, 6), (7, 5)))
    assert first_step_s(small, video, on("cuda"), recent) < 2 * 3600
    assert first_step_s(small, video, on("cuda"), old) == first_step_s(small, video, on("cuda"))
    assert first_step_s(small, video, on("cpu"), recent) == first_step_s(small, video, on("cpu"))


def test_two_prompts_take_two_passes():
    small, video = shape(SMALL, 1_400_000_000), Job(480, 832, 81)
    one = first_step_s(small, Job(480, 832, 81, guidance=False), on("cuda")) - LEAST_PHASE_S["denoise"]
    two = first_step_s(small, video, on("cuda")) - LEAST_PHASE_S["denoise"]
    assert two == pytest.approx(2 * one)
