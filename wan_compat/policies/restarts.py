"""When a model whose workers died gets another one: at once, after a pause, or not for a while.

    deaths in a row     1, 2        3      4      5      6, 7, ...
    the next worker     at once     1 s    2 s    4 s    given up: 5 min, 10 min, ... up to 1 h; one more try after each

A death is a worker that crashed, was killed by the kernel, fell silent, stalled or broke the protocol: nothing that it
reported itself, nothing that somebody asked for, and no worker that never came up, which is no fault of its model's.
One success forgets them all, and so does an hour without a death. Within one job, recovery restarts a worker two or
three times of its own (policies/recovery/); each counts here.
"""

from __future__ import annotations

import dataclasses

# Two jobs of bad luck are no pattern: a machine that was out of memory for a moment, a card that was reset.
FREE_DEATHS = 2
PAUSES_S = (1.0, 2.0, 4.0)
GIVE_UP_AFTER = FREE_DEATHS + len(PAUSES_S) + 1
FIRST_REST_S = 300.0
LONGEST_REST_S = 3600.0
FORGET_S = 3600.0

# Codes of errors that say that a worker is gone, or had to go.
DEATHS = frozenset(
    {"worker_died", "worker_silent", "worker_stalled", "protocol_violation", "corrupt_frame", "forbidden_call"}
)


@dataclasses.dataclass(frozen=True)
class Allowed:
    """Another worker may be started, after `pause_s`."""

    pause_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class Refused:
    """None before the moment `until_s`. `deaths` in a row, the last one with `last_error`."""

    until_s: float
    deaths: int
    last_error: str


@dataclasses.dataclass(frozen=True)
class Deaths:
    """The deaths in a row of one model's workers. Moments are of one monotonic clock, in seconds."""

    count: int = 0
    last_s: float = 0.0
    last_error: str = ""

    def after(self, error: str, now_s: float) -> Deaths:
        """Another one died."""
        known = 0 if now_s - self.last_s > self._remembered_s() else self.count
        return Deaths(known + 1, now_s, error)

    def verdict(self, now_s: float) -> Allowed | Refused:
        """Say whether another worker may be started now."""
        since_s = now_s - self.last_s
        if self.count <= FREE_DEATHS or since_s > self._remembered_s():
            return Allowed()
        if self.count < GIVE_UP_AFTER:
            return Allowed(max(0.0, PAUSES_S[self.count - FREE_DEATHS - 1] - since_s))
        if since_s < self._rest_s():
            return Refused(self.last_s + self._rest_s(), self.count, self.last_error)
        return Allowed()

    def _rest_s(self) -> float:
        # Bounded before it is computed: a count has no bound, and a float has.
        return min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(10, max(0, self.count - GIVE_UP_AFTER)))

    def _remembered_s(self) -> float:
        """How long a death counts: after a rest there must be time for the one more try."""
        return FORGET_S + (self._rest_s() if self.count >= GIVE_UP_AFTER else 0.0)
