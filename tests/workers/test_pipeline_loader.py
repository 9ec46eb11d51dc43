"""WanPipelineLoader and WanPipelineWrapper in this very process: the worker's ways, and the contract's names."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.workers import plans
from tests.workers.inside import in_torch_process

SMALL: dict[str, Any] = {
    "height": 64,
    "width": 96,
    "num_frames": 5,
    "num_inference_steps": 2,
    "max_sequence_length": 16,
    "seed": 7,
}


def load(kind: str, **options: Any) -> Any:
    from wan_compat.workers.pipeline_loader import WanPipelineLoader

    return WanPipelineLoader().load_wan_pipeline(str(tiny_model(kind)), **options)


def picture() -> Any:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    return Image.fromarray(pixels)


@in_torch_process
def test_every_plan_gives_every_task_the_same_frames() -> None:
    import numpy as np

    from wan_compat.protocol.plan import GroupOffload

    for kind in ("t2v", "i2v", "i2v22", "ti2v"):
        given = {**SMALL, **({"image": picture()} if kind.startswith("i2v") else {})}
        expected = load(kind).generate("a red ball", **given).frames.frames
        assert expected.shape == (5, 64, 96, 3) and expected.std() > 5
        for options in (
            {"text_encoder": "leave"},
            {"offload": "group", "group": GroupOffload(disk=True)},
            {"offload": "group", "group": GroupOffload(level="block_level")},
        ):
            wrapper = load(kind, **options)
            result = wrapper.generate("a red ball", **given)
            assert np.array_equal(result.frames.frames, expected), (kind, options)
            if kind == "i2v":
                again = wrapper.generate("a red ball", **given)
                assert np.array_equal(again.frames.frames, expected)
                assert "embeddings:kept" in again.metadata.optimizations_applied


@in_torch_process
def test_a_wrapper_of_somebody_elses_pipeline_makes_the_same_frames() -> None:
    import numpy as np

    from wan_compat.workers.pipeline_loader import WanPipelineWrapper

    ours = load("t2v").generate("a red ball", **SMALL).frames.frames
    theirs = WanPipelineWrapper(plans.pipeline("t2v"), {}).generate("a red ball", **SMALL)
    assert np.abs(ours.astype(int) - theirs.frames.frames).max() <= 1  # oneDNN's convolutions are the loader's
    assert theirs.success and theirs.metadata.generation_params["seed"] == 7
    assert "NOT SANDBOXED" in theirs.warnings[0]


@in_torch_process
def test_estimates_are_within_15_percent_of_what_is_counted() -> None:
    cast = {"layerwise_casting": "float8_e4m3fn"}
    for kind, options in (("t2v", cast), ("ti2v", {}), ("a14b", {"text_encoder": "leave"}), ("t2v_mid", {})):
        wrapper = load(kind, **options)
        size = {**SMALL, "height": 128, "width": 128, "num_frames": 9, "max_sequence_length": 64}
        estimate = wrapper.estimate_memory_usage(**size)
        result = wrapper.generate("a red ball", **size, count_memory=True)
        for phase, counted in result.peak.items():
            # A megabyte is the unit; below it, nothing can be told apart.
            assert abs(estimate.ram_mb[phase] * 1e6 - counted) <= 0.15 * counted + 1e6, (kind, phase, counted, estimate)
        assert estimate.peak_ram_mb == max(estimate.ram_mb.values()) and estimate.peak_vram_mb == 0
        tight = wrapper.estimate_memory_usage(**size, available_bytes=1000)
        assert estimate.fits and not tight.fits


@pytest.mark.long
@in_torch_process
def test_tiles_and_files_need_less_by_estimate_and_by_count() -> None:
    from wan_compat.protocol.plan import GroupOffload, Tiling

    size = {**SMALL, "height": 256, "width": 256, "num_inference_steps": 1}
    peaks = []
    for options in ({}, {"offload": "group", "group": GroupOffload(disk=True), "tiling": Tiling(size=64, stride=48)}):
        wrapper = load("t2v_mid", **options)
        counted = wrapper.generate("a", **size, count_memory=True).peak
        estimate = wrapper.estimate_memory_usage(**size)
        assert abs(estimate.ram_mb["decode"] * 1e6 - counted["decode"]) <= 0.15 * counted["decode"] + 1e6
        peaks.append(max(counted.values()))
    assert peaks[1] < 0.6 * peaks[0]


@in_torch_process
def test_precision_is_cast_as_from_pretrained_would_load_it() -> None:
    import torch

    from wan_compat.workers.pipeline_loader import WanPipelineLoader

    ours = WanPipelineLoader().configure_precision(plans.pipeline("vace"), "bfloat16")
    theirs = plans.pipeline("vace", torch.bfloat16)
    for name in ("transformer", "text_encoder"):
        for (key, one), (_, other) in zip(
            getattr(ours, name).named_parameters(), getattr(theirs, name).named_parameters(), strict=True
        ):
            assert one.dtype == other.dtype and torch.equal(one, other), key
    assert ours.vae.dtype == torch.float32
    assert WanPipelineLoader().configure_precision(plans.pipeline("t2v")).transformer.dtype == torch.float32


@in_torch_process
def test_without_a_gpu_everything_computes_on_the_cpu_and_moving_is_refused() -> None:
    from wan_compat.protocol.errors import InvalidRequest
    from wan_compat.workers.pipeline_loader import WanPipelineLoader

    loader = WanPipelineLoader()
    fitted = loader.apply_optimizations(plans.pipeline(), 0)
    assert fitted.applied == ["offload:full"] and fitted.plan.offload == "full"
    for strategy in ("sequential", "model", "magic"):
        try:
            loader.setup_cpu_offload(fitted.pipeline, strategy)
        except InvalidRequest as error:
            assert strategy in error.message
        else:
            raise AssertionError(strategy)
    assert loader.setup_cpu_offload(fitted.pipeline, "group") is fitted.pipeline


@in_torch_process
def test_less_room_on_a_gpu_means_a_plan_that_moves_more() -> None:
    from wan_compat.workers.pipeline_loader import plan_for

    weights = {"text_encoder": 11, "transformer": 28, "transformer_2": 28}
    found = [plan_for(weights, room, "cuda").offload for room in (200, 80, 48, 16)]
    assert found == ["none", "model", "model", "group"] or found == ["none", "model", "group", "group"]
    assert plan_for(weights, 0, "cpu").offload == "full"


@in_torch_process
def test_folders_that_are_no_pipeline_are_refused_by_name() -> None:
    from wan_compat.protocol.errors import ModelCorrupt, ModelIndexMissing, ModelNotCompatible
    from wan_compat.workers.pipeline_loader import WanPipelineLoader

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        index = folder / "model_index.json"
        for text, kind in (
            (None, ModelIndexMissing),
            ("{", ModelCorrupt),
            ("[]", ModelCorrupt),
            ('{"_class_name": ["a", "b"]}', ModelNotCompatible),
            ('{"_class_name": "WanPipeline", "vae": ["pipeline", "X"]}', ModelNotCompatible),
        ):
            if text is not None:
                index.write_text(text)
            try:
                WanPipelineLoader().load_wan_pipeline(str(folder))
            except kind:
                pass
            else:
                raise AssertionError(text)
        shutil.rmtree(folder)


@in_torch_process
def test_after_an_error_the_wrapper_generates_as_before() -> None:
    import numpy as np

    from wan_compat.protocol.errors import InvalidRequest

    wrapper = load("t2v", text_encoder="leave")
    expected = wrapper.generate("a red ball", **SMALL).frames.frames
    for wrong in ({"height": 65}, {"colour": "red"}, {"image": picture()}):
        try:
            wrapper.generate("a red ball", **{**SMALL, **wrong})
        except (InvalidRequest, ValueError):
            pass
        else:
            raise AssertionError(wrong)
    assert np.array_equal(wrapper.generate("a red ball", **SMALL).frames.frames, expected)


@in_torch_process
def test_the_acting_half_carries_a_plan_out_and_refuses_chunks_that_change_the_video() -> None:
    import types

    from wan_compat.protocol.errors import InvalidRequest
    from wan_compat.protocol.plan import PlanSpec, Tiling
    from wan_compat.workers.optimization_manager import OptimizationManager

    manager, made = OptimizationManager(), plans.pipeline()
    spec = PlanSpec(tiling=Tiling(size=128, stride=96))
    plan = types.SimpleNamespace(use_mixed_precision=True, dtype="bfloat16", device="cpu", spec=spec)
    assert manager.apply_memory_optimizations(made, plan) is made
    assert made.vae.use_tiling and made.vae.tile_sample_min_height == 128
    assert str(made.transformer.dtype) == "torch.bfloat16"
    assert manager.enable_chunked_processing(made, 4).vae.use_slicing
    try:
        manager.enable_chunked_processing(made, 16)
    except InvalidRequest as error:
        assert "16" in error.message
    else:
        raise AssertionError("it was taken")
