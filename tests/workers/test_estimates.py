"""What planning says before anything is loaded, against what a worker counts while it generates: within 15%.

Models of every shape that differs in memory, whole and tiled decoding, weights in files, a text encoder that leaves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.workers.harness import ZygoteProcess, parameters, pipeline_spec
from tests.workers.inside import in_torch_process
from wan_compat.policies.models import decide_model
from wan_compat.policies.planning.courses import Job
from wan_compat.policies.planning.estimate import Setting, estimate
from wan_compat.policies.planning.job import shape_of
from wan_compat.policies.planning.shapes import ModelShape
from wan_compat.policies.planning.weights import Dtype
from wan_compat.protocol import messages as m
from wan_compat.protocol.plan import GroupOffload, PlanSpec, Tiling
from wan_compat.protocol.values import FrameSpec
from wan_compat.supervisor.inspection import read_model

TOLERANCE = 0.15
IN_FILES = PlanSpec(offload="group", group=GroupOffload(level="block_level", disk=True))
TILED = PlanSpec(tiling=Tiling(size=64, stride=48))


def shape(kind: str) -> ModelShape:
    found = shape_of(decide_model(read_model(str(tiny_model(kind))), threads=1, memory_limit_bytes=1 << 40))
    assert found is not None
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "size", "plan", "changes"),
    [
        ("t2v", (128, 160, 9), PlanSpec(), {}),
        ("t2v_mid", (64, 96, 9), PlanSpec(), {}),
        ("t2v_mid", (64, 96, 9), PlanSpec(), {"dtype": "bfloat16"}),
        ("t2v_mid", (96, 128, 9), TILED, {}),
        ("t2v_mid", (96, 128, 9), TILED, {"streaming": "never"}),
        ("t2v_mid", (64, 96, 17), PlanSpec(), {"streaming": "never"}),
        ("t2v_mid", (64, 96, 9), IN_FILES, {}),
        ("t2v_mid", (64, 96, 9), PlanSpec(text_encoder="leave"), {}),
        ("a14b", (64, 96, 9), PlanSpec(), {}),
        ("ti2v", (128, 160, 9), PlanSpec(), {}),
    ],
)
def test_estimate_is_within_15_percent_of_what_a_worker_counts(
    kind: str,
    size: tuple[int, int, int],
    plan: PlanSpec,
    changes: dict[str, Any],
    zygote: ZygoteProcess,
    confined: bool,
) -> None:
    height, width, frames = size
    params = parameters(
        frames=FrameSpec(height=height, width=width, num_frames=frames), max_sequence_length=512, num_inference_steps=3
    )
    model = tiny_model(kind)
    with zygote.spawn(model, confined=confined) as worker:
        order = pipeline_spec(model, plan=plan, streaming=changes.get("streaming", "auto"))
        dtype: Dtype = changes.get("dtype", "float32")
        parts = tuple(
            part if part.dtype is None else part.model_copy(update={"dtype": dtype}) for part in order.components
        )
        worker.handshake()
        loaded = worker.load(order.model_copy(update={"components": parts}))
        assert isinstance(loaded, m.ModelLoaded), loaded
        worker.count_memory = True
        end = worker.generate(params).end
        worker.kill()
    assert isinstance(end, m.Generated), end
    setting = Setting("cpu", dtype, dtype, plan, streaming=changes.get("streaming") != "never", threads=1)
    said = estimate(shape(kind), Job(height, width, frames, text_tokens=512), setting)
    counted = end.peak_allocated_bytes
    assert max(item.counted for item in said.values()) == pytest.approx(max(counted.values()), rel=TOLERANCE)
    for phase in counted:
        ours = said["denoise_high" if phase.startswith("denoise") else phase].counted  # type: ignore[index]
        assert ours == pytest.approx(counted[phase], rel=TOLERANCE), phase


@in_torch_process
def test_planned_bytes_of_weights_are_those_of_the_loaded_tensors() -> None:
    import diffusers
    import torch
    import transformers

    for kind in ("t2v", "ti2v", "vace", "i2v"):
        found = shape(kind)
        for name, part in found.weights.items():
            library = diffusers if hasattr(diffusers, part.class_name) else transformers
            path = tiny_model(kind) / name
            for dtype in ("float32", "bfloat16", "float16"):
                wanted = getattr(torch, dtype)
                key = "torch_dtype" if library is diffusers else "dtype"
                loaded = getattr(library, part.class_name).from_pretrained(path, **{key: wanted})
                held = sum(tensor.numel() * tensor.element_size() for tensor in loaded.parameters())
                assert part.bytes_in(dtype) == held, (kind, name, dtype)
    compare_single_files()  # here, where torch is imported already
    compare_jobs_with_pictures()


def compare_single_files() -> None:
    """The same for matrices of 8 bits with scales, and of GGUF's blocks."""
    import tempfile

    from tests.assets import single_files as made
    from wan_compat.supervisor.model_parts import Parts, read_parts
    from wan_compat.workers.cancellation import Cancellation
    from wan_compat.workers.loader import _load_component

    with tempfile.TemporaryDirectory() as place:
        folder = made.wide_model(Path(place) / "wide")
        tensors = made.load(folder, "transformer")
        folded = {name for name, tensor in tensors.items() if tensor.ndim == 2}
        fp8, _ = made.scaled_fp8(tensors, lambda name: name in folded)
        made.save_raw({k: v for k, v in fp8.items() if k != "scaled_fp8"}, Path(place) / "wan.safetensors")
        made.save_gguf(tensors, Path(place) / "wan.gguf", "Q4_0", lambda name: name in folded)
        for file in (Path(place) / "wan.safetensors", Path(place) / "wan.gguf"):
            facts, _ = read_parts(str(file), Parts(str(folder)))
            decision = decide_model(facts, threads=1, memory_limit_bytes=1 << 40)
            found = shape_of(decision)
            assert found is not None
            for dtype in ("float32", "bfloat16"):
                part = next(item for item in decision.pipeline.components if item.name == "transformer")
                assert part.source is not None
                source = part.source.model_copy(update={"files": (file.name,)})
                order = part.model_copy(update={"dtype": dtype, "source": source})
                model = _load_component(order, place, Cancellation())
                held = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
                assert found.weights["transformer"].bytes_in(dtype) == held, (file.name, dtype)


