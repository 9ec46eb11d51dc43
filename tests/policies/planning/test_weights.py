"""Bytes of weights that a backend folds while they are loaded, against what backends made of them."""

from __future__ import annotations

import dataclasses

import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat.policies.models import decide_model
from wan_compat.policies.planning.job import shape_of
from wan_compat.policies.planning.shapes import ModelShape
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
