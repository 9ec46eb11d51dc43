"""Runs cases in one supervisor with real workers, and counts what came of them."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.assets.tiny_wan import tiny_model
from tests.faults.cases import PROGRAMS, Case
from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol.errors import WanCompatError
from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.supervisor import events as ev

FIELDS: dict[str, Any] = {
    "prompt": "a red ball",
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "num_inference_steps": 2,
    "seed": 1,
    "isolation": "job",
    "timeout_s": 240,
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one case. `ok`: what had to come. `problem` says why not."""

    case: Case
    recovered: bool
    explained: bool
    steps: tuple[str, ...]
    seconds: float
    problem: str = ""
    fell_back: bool = False  # no video, and its frames are kept: one command makes a video of them

    @property
    def ok(self) -> bool:
        return not self.problem


@contextlib.contextmanager
def faulty_supervisor(folder: Path) -> Iterator[Supervisor]:
    """Give a supervisor whose zygote reads the fault of each next worker from `folder`/fault."""
    (folder / "fault").write_text("")
    with Supervisor(mode="trust") as supervisor:  # what asks for no trust runs in safe mode
        supervisor._zygote_program = (str(PROGRAMS / "faulty_zygote.py"), str(folder / "fault"))
        yield supervisor


def run(cases: Iterable[Case], folder: Path) -> Iterator[Outcome]:
    """Yield the outcome of each case."""
    with faulty_supervisor(folder) as supervisor:
        sound = supervisor.generate(GenerationRequest(model=str(tiny_model("t2v")), **FIELDS))
        assert sound.frames is not None and not sound.recovery
        for case in cases:
            yield run_case(case, supervisor, folder, sound.frames.frames)


def run_case(case: Case, supervisor: Supervisor, folder: Path, sound: np.ndarray) -> Outcome:
    """Run one job with the fault, and judge what comes of it."""
    model = tiny_model("t2v")
    if case.break_model is not None:
        model = Path(shutil.copytree(model, folder / "model", dirs_exist_ok=False))
        case.break_model(model)
    encoding = case.category == "encoding"
    output = str(folder / "video.npy.mp4") if encoding else None
    (folder / "fault").write_text(case.worker)
    steps: list[str] = []
    result: VideoGenerationResult | WanCompatError
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        see = stack.enter_context(case.outside()) if case.outside is not None else None
        job = supervisor.submit(GenerationRequest(model=str(model), output=output, **(FIELDS | case.fields)))
        for event in job.events():
            if isinstance(event, ev.Recovering):
                steps.append(event.action)
            if see is not None:
                see(event)
        try:
            result = job.result()
        except WanCompatError as error:
            result = error
    outcome = judge(case, result, tuple(steps), time.monotonic() - started, sound)
    (folder / "fault").write_text("")
    if case.break_model is not None:
        shutil.rmtree(model)
    for path in folder.glob("video*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return outcome


def judge(
    case: Case,
    result: VideoGenerationResult | WanCompatError,
    steps: tuple[str, ...],
    seconds: float,
    sound: np.ndarray,
) -> Outcome:
    problem = ""
    recovered = isinstance(result, VideoGenerationResult)
    explained = fell_back = False
    encoded = case.category == "encoding"
    if isinstance(result, VideoGenerationResult):
        told = result.recovery
        if not case.recovers:
            problem = "a video came of what cannot be mended"
        elif case.error and not (told and told[-1]["outcome"] == "succeeded" and told[0]["error"]):
            problem = f"the result tells nothing of a recovery: {told}"
        elif case.error and case.category != "encoding" and not told[0]["error"].startswith(case.error):
            problem = f"{case.error} expected, {told[0]['error']}"
        elif encoded and (result.output is None or result.output.num_frames != FIELDS["num_frames"]):
            problem = f"the output is not what was asked for: {result.output}"
        elif encoded and result.output is not None and not Path(result.output.path).is_file():
            problem = "there is no file"
        elif case.warns and not any(case.warns in warning for warning in result.warnings):
            problem = f"no warning of {case.warns}: {result.warnings}"
        elif result.frames is not None and case.exact and not np.array_equal(result.frames.frames, sound):
            difference = np.abs(result.frames.frames.astype(int) - sound)
            if difference.max() > 2:  # another order of sums
                problem = f"other frames than without the fault, by up to {difference.max()}"
    else:
        words = " ".join((result.message, *result.fixes))
        explained = result.code == case.error and case.says in words and bool(result.fixes)
        fell_back = explained and Path(str(result.details.get("kept"))).exists()
        if case.recovers:
            problem = f"not recovered: {result.code}: {result.message}"
        elif not explained:
            problem = f"not explained: {result.code}: {words}"
    return Outcome(case, recovered, explained, steps, seconds, problem, fell_back)


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """Return the lines of a table in Markdown: one row per category, and the whole."""
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.case.category, []).append(outcome)
        rows.setdefault("all", []).append(outcome)
    rows["all"] = rows.pop("all")
    lines = [
        "| category | faults | recovered | fell back | precise message | neither | recovery rate | with fallbacks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        recovered, kept = sum(item.recovered for item in found), sum(item.fell_back for item in found)
        explained = sum(item.explained for item in found) - kept
        lines.append(
            f"| {name} | {len(found)} | {recovered} | {kept} | {explained} "
            f"| {len(found) - recovered - kept - explained} "
            f"| {recovered / len(found):.0%} | {(recovered + kept) / len(found):.0%} |"
        )
    return lines
