"""Bytes of weights that a backend folds while they are loaded, against what backends made of them."""

from __future__ import annotations

import dataclasses
import math

import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat.policies.facts import TensorFact
from wan_compat.policies.models import decide_model
from wan_compat.policies.planning.job import shape_of
from wan_compat.policies.planning.shapes import ModelShape
from wan_compat.policies.planning.weights import ComponentWeights
from wan_compat.protocol.sources import Quantization
from wan_compat.supervisor.inspection import read_model

# Bytes of the parameters of the tiny text-to-video model, loaded with torchao 0.18.0 and optimum-quanto 0.2.7.
MEASURED = [
    ("transformer", "torchao", "int8", "float32", 61_200),
    ("transformer", "torchao", "int8", "bfloat16", 56_192),
    ("transformer", "torchao", "fp8", "float32", 60_448),
    ("transformer", "torchao", "fp8", "bfloat16", 55_440),
    ("transformer", "quanto", "int8", "float32", 40_480),
    ("transformer", "quanto", "int4", "float32", 31_200),
    ("transformer", "quanto", "fp8", "bfloat16", 33_872),
    ("text_encoder", "torchao", "int8", "float32", 39_616),
    ("text_encoder", "torchao", "fp8", "bfloat16", 30_912),
    ("text_encoder", "quanto", "int8", "float32", 51_072),
    ("text_encoder", "quanto", "int4", "float32", 44_928),
    ("text_encoder", "quanto", "fp8", "bfloat16", 33_728),
]


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    found = shape_of(decide_model(read_model(str(tiny_model("t2v"))), threads=1, memory_limit_bytes=1 << 40))
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "backend", "kind", "dtype", "measured"), MEASURED)
def test_folded_weights_take_what_backends_made_of_them(name, backend, kind, dtype, measured, shape):
    folded = dataclasses.replace(shape.weights[name], quantization=Quantization(backend=backend, kind=kind))
    # torchao's to the byte; quanto's scales follow the precision.
    assert folded.bytes_in(dtype) == pytest.approx(measured, rel=0 if backend == "torchao" else 0.05)
    assert folded.unfolding(dtype) > 0 == shape.weights[name].unfolding(dtype)


# What one matrix is in a repository that was quantised and saved by the same versions, and the bytes that it then takes.
PACKED = {
    "torchao int8": {"._weight_qdata": ("I8", 24, 24), "._weight_scale": ("F32", 24, 1), "._weight_zero_point": ("I8", 24, 1)},
    "torchao fp8": {"._weight_qdata": ("F8_E4M3", 24, 24), "._weight_scale": ("F32", 24, 1)},
    "quanto int8": {".weight._data": ("I8", 24, 24)},
    "quanto int4": {".weight._data._data": ("U8", 12, 24)},
    "quanto fp8": {".weight._data": ("F8_E4M3", 24, 24)},
}  # fmt: skip


def packed(kind: str, layer: str) -> ComponentWeights:
    tensors = {
        f"{layer}{name}": TensorFact(dtype, size, math.prod(size) * (4 if dtype == "F32" else 1))
        for name, (dtype, *shape) in PACKED[kind].items()
        for size in [tuple(shape)]
    }
    return ComponentWeights("transformer", "WanTransformer3DModel", tensors)


@pytest.mark.parametrize(
    ("kind", "bytes_"),
    [("torchao int8", 696), ("torchao fp8", 672), ("quanto int8", 576), ("quanto int4", 288), ("quanto fp8", 576)],
)
def test_matrices_that_come_quantised_count_as_they_lie_in_their_files(kind, bytes_, shape):
    weights = packed(kind, "blocks.0.attn1.to_q")
    assert weights.bytes_in("float32") == weights.bytes_in("bfloat16") == bytes_
    assert weights.is_packed and not shape.weights["transformer"].is_packed


def test_eight_bit_floats_of_layers_that_stay_in_float32_are_widened():
    """Only quanto quantises the layers of time."""
    assert packed("quanto fp8", "condition_embedder.time_embedder.linear_2").bytes_in("bfloat16") == 4 * 576
    assert packed("quanto int8", "condition_embedder.time_embedder.linear_2").bytes_in("bfloat16") == 576
