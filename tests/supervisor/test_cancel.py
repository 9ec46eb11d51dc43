"""Cancelled in every phase of a real job: it ends within a step, leaves nothing, and the next job goes well."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol.errors import JobCancelled
from wan_compat.supervisor import encoder
from wan_compat.supervisor import events as ev

# The longest thing that one of these jobs does without looking whether it shall stop, on a machine that is busy besides.
STEP_S = 5.0


@pytest.fixture(scope="module")
def slow() -> str:
    """A model whose steps take a while: at this size some 0.2 s for a step, 0.1 s for a frame."""
    return str(tiny_model("t2v_mid"))


def request_of(model: str, tmp_path: Path, **fields: Any) -> GenerationRequest:
    sizes = {"height": 64, "width": 96, "num_frames": 17, "num_inference_steps": 3, "seed": 1}
    return GenerationRequest(
        **{"model": model, "prompt": "a red ball", "output": str(tmp_path / "video.mp4"), **sizes, **fields}
    )


@pytest.mark.parametrize("phase", ["start_worker", "load", "text_encode", "denoise", "decode", "encode"])
def test_cancel_in_each_phase_ends_the_job_within_a_step(
    phase: str, supervisor: Supervisor, slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if phase == "encode":
        # An encoder that takes its time: its end is never noticed.
        monkeypatch.setattr(encoder.EncoderProcess, "poll", lambda self: None)
    fresh = "job" if phase in ("start_worker", "load") else "model"  # a worker that does not have the model yet
    steps = 3 if phase in ("decode", "encode") else 50
    job = supervisor.submit(request_of(slow, tmp_path, num_inference_steps=steps, isolation=fresh))
    asked = 0.0
    for event in job.events():
        if isinstance(event, ev.PhaseStarted) and event.phase == phase and not asked:
            asked = time.monotonic()
            job.cancel()
    with pytest.raises(JobCancelled, match="cancelled"):
        job.result()
    assert asked, "the phase began"
    assert time.monotonic() - asked < STEP_S
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    if phase == "encode":
        assert supervisor.generate(request_of(slow, tmp_path)).success


def test_progress_tells_the_rate_and_what_is_left(supervisor: Supervisor, slow: str, tmp_path: Path) -> None:
    job = supervisor.submit(request_of(slow, tmp_path, num_inference_steps=5, output=None))
    told = [event for event in job.events() if isinstance(event, ev.Progress)]
    job.result()
    assert all(event.rate_s is not None and event.eta_s is not None for event in told)
    decoded = [event for event in told if event.phase == "decode"]
    assert decoded[-1].step == decoded[-1].total == 5 and decoded[-1].eta_s == 0  # latent frames
    seen = [event for event in told if event.phase == "denoise"]
    assert [event.step for event in seen] == [1, 2, 3, 4, 5]
    last = seen[-1]
    assert last.eta_s == 0
    third = seen[2]
    assert third.rate_s is not None and third.eta_s == pytest.approx(2 * third.rate_s)
