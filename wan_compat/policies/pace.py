"""How long a step takes and how long a phase will: the median of the last steps, which one odd step does not move.

The first step of a phase is slower than the others (memory is allocated, kernels are chosen), so it is left out as soon
as there is a second one. What a worker says is only ever counted, never trusted: steps that go backwards begin anew.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

KEPT_STEPS = 8
# A step that takes this many times as long as those before hangs; never said before LEAST_STALL_S are over.
STALL_FACTOR = 20
LEAST_STALL_S = 600.0
# A phase's length is told by its pace once this many steps after the first are known.
SETTLED_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """`rate_s`: seconds that a step takes; `eta_s`: seconds until the phase is over. None while nothing is known."""

    rate_s: float | None = None
    eta_s: float | None = None


class Pace:
    """Follows one job. All moments are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._phase = ""
        self._step = self._total = 0
        self._moment_s = 0.0
        self._first: float | None = None
        self._later: collections.deque[float] = collections.deque(maxlen=KEPT_STEPS)

    def start(self, phase: str, now_s: float) -> None:
        """A phase begins."""
        self._phase, self._step, self._moment_s = phase, 0, now_s
        self._total = 0
        self._first = None
        self._later.clear()

    def progress(self, phase: str, step: int, total: int, now_s: float) -> Estimate:
        """`step` steps of `total` are done; return what that says about the rest."""
        if phase != self._phase or step < self._step:
            self.start(phase, now_s)
        if step > self._step:
            each = max(0.0, now_s - self._moment_s) / (step - self._step)
            if self._step == 0:
                self._first = each
            else:
                self._later.append(each)
            self._step, self._moment_s = step, now_s
        self._total = total
        rate = median(self._later) if self._later else self._first
        return Estimate(rate, rate * max(0, total - step) if rate is not None else None)

    def whole_s(self) -> float | None:
        """Return how long all of the phase takes by the pace of its steps, None while too few are known."""
        return median(self._later) * self._total if len(self._later) >= SETTLED_STEPS else None

    def stalled_s(self, now_s: float) -> float | None:
        """Return for how long a step that must be hanging has been running, None if none is.

        Told by the steps before it; nobody can say how long a first one takes, or what comes after the last.
        """
        if not self._later or self._step >= self._total:
            return None
        waited = now_s - self._moment_s
        return waited if waited > max(LEAST_STALL_S, STALL_FACTOR * median(self._later)) else None


def median(values: Iterable[float]) -> float:
    """Return the middle one, the larger of two: `statistics` would cost every start of the program 10 ms."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
