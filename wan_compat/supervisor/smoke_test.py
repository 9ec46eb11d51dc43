"""`SmokeTestRunner`: does a pipeline make frames at all, of the right kind, without growing, and how fast?

For any pipeline object: a `ModelHandle` (a model in a sandboxed worker), a `WanPipelineWrapper`, or a pipeline of
diffusers in the process that calls. Objects are known by what they can do; nothing of torch is imported here. A
pipeline that runs in this process is as trusted as the process.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wan_compat.policies.smoke import (
    FormatValidation,
    FrameStatistics,
    MemoryTestResult,
    PerformanceBenchmark,
    SmokeTestResult,
    benchmark_of,
    judge_frames,
    judge_memory,
)
from wan_compat.policies.smoke_request import PROMPT
from wan_compat.protocol.errors import InvalidRequest, JobCancelled, WanCompatError
from wan_compat.protocol.results import ProcessedFrames, VideoGenerationResult
from wan_compat.supervisor.frame_tensors import FrameTensorHandler

if TYPE_CHECKING:
    import numpy as np

MEMORY_RUNS = 5
BENCHMARK_RUNS = 3
MAX_RUNS = 100


@dataclasses.dataclass(frozen=True)
class Measured:
    """One generation, looked at. `steps` as asked for; memory in bytes, of the process that generated."""

    frames: FrameStatistics
    wanted: tuple[int, ...]
    seconds: float
    steps: int
    peak_bytes: int
    after_bytes: int
    digest: int
    result: VideoGenerationResult | None = None  # where the pipeline gives one


@dataclasses.dataclass(frozen=True)
class Examination:
    """Everything that a series of equal runs shows. `format`, `memory` and `performance` are None where none ended."""

    smoke: SmokeTestResult
    runs: tuple[Measured, ...] = ()
    format: FormatValidation | None = None
    memory: MemoryTestResult | None = None
    performance: PerformanceBenchmark | None = None
    error: Exception | None = None  # what ended the series before its time


class SmokeTestRunner:
    """Generates minimal clips.

    Args:
        prompt: Of each.
        parameters: What a generation is called with: `height`, `width`, `num_frames`, `num_inference_steps`, ...; also
            pictures, where the task needs them. Those that a pipeline's call does not take are left out.
        allow_constant: Take frames of one colour, for pipelines that are stand-ins.
    """

    def __init__(
        self, prompt: str = PROMPT, parameters: Mapping[str, Any] | None = None, *, allow_constant: bool = False
    ) -> None:
        sizes = {"height": 64, "width": 96, "num_frames": 5, "num_inference_steps": 2}
        self._prompt = prompt
        self._parameters = {**sizes, **(parameters or {})}
        self._allow_constant = allow_constant

    def run_pipeline_smoke_test(self, pipeline: Any) -> SmokeTestResult:
        """Generate one minimal clip and judge it. An error of the pipeline is in the result, not raised."""
        return self.examine(pipeline, runs=1).smoke

    def validate_output_format(self, output: Any) -> FormatValidation:
        """Say whether an output holds one video that can be used, and everything that is wrong with it.

        Args:
            output: Of a pipeline, of `generate`, frames as an array or pictures.
        """
        try:
            statistics = statistics_of(_pixels(output))
        except WanCompatError as error:
            return FormatValidation(False, "unknown", _shape(output), _dtype(output), [error.message])
        errors, _ = judge_frames(statistics, None)
        return FormatValidation(not errors, "frames", statistics.shape, statistics.dtype, errors)

    def test_memory_usage(self, pipeline: Any, *, runs: int = MEMORY_RUNS) -> MemoryTestResult:
        """Generate several equal clips and see whether memory grows from one to the next.

        Raises:
            WanCompatError, Exception: What the pipeline raised.
        """
        measured = [self._measure(pipeline) for _ in range(_checked(runs))]
        return judge_memory(max(run.peak_bytes for run in measured), [run.after_bytes for run in measured])

    def benchmark_generation_speed(self, pipeline: Any, *, runs: int = BENCHMARK_RUNS) -> PerformanceBenchmark:
        """Time the same generation, after one that warms up. `PerformanceMonitor` compares with earlier days.

        Raises:
            WanCompatError, Exception: What the pipeline raised.
        """
        self._measure(pipeline)
        measured = [self._measure(pipeline) for _ in range(_checked(runs))]
        return _benchmark(measured)

    def examine(self, pipeline: Any, *, runs: int) -> Examination:
        """Do all of it with one series of runs; ends at the first error, which is in the result.

        Raises:
            JobCancelled: The only error that is not an answer.
        """
        measured: list[Measured] = []
        error: Exception | None = None
        for _ in range(_checked(runs)):
            try:
                measured.append(self._measure(pipeline))
            except JobCancelled:
                raise
            except Exception as raised:  # noqa: BLE001 - a pipeline raises anything; that is what is found out here
                error = raised
                break
        errors, warnings = self._judge(measured)
        if error is not None:
            errors.append(_told(error, len(measured)))
        if not measured:
            return Examination(SmokeTestResult(False, 0.0, 0, (), errors, warnings), error=error)
        memory = judge_memory(max(run.peak_bytes for run in measured), [run.after_bytes for run in measured])
        if memory.leaks:
            errors.append(f"memory grows by {memory.leak_mb:.0f} MB with each run")
        first = measured[0]
        found, _ = judge_frames(first.frames, first.wanted)
        shape, dtype = first.frames.shape, first.frames.dtype
        return Examination(
            smoke=SmokeTestResult(
                success=not errors,
                generation_time=first.seconds,
                memory_peak=max(run.peak_bytes for run in measured),
                output_shape=shape,
                errors=errors,
                warnings=warnings,
            ),
            runs=tuple(measured),
            format=FormatValidation(not found, "frames", shape, dtype, found),
            memory=memory,
            performance=_benchmark(measured[1:] or measured),
            error=error,
        )

    def _judge(self, measured: Sequence[Measured]) -> tuple[list[str], list[str]]:
        errors: list[str] = []
        warnings: list[str] = []
        for run in measured:
            wrong, odd = judge_frames(run.frames, run.wanted)
            errors += [] if self._allow_constant and run.frames.finite and run.frames.shape == run.wanted else wrong
            warnings += odd
        if len({run.digest for run in measured}) > 1:
            warnings.append("the same seed gave other frames in another run")
        return list(dict.fromkeys(errors)), list(dict.fromkeys(warnings))

    def _measure(self, pipeline: Any) -> Measured:
        """Generate once."""
        parameters = dict(self._parameters)
        before = _own_memory()
        began = time.monotonic()
        if callable(getattr(pipeline, "generate", None)):
            output = pipeline.generate(self._prompt, **{"seed": 0, **parameters})
        elif callable(pipeline):
            output = pipeline(**_taken(pipeline, {"prompt": self._prompt, "output_type": "np", **parameters}))
        else:
            raise InvalidRequest(f"a {type(pipeline).__name__} neither generates nor can be called")
        seconds = time.monotonic() - began
        pixels = _pixels(output)
        wanted = (*(int(parameters[name]) for name in ("num_frames", "height", "width")), 3)
        result = output if isinstance(output, VideoGenerationResult) else None
        inside = result is None or "worker_after_bytes" not in result.peak
        after = _own_memory() if inside else result.peak["worker_after_bytes"] if result is not None else None
        return Measured(
            frames=statistics_of(pixels),
            wanted=wanted,
            seconds=_generation_s(result) or seconds,
            steps=int(parameters.get("num_inference_steps", 1)),
            peak_bytes=result.memory_used if result is not None and not inside else max(before, after or 0),
            after_bytes=after or 0,
            digest=hash(pixels.tobytes()),
            result=result,
        )


def statistics_of(frames: np.ndarray) -> FrameStatistics:
    """Return what is judged of frames of (num_frames, height, width, 3); one is looked at after the other."""
    import numpy as np

    finite = frames.dtype.kind != "f" or bool(np.isfinite(frames).all())
    scale = 255.0 if frames.dtype.kind == "f" else 1.0
    spread, change = np.inf, 0.0
    if finite:
        # The widest of the channels: a plain red wall with a shadow is no constant picture.
        spread = min(float(frame.reshape(-1, frame.shape[-1]).std(axis=0).max()) * scale for frame in frames)
        pairs = itertools.pairwise(frames)
        change = max(
            (float(np.abs(later.astype(np.float32) - earlier).mean()) * scale for earlier, later in pairs), default=0.0
        )
    return FrameStatistics(
        shape=tuple(frames.shape),
        dtype=str(frames.dtype),
        finite=finite,
        lowest=float(frames.min()) * scale if finite else float("nan"),
        highest=float(frames.max()) * scale if finite else float("nan"),
        spread=spread,
        change=change,
    )


def _pixels(output: Any) -> np.ndarray:
    """Return the frames of whatever a pipeline gives, uint8.

    Raises:
        InvalidRequest, UnusableFrames: There are none that could be used.
    """
    if isinstance(output, VideoGenerationResult):
        output = output.frames
    if output is None:
        raise InvalidRequest("there are no frames in this output")
    if isinstance(output, ProcessedFrames):
        output = output.frames
    return FrameTensorHandler(allow_black=True).process_output_tensors(output).frames


def _benchmark(measured: Sequence[Measured]) -> PerformanceBenchmark:
    first = measured[0]
    return benchmark_of([run.seconds for run in measured], first.steps, first.frames.shape[0])


def _generation_s(result: VideoGenerationResult | None) -> float:
    """Return what generating took, without the start of a worker and loading; 0 where nobody said."""
    if result is None:
        return 0.0
    return result.timings.text_encode_s + result.timings.denoise_s + result.timings.decode_s


def _taken(pipeline: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return those arguments that the pipeline's call takes: a video to video pipeline has no num_frames."""
    try:
        known = inspect.signature(pipeline).parameters
    except (TypeError, ValueError):
        return arguments
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in known}


def _told(error: Exception, after: int) -> str:
    what = error.message if isinstance(error, WanCompatError) else f"{type(error).__name__}: {error}"
    return what if after == 0 else f"after {after} runs: {what}"


def _shape(output: Any) -> tuple[int, ...]:
    return tuple(getattr(output, "shape", ()))


def _dtype(output: Any) -> str:
    return str(getattr(output, "dtype", ""))


def _own_memory() -> int:
    """Return the bytes that this process holds."""
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)


def _checked(runs: int) -> int:
    if not 1 <= runs <= MAX_RUNS:
        raise InvalidRequest(f"{runs} runs were asked for; 1 to {MAX_RUNS} are possible")
    return runs
