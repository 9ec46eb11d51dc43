"""The history of timings: bounded, private, and compared like with like."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from wan_compat.protocol.errors import StateCorrupt, StateUnsafe
from wan_compat.protocol.results import GenerationMetadata, SandboxReport, Timings, VideoGenerationResult
from wan_compat.supervisor import performance_monitor
from wan_compat.supervisor.performance_monitor import FILE_NAME, PerformanceMonitor, note, slower


def result_of(seconds: float, *, model: str = "model", load_s: float = 0.0, **params: Any) -> VideoGenerationResult:
    return VideoGenerationResult(
        success=True,
        output_path=None,
        frames=None,
        generation_time=seconds,
        memory_used=1000,
        metadata=GenerationMetadata(
            model_path=model,
            pipeline_class="WanPipeline",
            optimizations_applied=["float32"],
            generation_params={
                "prompt": "a secret wish", "num_frames": 5, "height": 64, "width": 96, "num_inference_steps": 2
            } | params,
            system_info={"torch": "2.10.0"},
        ),
        errors=[],
        warnings=[],
        timings=Timings(load_s=load_s, text_encode_s=0.0, denoise_s=seconds * 0.75, decode_s=seconds * 0.25),
        sandbox=SandboxReport("A", [], 0, {}),
        peak={},
        recovery=[],
        output=None,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_a_slow_run_is_flagged_against_the_median_of_its_like(folder: Path):
    monitor = PerformanceMonitor(folder)
    for seconds in (1.0, 1.02, 0.98):
        assert not monitor.record(result_of(seconds)).is_regression
    slow = monitor.record(result_of(2.0))
    assert slow.is_regression and slow.baseline == pytest.approx(1.0) and slow.slower_by == pytest.approx(1.0)
    assert "2.0 s, against 1.0 s in the median of 3 earlier runs (+100%)" in (slower(slow) or "")
    assert not monitor.record(result_of(1.0)).is_regression
    assert slower(monitor.compare(result_of(1.0))) is None and len(monitor.history()) == 5


@pytest.mark.parametrize("other", [{"model": "another"}, {"num_frames": 81}, {"load_s": 3.0}, {"guidance_scale": 5.0}])
def test_what_is_not_comparable_is_not_compared(folder: Path, other: dict[str, Any]):
    monitor = PerformanceMonitor(folder)
    for _ in range(4):
        monitor.record(result_of(1.0))
    assert monitor.record(result_of(9.0, **other)).baseline is None


def test_neither_prompts_nor_more_than_its_bounds_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(performance_monitor, "MAX_RUNS_OF_A_KIND", 3)
    monitor = PerformanceMonitor(folder)
    for seconds in (1.0, 2.0, 3.0, 4.0):
        monitor.record(result_of(seconds))
    assert [run.seconds for run in monitor.history()] == [2.0, 3.0, 4.0]
    monkeypatch.setattr(performance_monitor, "MAX_RUNS", 4)
    for number in range(4):
        monitor.record(result_of(1.0, model=f"m{number}"))
    assert len(monitor.history()) == 4 and len({run.kind for run in monitor.history()}) == 4
    content = (folder / FILE_NAME).read_text()
    assert "secret" not in content
    monkeypatch.setattr(performance_monitor, "MAX_FILE_BYTES", len(content) // 2 + 50)
    (folder / FILE_NAME).unlink()
    for number in range(4):
        monitor.record(result_of(1.0, model=f"m{number}"))
    assert (folder / FILE_NAME).stat().st_size <= len(content) // 2 + 50


def test_the_file_is_the_users_alone(folder: Path):
    PerformanceMonitor(folder).record(result_of(1.0))
    assert stat.S_IMODE((folder / FILE_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    os.chmod(folder / FILE_NAME, 0o666)
    with pytest.raises(StateUnsafe):
        PerformanceMonitor(folder).history()


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", '{"schema_version": 2, "runs": []}', '{"schema_version": 1, "runs": [{}]}',
        '{"schema_version": 1, "runs": [], "more": 1}', "\xff", "[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_history_is_an_error_that_names_its_remedy(folder: Path, content: str):
    PerformanceMonitor(folder).record(result_of(1.0))
    (folder / FILE_NAME).write_text(content, encoding="latin-1")
    with pytest.raises(StateCorrupt, match="damaged") as caught:
        PerformanceMonitor(folder).record(result_of(1.0))
    assert "mv " in str(caught.value.hint)


def test_a_job_is_not_spoilt_by_its_history(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(performance_monitor, "state_folder", lambda: folder)
    assert note(result_of(1.0)) is None
    (folder / FILE_NAME).write_text("{")
    assert "timings could not be recorded" in (note(result_of(1.0)) or "")


def test_kinds_come_with_how_their_last_run_compares(folder: Path):
    monitor = PerformanceMonitor(folder)
    for seconds in (1.0, 1.0, 1.0, 3.0):
        monitor.record(result_of(seconds))
    monitor.record(result_of(5.0, model="another"))
    first, second = monitor.kinds()
    assert first.model.endswith("another") and not first.latest.is_regression
    assert second.latest.is_regression and len(second.runs) == 4
    assert json.loads((folder / FILE_NAME).read_text())["schema_version"] == 1
