"""What a person sees of a job that recovers."""

from __future__ import annotations

import pytest

from wan_compat.supervisor import events as ev
from wan_compat.supervisor.cli.progress import LineProgress, describe_recovery
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
