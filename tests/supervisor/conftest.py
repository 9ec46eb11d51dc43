"""Supervisors whose workers are small real programs that behave as a test needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Supervisor

PROGRAMS = Path(__file__).resolve().parent.parent / "programs"


@pytest.fixture
def misbehaving() -> Iterator[Callable[..., Supervisor]]:
    """Return a function that makes a supervisor whose workers misbehave; all are closed afterwards."""
    made: list[Supervisor] = []

    def make(behaviour: str, **options: object) -> Supervisor:
        supervisor = Supervisor(**options)  # type: ignore[arg-type]
        supervisor._zygote_program = (str(PROGRAMS / "misbehaving_zygote.py"), behaviour)
        made.append(supervisor)
        return supervisor

    yield make
    for supervisor in made:
        supervisor.close()


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[..., GenerationRequest]:
    """Return a function that asks for a short video of the smallest model."""

    def make(**fields: object) -> GenerationRequest:
        defaults: dict[str, object] = {
            "model": str(tiny_model("t2v")),
            "prompt": "a red ball",
            "height": 64,
            "width": 96,
            "num_frames": 9,
            "num_inference_steps": 2,
            "seed": 1,
            "output": str(tmp_path / "video.mp4"),
            "recover": False,  # a failure is what most of these tests look at, once
        }
        return GenerationRequest(**(defaults | fields))

    return make
