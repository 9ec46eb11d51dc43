"""Plans in a real worker: lossless ones change no byte, lossy ones are close and named, impossible ones are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.assets.tiny_wan import tiny_model
from tests.workers.harness import ZygoteProcess, parameters, pipeline_spec
from wan_compat.protocol import messages as m
from wan_compat.protocol.plan import CacheSpec, GroupOffload, PlanSpec, Tiling

# name -> (plan, what is reported). None of these may change a byte.
LOSSLESS: dict[str, tuple[PlanSpec, set[str]]] = {
    "leave": (PlanSpec(text_encoder="leave"), {"text_encoder:leaves"}),
    "full": (PlanSpec(offload="full", vae_slicing=True), {"offload:full", "vae_slicing"}),
    "files": (
        PlanSpec(offload="group", group=GroupOffload(disk=True), text_encoder="leave"),
        {"offload:group", "weights:in_files"},
    ),
    "leaf": (PlanSpec(offload="group", group=GroupOffload()), {"offload:group:leaf_level"}),
    "block": (PlanSpec(offload="group", group=GroupOffload(level="block_level")), {"offload:group:block_level"}),
    "native": (PlanSpec(attention_backend="native"), {"attention:native"}),
}
LOSSY: dict[str, tuple[PlanSpec, set[str]]] = {
    "fp8": (PlanSpec(layerwise_casting="float8_e4m3fn"), {"layerwise_casting:float8_e4m3fn"}),
    "tiles": (PlanSpec(tiling=Tiling(size=64, stride=48)), {"vae_tiling:64/48"}),
    "first_block": (PlanSpec(cache=CacheSpec(name="first_block", threshold=0.5)), {"cache:first_block"}),
    "mag": (PlanSpec(cache=CacheSpec(name="mag", ratios=(1.0,) * 8)), {"cache:mag"}),
    "pyramid": (PlanSpec(cache=CacheSpec(name="pyramid_attention")), {"cache:pyramid_attention"}),
    "taylorseer": (PlanSpec(cache=CacheSpec(name="taylorseer", skip_range=2)), {"cache:taylorseer"}),
}


def run(zygote: ZygoteProcess, confined: bool, kind: str, jobs: int = 1, **choices: Any) -> tuple[Any, list[Any]]:
    model = tiny_model(kind)
    with zygote.spawn(model, confined=confined) as worker:
        loaded = worker.start(model, **choices)
        results = [worker.generate(parameters(num_inference_steps=4), job=job + 1) for job in range(jobs)]
        worker.kill()
    for result in results:
        assert isinstance(result.end, m.Generated), result.end
    return loaded, results


@pytest.fixture(scope="module")
def unplanned(zygote: ZygoteProcess, confined: bool) -> dict[str, np.ndarray]:
    """Frames of every kind without a plan."""
    return {kind: run(zygote, confined, kind)[1][0].pixels for kind in ("t2v", "a14b", "ti2v", "vace")}


@pytest.mark.parametrize("kind", ["t2v", "a14b", "ti2v", "vace"])
@pytest.mark.parametrize("name", ["leave", "files"])
def test_plans_for_a_machine_with_little_memory_change_no_byte(
    zygote: ZygoteProcess, confined: bool, unplanned: dict[str, np.ndarray], name: str, kind: str
) -> None:
    plan, words = LOSSLESS[name]
    loaded, results = run(zygote, confined, kind, jobs=2, plan=plan)
    assert set(loaded.applied) == words
    assert all(np.array_equal(result.pixels, unplanned[kind]) for result in results)
    assert [set(result.end.applied) for result in results] == [set(), {"embeddings:kept"}]


@pytest.mark.parametrize("name", ["full", "leaf", "block", "native"])
def test_other_lossless_plans_change_no_byte(
    zygote: ZygoteProcess, confined: bool, unplanned: dict[str, np.ndarray], name: str
) -> None:
    plan, words = LOSSLESS[name]
    loaded, (result,) = run(zygote, confined, "a14b", plan=plan)
    assert set(loaded.applied) == words
    assert np.array_equal(result.pixels, unplanned["a14b"])


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_plans_are_close_and_named(
    zygote: ZygoteProcess, confined: bool, unplanned: dict[str, np.ndarray], name: str
) -> None:
    plan, words = LOSSY[name]
    loaded, (first, again) = run(zygote, confined, "t2v", jobs=2, plan=plan)
    assert {*loaded.applied, *first.end.applied} == words
    difference = np.abs(first.pixels.astype(int) - unplanned["t2v"])
    assert difference.mean() < 12 and first.pixels.std() > 5
    assert np.array_equal(first.pixels, again.pixels)  # nothing of a cache is left over for the next job


def test_tiles_stream(zygote: ZygoteProcess, confined: bool) -> None:
    loaded, _ = run(zygote, confined, "t2v", plan=PlanSpec(tiling=Tiling(size=64, stride=48)))
    assert loaded.streaming and "in tiles" not in loaded.streaming_reason


@pytest.mark.parametrize(
    ("plan", "word"),
    [
        (PlanSpec(offload="model"), "GPU"),
        (PlanSpec(offload="sequential"), "GPU"),
        (PlanSpec(offload="group", group=GroupOffload(use_stream=True)), "stream"),
        (PlanSpec(group=GroupOffload()), "'none'"),
        (PlanSpec(offload="group", group=GroupOffload(disk=True), layerwise_casting="float8_e4m3fn"), "another type"),
        (PlanSpec(tiling=Tiling(size=64, stride=96)), "tiles of 64"),
        (PlanSpec(cache=CacheSpec(name="mag")), "ratios"),
        (PlanSpec(attention_backend="flash_hub"), "downloads"),
        (PlanSpec(attention_backend="warp"), "warp"),
        (PlanSpec(attention_backend="sage"), "sage"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused_with_its_cause(
    zygote: ZygoteProcess, confined: bool, plan: PlanSpec, word: str
) -> None:
    model = tiny_model("t2v")
    with zygote.spawn(model, confined=confined) as worker:
        worker.handshake()
        answer = worker.load(pipeline_spec(model, plan=plan))
        worker.kill()
    assert isinstance(answer, m.Failed) and word in answer.message, answer
    assert answer.code in ("invalid_request", "model_not_compatible")


def test_memory_is_counted_by_phase_when_asked(zygote: ZygoteProcess, confined: bool) -> None:
    model = tiny_model("a14b")
    with zygote.spawn(model, confined=confined) as worker:
        worker.start(model)
        params = parameters(num_inference_steps=4)
        expected = worker.generate(params).pixels
        worker.count_memory = True
        result = worker.generate(params, job=2)
        worker.kill()
    assert isinstance(result.end, m.Generated)
    peaks = result.end.peak_allocated_bytes
    assert set(peaks) == {"text_encode", "denoise_high", "denoise_low", "decode"}
    assert all(peak > 500_000 for peak in peaks.values())  # the weights alone
    assert np.array_equal(result.pixels, expected)
