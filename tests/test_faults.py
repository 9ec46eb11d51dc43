"""A small share of `python -m tests.faults`, and what all recoveries have in common: events, bounds, a way to stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.assets.tiny_wan import tiny_model
from tests.faults.cases import CASES
from tests.faults.run import FIELDS, Outcome, faulty_supervisor, run_case, table
from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol.errors import JobCancelled, JobTimeout, MemoryExceeded, UnusableFrames
from wan_compat.supervisor import events as ev

IN_THE_SUITE = (
    "decoder has no room for a frame",
    "no room beside the text encoder",
    "black video of overflowing attention",
    "weights are NaN",
    "decoding fails once",
    "worker killed while denoising",
    "encoder dies, no copy of frames",
    "damaged index",
    "configuration of another size",
    "pipeline takes fewer arguments",
    "repository's pipeline speaks as Wan's program",
    "code of the repository",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def supervisor(folder: Path) -> Iterator[Supervisor]:
    with faulty_supervisor(folder) as made:
        yield made


@pytest.fixture(scope="module")
def sound(supervisor: Supervisor) -> np.ndarray:
    """Frames of a run without a fault."""
    result = supervisor.generate(request())
    assert result.frames is not None and result.recovery == []
    return result.frames.frames


def request(**fields: object) -> GenerationRequest:
    return GenerationRequest(**({"model": str(tiny_model("t2v"))} | FIELDS | fields))


@pytest.mark.parametrize("case", [case for case in CASES if case.name in IN_THE_SUITE], ids=lambda case: case.name)
def test_a_fault_is_survived_or_explained(case, supervisor, folder, sound):
    outcome = run_case(case, supervisor, folder, sound)
    assert outcome.ok, outcome.problem


def test_each_step_is_an_event_and_an_entry_of_the_result(supervisor, folder, sound):
    (folder / "fault").write_text("nan_convolution#events")
    job = supervisor.submit(request())
    seen = [event for event in job.events() if isinstance(event, ev.Recovering | ev.Recovered)]
    result = job.result()
    first, second = seen
    assert isinstance(first, ev.Recovering) and first.error.startswith("unusable_frames: ")
    assert second == ev.Recovered(first.error, first.action, "succeeded")
    assert result.recovery == [{"error": first.error, "action": first.action, "outcome": "succeeded"}]
    assert "conv3d:default" in result.metadata.optimizations_applied
    assert result.timings.denoise_s == 0  # nothing was denoised twice
    assert np.abs(result.frames.frames.astype(int) - sound).max() <= 1


def test_without_recovery_the_first_error_ends_the_job(supervisor, folder):
    (folder / "fault").write_text("nan_convolution#off")
    job = supervisor.submit(request(recover=False))
    assert not [event for event in job.events() if isinstance(event, ev.Recovering)]
    with pytest.raises(UnusableFrames) as caught:
        job.result()
    assert "recovery" not in caught.value.details


def test_what_cannot_be_mended_ends_after_three_steps_and_tells_them(supervisor, folder):
    (folder / "fault").write_text("oom_always#bounded")
    with pytest.raises(MemoryExceeded) as caught:
        supervisor.generate(request())
    told = caught.value.details["recovery"]
    assert len(told) == 3 and all(step["outcome"].startswith("failed: memory_exceeded: ") for step in told)
    assert caught.value.details["recovery_ended"] == "3 steps were tried against this failure"
    assert any("wan-compat plan" in fix for fix in caught.value.fixes)


def test_a_job_can_be_cancelled_between_attempts(supervisor, folder):
    (folder / "fault").write_text("oom_always#cancel")
    job = supervisor.submit(request())
    for event in job.events():
        if isinstance(event, ev.Recovering):
            job.cancel()
    with pytest.raises(JobCancelled):
        job.result()


def test_the_time_of_a_job_is_that_of_all_attempts(supervisor, folder):
    (folder / "fault").write_text("oom_always#time")
    with pytest.raises(JobTimeout):
        supervisor.generate(request(timeout_s=0.6))


def test_the_table_counts_every_case_once():
    outcomes = [Outcome(case, case.recovers, not case.recovers, (), 0.0) for case in CASES]
    lines = table(outcomes)
    assert lines[-1].startswith(f"| all | {len(CASES)} |") and "| 0 |" in lines[-1]