def compare_jobs_with_pictures() -> None:
    """Estimates of jobs that are led by pictures, against what their generations take."""
    import numpy as np
    from PIL import Image

    from wan_compat.policies.planning.job import job_of
    from wan_compat.policies.requests import resolve_request
    from wan_compat.policies.tasks import Wish
    from wan_compat.protocol.values import GenerationRequest
    from wan_compat.workers.pipeline_loader import WanPipelineLoader

    pixels = np.random.default_rng(0).integers(0, 255, (9, 128, 160, 3), np.uint8)
    pictures = [Image.fromarray(frame) for frame in pixels]
    asked: dict[str, Any] = {"height": 128, "width": 160, "num_frames": 9, "num_inference_steps": 2}
    given: dict[str, dict[str, Any]] = {"i2v": {"image": pictures[0]}, "vace": {"video": pictures}}
    for kind, media in given.items():
        model = str(tiny_model(kind))
        wish = Wish(roles=("image",) if kind == "i2v" else ("video",))
        decision = decide_model(read_model(model), threads=1, memory_limit_bytes=1 << 40, wish=wish)
        found = shape_of(decision)
        assert found is not None
        params = resolve_request(GenerationRequest(model=model, prompt="a", **asked), decision, seed=1).params
        said = estimate(found, job_of(decision, params), Setting("cpu", "float32", "float32", PlanSpec(), threads=1))
        wrapper = WanPipelineLoader().load_wan_pipeline(model)
        counted = wrapper.generate("a", **asked, max_sequence_length=512, seed=1, count_memory=True, **media).peak
        for phase, size in counted.items():
            ours = said["denoise_high" if phase.startswith("denoise") else phase].counted  # type: ignore[index]
            assert abs(ours - size) <= TOLERANCE * size, (kind, phase, size, ours)
