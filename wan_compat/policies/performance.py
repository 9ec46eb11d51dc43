"""Whether a generation was slower than earlier ones like it. Machines are noisy; one slow run is no regression.

Compared are runs of one model, plan, size and machine, warm with warm and cold with cold. The baseline is the median of
the earlier ones. Slower means both: by a quarter at least, and by more than four times what they usually differ (the
median absolute deviation, scaled as a standard deviation). A machine whose runs differ by half flags less; one where
they agree to the percent still needs a quarter.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

MIN_EARLIER = 3
LEAST_SLOWDOWN = 0.25
_DEVIATIONS = 4.0
_AS_STANDARD_DEVIATION = 1.4826  # of a normal distribution


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`baseline` in seconds; `slower_by` is the part of it that was added, negative where it was quicker. Both are None
    where too few earlier runs are known."""

    seconds: float
    earlier: int
    baseline: float | None = None
    slower_by: float | None = None
    is_regression: bool = False


def compare(seconds: float, earlier: Sequence[float]) -> Comparison:
    """Compare one run with earlier ones of the same kind."""
    if len(earlier) < MIN_EARLIER:
        return Comparison(seconds, len(earlier))
    baseline = statistics.median(earlier)
    if baseline <= 0:
        return Comparison(seconds, len(earlier))
    usual = _AS_STANDARD_DEVIATION * statistics.median(abs(value - baseline) for value in earlier)
    slower_by = seconds / baseline - 1
    return Comparison(
        seconds,
        len(earlier),
        baseline,
        slower_by,
        is_regression=slower_by > LEAST_SLOWDOWN and seconds - baseline > _DEVIATIONS * usual,
    )
