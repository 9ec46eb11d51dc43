"""How long each phase of a job may take: as people write it, and the clock that counts what each has taken.

A worker says which step of which phase is over, and gains nothing by it. The supervisor's orders begin phases; what a
worker says only decides to which phase of the same order the time is charged, and what a phase has taken is never
forgotten:

    order           phases that the time can be charged to
    LoadModel       load
    Generate        text_encode, denoise, decode
    DecodeAgain     decode
    OpenWeights     open
    SendTensors     convert

Going back to an earlier phase is a violation (protocol/states.py). What remains is a worker that calls every step the
last one: some pipelines do not tell how many they will take, and that is no reason to end them. In all it gets what an
honest one gets.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wan_compat.policies.limits import LONGEST_PHASE_S, Deadlines
from wan_compat.policies.quantities import seconds_from
from wan_compat.protocol.errors import InvalidRequest, clean_text
from wan_compat.protocol.values import ConversionPhase, TimedPhase

PHASES: tuple[TimedPhase, ...] = typing.get_args(TimedPhase)
CONVERSION_PHASES: tuple[ConversionPhase, ...] = typing.get_args(ConversionPhase)
ALL_PHASES: tuple[TimedPhase | ConversionPhase, ...] = (
    *PHASES,
    *(phase for phase in CONVERSION_PHASES if phase not in PHASES),
)
P = typing.TypeVar("P", bound=str)

_OF_ONE_ORDER = {"text_encode": frozenset(("text_encode", "denoise", "decode"))}

# Once the pace is known, a phase may take this many times what it says, and never less than LEAST_PACED_S: a machine
# that gets other work to do, or begins to swap, is slower by such a factor and goes on.
PACE_FACTOR = 20
LEAST_PACED_S = 3600.0


def parse_phase_timeouts(texts: Iterable[str] | None) -> dict[TimedPhase, float]:
    """Return phase -> seconds for every `PHASE=TIME` of a generation. A phase may be written with a dash.

    Raises:
        InvalidRequest: No such phase, one that is named twice, no length of time.
    """
    return _parsed(texts, PHASES)


def parse_conversion_timeouts(texts: Iterable[str] | None) -> dict[ConversionPhase, float]:
    """Return the same for the phases of a conversion."""
    return _parsed(texts, CONVERSION_PHASES)


def read_phase_timeouts(value: str | Mapping[str, object]) -> dict[TimedPhase, float]:
    """Return phase -> seconds from a field: `load=20m, decode=1h`, or a table of lengths.

    Raises:
        InvalidRequest: As above.
    """
    return _read(value, PHASES)


def read_all_timeouts(value: str | Mapping[str, object]) -> dict[TimedPhase | ConversionPhase, float]:
    """Return the same from a setting, which is for generations and conversions."""
    return _read(value, ALL_PHASES)


def phase_timeouts(request: Mapping[Any, float], settings: Mapping[Any, float]) -> dict[str, float]:
    """Return what was asked for each phase: the request's, no more than the settings'; theirs where it says nothing."""
    both: dict[str, float] = {**settings, **request}
    return {phase: min(seconds, settings.get(phase, seconds)) for phase, seconds in both.items()}


def _read(value: str | Mapping[str, object], phases: Sequence[P]) -> dict[P, float]:
    if isinstance(value, str):
        return _parsed((part for part in value.split(",") if part.strip()), phases)
    return {(phase := _phase(str(name), phases)): _seconds(phase, length) for name, length in value.items()}


def _parsed(texts: Iterable[str] | None, phases: Sequence[P]) -> dict[P, float]:
    found: dict[P, float] = {}
    for text in texts or ():
        name, equals, length = text.partition("=")
        phase = _phase(name, phases)
        if not equals:
            raise InvalidRequest(
                f"{clean_text(text, 60)!r} is no timeout of a phase", hint="PHASE=TIME, such as load=20m or decode=1.5h"
            )
        if phase in found:
            raise InvalidRequest(f"the timeout of {phase} is given twice", hint="leave one of them out")
        found[phase] = _seconds(phase, length)
    return found


def _phase(name: str, phases: Sequence[P]) -> P:
    written = name.strip().replace("-", "_")
    for phase in phases:
        if phase == written:
            return phase
    raise InvalidRequest(
        f"{clean_text(name.strip(), 60)!r} is no phase with a timeout", hint=f"there are {', '.join(phases)}"
    )


def _seconds(phase: str, length: object) -> float:
    try:
        if isinstance(length, bool) or not isinstance(length, str | int | float):
            raise ValueError(f"{clean_text(str(length), 40)} is not a length of time")
        seconds = seconds_from(length) if isinstance(length, str) else float(length)
        if not 0 < seconds <= LONGEST_PHASE_S:
            raise ValueError(f"{seconds:g} s is not more than 0 and at most {LONGEST_PHASE_S / 86400:g} days")
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"the timeout of {phase}: {error}") from error
    return seconds


@dataclasses.dataclass(frozen=True)
class Overdue:
    """`phase` took longer than its `limit_s`."""

    phase: str
    limit_s: float


class PhaseClock:
    """Follows one job. All moments are of one monotonic clock, in seconds.

    Between `begin` and `rest` time is charged; outside, the supervisor is busy with something of its own.
    """

    def __init__(self, limits: Deadlines) -> None:
        self._asked = limits.asked
        self._defaults = limits.by_phase()
        self._order = self._phase = ""
        self._since_s = 0.0
        self._taken: dict[str, float] = {}
        self._paced: dict[str, float] = {}
        self._first: dict[str, float] = {}

    def begin(self, phase: str, now_s: float) -> None:
        """The supervisor begins a phase, or orders what begins with it; nothing is taken yet."""
        self._order = self._phase = phase
        self._since_s = now_s
        self._taken.clear()
        self._paced.clear()
        self._first.clear()

    def stepped(self, phase: str, next_phase: str, now_s: float) -> None:
        """The worker says that it did a step of `phase`: so the time since the last one was for that. What comes now is
        `next_phase`. Only phases of the order that it has are heard."""
        known = _OF_ONE_ORDER.get(self._order, frozenset((self._order,)))
        if phase in known:
            self._phase = phase
            self._charge(now_s)
            self._first.pop(phase, None)
        if next_phase in known:
            self._charge(now_s)
            self._phase = next_phase

    def expect(self, phase: str, seconds: float, now_s: float) -> None:
        """All of a phase takes about `seconds`, by the pace of its first steps. Narrows what it may take, once."""
        if phase == self._phase and phase not in self._paced:
            self._charge(now_s)
            self._paced[phase] = max(LEAST_PACED_S, self._taken[phase] + PACE_FACTOR * seconds)

    def expect_first(self, phase: str, seconds: float) -> None:
        """The first step of a phase takes no longer than that. Bounds the phase until that step is over."""
        self._first[phase] = seconds

    def rest(self) -> None:
        """Nothing is timed until something begins."""
        self.begin("", 0.0)

    def overdue(self, now_s: float) -> Overdue | None:
        """Return the first phase that took longer than it may, the one of now among them."""
        taken = dict(self._taken)
        if self._phase:
            taken[self._phase] = taken.get(self._phase, 0.0) + now_s - self._since_s
        for phase, seconds in taken.items():
            limit_s = self._limit_s(phase)
            if limit_s is not None and seconds > limit_s:
                return Overdue(phase, limit_s)
        return None

    def _limit_s(self, phase: str) -> float | None:
        if phase in self._asked:
            return self._asked[phase]
        limits = (self._defaults.get(phase), self._paced.get(phase), self._first.get(phase))
        return min((limit for limit in limits if limit is not None), default=None)

    def _charge(self, now_s: float) -> None:
        self._taken[self._phase] = self._taken.get(self._phase, 0.0) + max(0.0, now_s - self._since_s)
        self._since_s = now_s
