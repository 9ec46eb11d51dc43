"""What a person sees of a job that goes on, and of one that recovers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wan_compat.supervisor import events as ev
from wan_compat.supervisor.cli.progress import LineProgress, describe_pace, describe_recovery
from wan_compat.supervisor.cli.runner import describe_result
from wan_compat.supervisor.cli.session import Session

STEPS = (
    ev.Recovering("memory_exceeded: no more", "decode in tiles of 256 pixels (seams may show)"),
    ev.Recovered("memory_exceeded: no more", "decode in tiles of 256 pixels (seams may show)", "succeeded"),
)


def test_a_failed_attempt_what_is_tried_and_how_it_went_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    view = LineProgress(Session())
    for event in STEPS:
        view.show(event)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Failed: memory_exceeded: no more",
        "Trying: decode in tiles of 256 pixels (seams may show)",
        "Recovery: decode in tiles of 256 pixels (seams may show): succeeded",
    ]


def test_every_step_has_words() -> None:
    assert all(describe_recovery(event) for event in STEPS)


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (ev.Progress("denoise", 3, 50, 1.2, 56.4), "1.2 s a step, 0:56 left"),
        (ev.Progress("denoise", 3, 50, 0.02, 0.94), ""),
        (ev.Progress("decode", 1, 21, 4.0, 80.0), "1:20 left"),
        (ev.Progress("denoise", 1, 50, 240.0, 11760.0), "240.0 s a step, 3:16:00 left"),
        (ev.Progress("denoise", 50, 50, 1.2, 0.0), ""),
        (ev.Progress("load", 1, 5), ""),
    ],
)
def test_progress_tells_what_is_left_where_that_is_news(event: ev.Progress, shown: str) -> None:
    assert describe_pace(event) == shown


def test_a_warning_that_was_told_on_the_way_is_not_told_again_with_the_result() -> None:
    output = SimpleNamespace(path="fox.mp4", num_frames=5, width=64, height=64, fps=16.0, bytes=9000)
    result: Any = SimpleNamespace(
        output=output,
        timings=SimpleNamespace(total_s=1.0),
        metadata=SimpleNamespace(generation_params={"seed": 1}),
        sandbox=SimpleNamespace(tier="A"),
        recovery=[],
        warnings=["the picture was cut", "no room for a poster"],
    )
    session = Session()
    LineProgress(session).show(ev.Warned("the picture was cut"))
    assert describe_result(session, result).splitlines()[1:] == ["Warning: no room for a poster"]
    assert len(describe_result(Session(quiet=True), result).splitlines()) == 3
