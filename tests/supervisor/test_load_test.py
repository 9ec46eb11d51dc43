"""Loading and the smallest clip in real workers, of models with and without media; and the whole way, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.workers import broken
from wan_compat import Supervisor
from wan_compat.policies.pipelines import ways_of
from wan_compat.policies.smoke_request import smoke_request
from wan_compat.protocol.errors import InvalidRequest, MemoryExceeded, UnusableFrames, WanCompatError
from wan_compat.supervisor.integration import IntegrationValidator
from wan_compat.supervisor.load_test import LoadTestReport, decided, load_and_test
from wan_compat.supervisor.performance_monitor import PerformanceMonitor


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def run(supervisor: Supervisor, kind: str, tmp_path: Path, **fields: Any) -> LoadTestReport:
    monitor = PerformanceMonitor(tmp_path / "history")
    return load_and_test(supervisor, str(tiny_model(kind)), smoke=True, monitor=monitor, **{"runs": 2, **fields})


def test_loading_alone_generates_nothing(supervisor: Supervisor):
    for worker in supervisor.status().workers:  # another test's may have the model loaded
        supervisor.kill_worker(worker.id)
    report = load_and_test(supervisor, str(tiny_model("t2v")), smoke=False)
    result = report.result
    assert report.verdict == "loads" and report.examination is None and result.frames is None and result.success
    assert result.timings.load_s > 0 and result.timings.denoise_s == 0 and result.memory_used > 1 << 20
    document = report.to_json()
    assert document["smoke_test"] is None and document["sandbox"]["tier"] in "AB" and document["verdict"] == "loads"


def test_a_smoke_test_tells_shape_memory_speed_and_verdict(supervisor: Supervisor, tmp_path: Path):
    report = run(supervisor, "t2v", tmp_path, runs=3)
    assert report.verdict == "generates" and not report.problems, report
    found = report.examination
    assert found is not None and found.smoke.output_shape == (5, 64, 96, 3) and len(found.runs) == 3
    assert found.memory is not None and len(found.memory.samples) == 3 and not found.memory.leaks
    assert found.performance is not None and found.performance.seconds > 0 and found.performance.baseline is None
    peak = report.result.peak
    assert {"text_encode_bytes", "denoise_high_bytes", "decode_bytes"} <= set(peak)
    # Counting slows: the runs that are timed are not counted.
    last = found.runs[-1].result
    assert last is not None and "decode_bytes" not in last.peak
    document = report.to_json()
    assert document["success"] is True and document["schema_version"] == 1 and document["frames"]["shape"][0] == 5
    for name in (
        "timings",
        "sandbox",
        "peak",
        "recovery",
        "smoke_test",
        "format_validation",
        "memory_test",
        "performance",
    ):
        assert document[name] is not None, name
    assert len(PerformanceMonitor(tmp_path / "history").history()) == 1


@pytest.mark.parametrize(
    ("kind", "task", "pipeline"),
    [
        ("t2v", "v2v", "WanVideoToVideoPipeline"),
        ("i2v", None, "WanImageToVideoPipeline"),
        ("vace", "vace", "WanVACEPipeline"),
    ],
)
def test_media_are_made_up_where_the_task_needs_them(supervisor, kind: str, task: str | None, pipeline: str, tmp_path):
    report = run(supervisor, kind, tmp_path, runs=1, **({"task": task} if task else {}))
    assert report.verdict == "generates", report.problems
    assert report.result.metadata.pipeline_class == pipeline


@pytest.mark.parametrize("kind", ["t2v", "a14b", "ti2v", "i2v", "i2v22", "flf2v", "vace"])
def test_the_smallest_clip_passes_the_models_own_checks_for_each_task(kind: str):
    import dataclasses

    decision = decided(str(tiny_model(kind)))
    assert decision.way is not None
    for way in ways_of(decision.way.weights):
        clip = smoke_request(dataclasses.replace(decision, way=way))
        assert clip.height % decision.size_multiple == 0 == clip.width % decision.size_multiple
        assert clip.height != clip.width and clip.num_frames == (1 if way.task == "t2i" else 5)
        assert set(way.inputs.needs) <= set(clip.media) and clip.num_inference_steps == 2


def test_what_ends_generating_ends_the_test_with_its_own_code(supervisor: Supervisor, tmp_path: Path):
    model = broken.copy("t2v", tmp_path)
    broken.fill(model, "vae", "decoder.conv_out.bias", float("nan"))
    with pytest.raises(UnusableFrames):
        load_and_test(supervisor, str(model), smoke=True, recover=False)
    assert load_and_test(supervisor, str(model), smoke=False).verdict == "loads"


def test_refusals_are_those_of_any_job(supervisor: Supervisor):
    model = str(tiny_model("t2v"))
    with pytest.raises(InvalidRequest, match="not animate"):
        load_and_test(supervisor, model, smoke=True, task="animate")
    with pytest.raises(MemoryExceeded):
        load_and_test(supervisor, model, smoke=True, memory_limit_bytes=300 << 20)


def test_the_whole_way_has_four_stages(supervisor: Supervisor):
    report = IntegrationValidator(supervisor).validate(str(tiny_model("t2v")))
    assert report.success, report
    assert [stage.name for stage in report.stages] == ["detect", "load", "generate", "encode"]
    detect, load, generate, encode = report.stages
    assert "wan_t2v" in detect.detail and "WanPipeline" in detect.detail and "tier" in load.detail
    assert encode.detail == "h264, 5 frames, 96x64, read back" and all(stage.seconds > 0 for stage in report.stages)
    assert generate.detail == "5 frames" and report.to_json()["success"] is True


@pytest.mark.parametrize(
    ("part", "name", "value", "fails"),
    [("vae", "decoder.conv_out.bias", float("nan"), "generate")],
)
def test_a_stage_that_fails_is_named_and_later_ones_were_not_begun(
    supervisor: Supervisor, tmp_path: Path, part: str, name: str, value: float, fails: str
):
    model = broken.copy("t2v", tmp_path)
    broken.fill(model, part, name, value)
    report = IntegrationValidator(supervisor).validate(str(model), recover=False)
    assert not report.success
    states = {stage.name: stage.success for stage in report.stages}
    assert states == {"detect": True, "load": True, "generate": False, "encode": None}
    assert next(stage for stage in report.stages if stage.name == fails).code == "unusable_frames"


def test_a_model_that_is_none_fails_at_the_first_stage(supervisor: Supervisor, tmp_path: Path):
    report = IntegrationValidator(supervisor).validate(str(tmp_path))
    assert [stage.success for stage in report.stages] == [False, None, None, None]
    assert report.stages[0].code


def test_an_encoder_that_fails_is_not_taken_for_a_model_that_does(supervisor: Supervisor, monkeypatch):
    from wan_compat.supervisor import delivery

    def refuses(*_: Any, **__: Any) -> Any:
        raise WanCompatError("no such encoder")

    monkeypatch.setattr(delivery.Delivery, "finish", refuses)
    report = IntegrationValidator(supervisor).validate(str(tiny_model("t2v")), recover=False)
    states = {stage.name: stage.success for stage in report.stages}
    assert states == {"detect": True, "load": True, "generate": True, "encode": False}


@pytest.mark.parametrize(
    ("errors", "leaks", "verdict"),
    [
        ([], False, "generates"),
        (["memory grows by 90 MB with each run"], True, "leaks"),
        (["memory grows by 90 MB with each run", "black throughout"], True, "fails"),
        (["black throughout"], False, "fails"),
    ],
)
def test_the_verdict_tells_growing_from_failing(errors: list[str], leaks: bool, verdict: str):
    from tests.supervisor.test_performance_monitor import result_of
    from wan_compat.policies.smoke import MemoryTestResult, SmokeTestResult
    from wan_compat.supervisor.smoke_test import Examination

    found = Examination(
        SmokeTestResult(not errors, 1.0, 1, (5, 64, 96, 3), errors), memory=MemoryTestResult(1, 1, 90, [1, 2, 3], leaks)
    )
    report = LoadTestReport(result_of(1.0), found)
    assert report.verdict == verdict and report.to_json()["success"] is (not errors)
