"""Whether a small generation shows a model that works: frames, memory over repeated runs, and the words for both.

A smoke test cannot say that a video is good. It says that there is one: of the shape that was asked for, of finite
values, not one colour throughout, and that making it again does not take more memory each time.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence

# How much memory an allocator holds back after a job goes up and down by some 30 MB without anything being lost
# (measured over 24 jobs, tests/workers/test_worker.py). Only what grows by more than this is called a leak.
NOISE_BYTES = 48 << 20
# Of 255. Noise from random weights has about 20, a photographed wall 2; black or one colour has 0.
LEAST_SPREAD = 0.5
MIN_LEAK_SAMPLES = 3  # the first run fills caches, two more tell a direction

_MB = 1_000_000


@dataclasses.dataclass(frozen=True)
class SmokeTestResult:
    """`generation_time` in seconds, `memory_peak` in bytes, `output_shape` (num_frames, height, width, 3)."""

    success: bool
    generation_time: float
    memory_peak: int
    output_shape: tuple[int, ...]
    errors: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class FormatValidation:
    """What an output is (`frames` or the name of a container), and what is wrong with it."""

    is_valid: bool
    format: str
    shape: tuple[int, ...]
    dtype: str
    errors: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class MemoryTestResult:
    """Megabytes: the most during the runs, after the last, by how much a run grows it (0 where it does not), and after
    each run."""

    peak_mb: float
    after_mb: float
    leak_mb: float
    samples: list[float]
    leaks: bool = False


@dataclasses.dataclass(frozen=True)
class PerformanceBenchmark:
    """The quickest of the measured runs. `baseline` is the median of earlier ones in seconds, None where too few are
    known; `regression` by what part of it this one is slower, None likewise."""

    seconds: float
    seconds_per_step: float
    frames_per_second: float
    baseline: float | None = None
    regression: float | None = None


@dataclasses.dataclass(frozen=True)
class FrameStatistics:
    """Of frames as numbers from 0 to 255: `spread` is the standard deviation within the flattest frame, `change` the
    mean difference of the two frames that differ most in a row."""

    shape: tuple[int, ...]
    dtype: str
    finite: bool
    lowest: float
    highest: float
    spread: float
    change: float


def judge_frames(found: FrameStatistics, wanted: tuple[int, ...] | None) -> tuple[list[str], list[str]]:
    """Return what is wrong with the frames, and what is only remarkable.

    Args:
        wanted: (num_frames, height, width, 3) as asked for; None asks for nothing.
    """
    errors: list[str] = []
    warnings: list[str] = []
    if wanted is not None and found.shape != wanted:
        errors.append(f"the frames are {_times(found.shape)}, {_times(wanted)} was asked for")
    if not found.finite:
        errors.append("the frames contain NaN or infinite values")
        return errors, warnings
    if found.spread < LEAST_SPREAD:
        what = "black" if found.highest < 1 else "of one colour"
        errors.append(f"there is a frame that is {what} throughout (values {found.lowest:g} to {found.highest:g})")
    elif found.shape[0] > 1 and found.change == 0:
        warnings.append("all frames are the same picture")
    return errors, warnings


def judge_memory(peak_bytes: int, samples: Sequence[int]) -> MemoryTestResult:
    """Judge what a process held after each of several equal runs.

    The slope is the median of those between all pairs of runs (Theil-Sen), which one odd run does not move; the first
    run is left out, since it fills caches. What grows by less than an allocator's own ups and downs is no leak.
    """
    settled = list(samples)[1:] if len(samples) > MIN_LEAK_SAMPLES - 1 else list(samples)
    slope = _slope(settled) if len(samples) >= MIN_LEAK_SAMPLES else 0.0
    grown = slope * (len(settled) - 1)
    return MemoryTestResult(
        peak_mb=_megabytes(peak_bytes),
        after_mb=_megabytes(samples[-1]) if samples else 0.0,
        leak_mb=_megabytes(max(0.0, slope)),
        samples=[_megabytes(sample) for sample in samples],
        leaks=grown > NOISE_BYTES,
    )


def benchmark_of(seconds: Sequence[float], steps: int, num_frames: int) -> PerformanceBenchmark:
    """Return the speed of equal runs: of the quickest, since what else a machine does only ever adds."""
    best = min(seconds)
    return PerformanceBenchmark(best, best / max(1, steps), num_frames / best if best > 0 else 0.0)


def _slope(samples: Sequence[int]) -> float:
    pairs = itertools.combinations(enumerate(samples), 2)
    slopes = [(later - earlier) / (j - i) for (i, earlier), (j, later) in pairs]
    return statistics.median(slopes) if slopes else 0.0


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _megabytes(count: float) -> float:
    return round(count / _MB, 3)
