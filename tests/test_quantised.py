"""Weights in fewer bits, by whichever backend is installed here: real workers, on the processor.

Nothing is installed by these tests, and each says what it lacks. The suite has none of the backends (docs/layouts.md says
with which versions this was run); what planning counts for them without one is in tests/policies/planning/test_weights.py.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.assets.tiny_wan import tiny_model
from tests.test_layouts import SIZE
from wan_compat import GenerationRequest, Supervisor, VideoGenerationResult
from wan_compat.policies.models import decide_model
from wan_compat.policies.planning.job import shape_of
from wan_compat.protocol.sources import Quantization
from wan_compat.supervisor.inspection import read_model

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]  # each kind loads its own backend, which takes its time

MODULES = {"torchao": "torchao", "quanto": "optimum.quanto", "bitsandbytes": "bitsandbytes"}
KINDS = [("torchao", "int8"), ("torchao", "fp8"), ("quanto", "int8"), ("quanto", "int4"), ("quanto", "fp8")]
PARTS = ("transformer", "text_encoder")

# In a process of its own: pytest's has no torch. Loads a part as a worker would, and counts its bytes.
COUNT = """
import json, sys
import torch
from wan_compat.protocol.sources import Quantization
from wan_compat.workers.memory_count import _parts
from wan_compat.workers.sources.quantize import quantization_config
folder, part, backend, kind = sys.argv[1:]
if part == "transformer":
    from diffusers import WanTransformer3DModel
    config = quantization_config(Quantization(backend=backend, kind=kind), "diffusers", torch.float32)
    made = WanTransformer3DModel.from_pretrained(f"{folder}/{part}", torch_dtype=torch.float32, quantization_config=config)
else:
    from transformers import UMT5EncoderModel
    config = quantization_config(Quantization(backend=backend, kind=kind), "transformers", torch.float32)
    made = UMT5EncoderModel.from_pretrained(f"{folder}/{part}", dtype=torch.float32, quantization_config=config)
held = {id(inner): inner.untyped_storage().nbytes() for weight in made.parameters() for inner in _parts(weight)}
print(json.dumps({"bytes": sum(held.values())}))
"""

# Saves a transformer that is quantised already, as repositories have them.
SAVE = """
import sys
import torch
from diffusers import WanTransformer3DModel
from wan_compat.protocol.sources import Quantization
from wan_compat.workers.sources.quantize import quantization_config
folder, target, backend, kind = sys.argv[1:]
config = quantization_config(Quantization(backend=backend, kind=kind), "diffusers", torch.float32)
made = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32, quantization_config=config)
made.save_pretrained(target, safe_serialization=True)
"""


def require(backend: str) -> None:
    try:
        there = importlib.util.find_spec(MODULES[backend]) is not None
    except ModuleNotFoundError:  # the package around it is not there either
        there = False
    if not there:
        pytest.skip(f"{backend} is not installed")


def apart(program: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def generate(supervisor: Supervisor, model: Path, **fields: Any) -> VideoGenerationResult:
    wanted = {"prompt": "a red ball bounces", "seed": 5, "count_memory": True, "recover": False, "device": "cpu"}
    return supervisor.generate(GenerationRequest(model=str(model), **(SIZE | wanted | fields)))


@pytest.fixture(scope="module")
def plain(supervisor: Supervisor) -> VideoGenerationResult:
    return generate(supervisor, tiny_model("t2v"), precision="float32")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("backend", "kind"), KINDS)
def test_a_part_in_fewer_bits_makes_whole_frames_and_takes_what_was_planned(backend, kind, part, supervisor, plain):
    require(backend)
    result = generate(supervisor, tiny_model("t2v"), precision="float32", quantize={part: f"{backend}:{kind}"})
    assert result.frames is not None and plain.frames is not None
    difference = np.abs(result.frames.frames.astype(int) - plain.frames.frames).mean()
    assert result.frames.frames.shape == plain.frames.frames.shape and result.frames.frames.std() > 5

    shape = shape_of(decide_model(read_model(str(tiny_model("t2v"))), threads=1, memory_limit_bytes=1 << 40))
    assert shape is not None
    weights = shape.weights[part]
    folded = type(weights)(
        weights.name, weights.class_name, weights.tensors, Quantization(backend=backend, kind=kind)
    ).bytes_in("float32")
    counted = json.loads(apart(COUNT, str(tiny_model("t2v")), part, backend, kind))["bytes"]
    print(f"{part} {backend} {kind}: mean difference {difference:.2f}, planned {folded}, tensors {counted}, "
          f"plain {weights.bytes_in('float32')}, peaks {result.peak}")  # fmt: skip
    assert counted < weights.bytes_in("float32")
    # quanto's scales follow the precision, and torchao's are to the byte.
    assert folded == pytest.approx(counted, rel=0.0 if backend == "torchao" else 0.05)


@pytest.mark.parametrize(("backend", "kind"), KINDS)
def test_a_repository_with_a_part_that_is_quantised_already_loads(backend, kind, supervisor, plain, tmp_path):
    require(backend)
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("t2v"), folder)
    shutil.rmtree(folder / "transformer")
    apart(SAVE, str(tiny_model("t2v") / "transformer"), str(folder / "transformer"), backend, kind)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == backend
    result = generate(supervisor, folder, precision="float32")
    assert result.frames is not None and plain.frames is not None
    difference = np.abs(result.frames.frames.astype(int) - plain.frames.frames).mean()
    print(f"{backend} {kind} in the repository: mean difference {difference:.2f}")
    assert result.frames.frames.std() > 5
