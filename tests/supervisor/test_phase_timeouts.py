"""Whatever a job is doing, it ends when that phase has had its time, says so, and leaves nothing.

The workers are pretended ones that hang, or never come to an end; but for the last test, none imports torch.
"""

from __future__ import annotations

import dataclasses
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Supervisor
from wan_compat.policies import limits
from wan_compat.policies.pace import STALL_FACTOR
from wan_compat.policies.phases import PACE_FACTOR
from wan_compat.policies.policy import Policy
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import PhaseTimeout, WorkerStalled
from wan_compat.supervisor import encoder, job_watch
from wan_compat.supervisor import events as ev

PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "misbehaving_zygote.py"
# What a busy machine may add to a deadline: a poll of half a second, a kill, a fork.
LATE_S = 10.0


@pytest.fixture(scope="module")
def pretended() -> Iterator[Supervisor]:
    """A supervisor whose workers behave as the prompt says. One zygote for all tests here."""
    with Supervisor() as supervisor:
        supervisor._zygote_program = (str(PROGRAM), "as-asked")
        yield supervisor


def request_of(tmp_path: Path, behaviour: str, **fields: Any) -> GenerationRequest:
    sizes = {"height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 2, "seed": 1}
    output = str(tmp_path / "video.mp4")
    return GenerationRequest(
        **{"model": str(tiny_model("t2v")), "prompt": behaviour, "output": output, **sizes, **fields}
    )


@pytest.mark.parametrize(
    ("behaviour", "phase", "where"),
    [
        ("denoise:hang", "text_encode", "before its first step"),
        ("frame:hang", "decode", ""),
    ],
)
def test_each_phase_of_a_generation_ends_when_its_time_is_over(
    behaviour: str, phase: str, where: str, pretended: Supervisor, tmp_path: Path
) -> None:
    began = time.monotonic()
    with pytest.raises(PhaseTimeout, match=f"^{phase} took longer than 0.4 s.*{where}") as caught:
        pretended.generate(request_of(tmp_path, behaviour, phase_timeouts={phase: 0.4, "close": 0.1}))
    assert time.monotonic() - began < LATE_S
    assert caught.value.exit_code == 124 and caught.value.details["set_by"] == "request"
    assert f"--phase-timeout {phase}" in caught.value.fixes[0]
    assert "recovery" not in caught.value.details, "a limit that was set is final"
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_calls_every_step_the_last_one_gains_no_time(pretended: Supervisor, tmp_path: Path) -> None:
    asked = {"text_encode": 0.4, "denoise": 0.5, "decode": 0.6, "close": 0.1}
    job = pretended.submit(request_of(tmp_path, "denoise:dawdle", phase_timeouts=asked))
    began = next(
        time.monotonic() for event in job.events() if isinstance(event, ev.PhaseStarted) and event.phase == "denoise"
    )
    with pytest.raises(PhaseTimeout, match=r"denoise took longer than 0\.5 s, after step \d+ of \d+") as caught:
        job.result()
    assert caught.value.details["step"] > 1
    assert time.monotonic() - began < sum(asked.values()) + LATE_S


def test_a_worker_that_answers_and_does_nothing_is_found_and_another_one_is_tried(
    pretended: Supervisor, tmp_path: Path
) -> None:
    job = pretended.submit(request_of(tmp_path, "denoise:doze", phase_timeouts={"stall": 0.2}))
    tried = [event.action for event in job.events() if isinstance(event, ev.Recovering)]
    with pytest.raises(WorkerStalled, match=r"has done nothing for \d+ s while generating") as caught:
        job.result()
    assert tried == ["start a new worker"], "it hung again, and would for ever"
    assert caught.value.exit_code == 124 and caught.value.details["stalled_s"] >= 0.2
    assert any("--phase-timeout stall=" in fix for fix in caught.value.fixes)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_computes_is_never_called_stalled(pretended: Supervisor, tmp_path: Path) -> None:
    asked = {"stall": 0.3, "text_encode": 0.9, "close": 0.1}
    with pytest.raises(PhaseTimeout, match="text_encode took longer"):
        pretended.generate(request_of(tmp_path, "denoise:toil", phase_timeouts=asked))


def test_what_the_sizes_say_bounds_the_first_step_of_a_worker_that_spins(
    pretended: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_compat.supervisor.job_plan.first_step_s", lambda *_: 0.3)
    with pytest.raises(PhaseTimeout, match=r"^denoise took longer than 0\.3 s, before its first step") as caught:
        pretended.generate(request_of(tmp_path, "encoded:toil", phase_timeouts={"close": 0.1}))
    assert caught.value.details["set_by"] == "default"


def test_starting_and_loading_have_their_time_too(misbehaving: Callable[..., Supervisor], tmp_path: Path) -> None:
    for behaviour, phase in (("start:hang", "start_worker"), ("load:hang", "load")):
        with pytest.raises(PhaseTimeout, match=f"^{phase} took longer"):
            misbehaving(behaviour).generate(request_of(tmp_path, "x", phase_timeouts={phase: 0.6}))
        assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_takes_too_long_ends_the_job_and_the_frames_are_kept(
    pretended: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder.EncoderProcess, "poll", lambda self: None)  # its end is never noticed
    with pytest.raises(PhaseTimeout, match=r"^encode took longer than 0\.3 s") as caught:
        pretended.generate(request_of(tmp_path, "well", phase_timeouts={"encode": 0.3}))
    monkeypatch.undo()
    assert Path(caught.value.details["kept"]).exists() and not (tmp_path / "video.mp4").exists()


def test_the_settings_are_the_most_that_a_job_may_ask_for(tmp_path: Path) -> None:
    with Supervisor(policy=Policy(phase_timeouts={"text_encode": 0.3})) as supervisor:
        supervisor._zygote_program = (str(PROGRAM), "as-asked")
        asked = request_of(tmp_path, "denoise:hang", phase_timeouts={"text_encode": 60.0, "close": 0.1})
        with pytest.raises(PhaseTimeout, match=r"text_encode took longer than 0\.3 s") as caught:
            supervisor.generate(asked)
    assert caught.value.details["set_by"] == "settings" and "in the settings" in caught.value.fixes[0]


def test_a_decode_that_takes_longer_than_it_would_be_given_is_tried_in_another_way(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No limit was set, so the latents that the worker kept are decoded again."""
    made: list[limits.Deadlines] = []

    def hasty(**given: Any) -> limits.Deadlines:
        made.append(dataclasses.replace(limits.deadlines(**given), decode_s=1e-9))
        return made[-1]

    monkeypatch.setattr("wan_compat.supervisor.job_run.deadlines", hasty)
    # A busy machine may need its time until the worker rests, and only then the latents can be used again.
    job = supervisor.submit(request_of(tmp_path, "a red ball", output=None, phase_timeouts={"close": 60.0}))
    events = list(job.events())
    with pytest.raises(PhaseTimeout, match="decode took longer") as caught:
        job.result()
    tried = [event.action for event in events if isinstance(event, ev.Recovering)]
    assert tried and all("kept latents" in action for action in tried)
    assert caught.value.details["set_by"] == "default" and caught.value.details["recovery"]


def test_the_pace_of_its_first_steps_bounds_a_phase_that_nobody_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(job_watch.time, "monotonic", lambda: now)
    context: Any = types.SimpleNamespace(emit=lambda _event: None, policy=Policy(), cancelled=lambda: False)
    watch = job_watch.JobWatch(GenerationRequest(model="m", prompt="p"), context)
    watch.keep_to(limits.deadlines(weight_bytes=0, timeout_s=None))
    watch.enter("text_encode")
    watch.hear(m.Progress(job=1, phase="text_encode", step=1, total=1))
    for step in range(1, 5):
        now += 100.0
        watch.hear(m.Progress(job=1, phase="denoise", step=step, total=50))
    bound_s = 400.0 + PACE_FACTOR * 50 * 100.0  # what was taken, and that many times what all steps should take
    now = bound_s - 1
    assert not watch.interrupted()
    now = bound_s + 1
    with pytest.raises(PhaseTimeout, match="denoise took longer than 100400 s, after step 4 of 50") as caught:
        watch.interrupted()
    assert caught.value.details["set_by"] == "default"
    watch.rest()
    assert not watch.interrupted()


def test_a_step_far_longer_than_those_before_it_is_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(job_watch.time, "monotonic", lambda: now)
    context: Any = types.SimpleNamespace(emit=lambda _event: None, policy=Policy(), cancelled=lambda: False, wake_fd=-1)
    heard = types.SimpleNamespace(messages=[], unusual=())
    worker: Any = types.SimpleNamespace(name="w1", pump=lambda *_, **__: heard)
    watch = job_watch.JobWatch(GenerationRequest(model="m", prompt="p"), context)
    watch.enter("text_encode")
    for step in range(1, 4):
        now += 100.0
        watch.hear(m.Progress(job=1, phase="denoise", step=step, total=50))
    now += STALL_FACTOR * 100.0
    watch.pump(worker)
    now += 1.0
    with pytest.raises(WorkerStalled, match="a step of denoise has not ended after 2001 s") as caught:
        watch.pump(worker)
    assert caught.value.details["stalled_s"] == 2001.0
