"""Remembers whose workers died in a row, and keeps jobs of such a model waiting or refuses them (policies/restarts.py).

One for all runners of a supervisor; a new supervisor starts from nothing. A zygote is remembered like a model, under a
name of its own: one that dies while it imports will most likely do so again, and its imports cost seconds.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from wan_compat.policies.restarts import DEATHS, Deaths, Refused
from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.protocol.errors import GivenUp, JobCancelled, WanCompatError, clean_text
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor.attempts import wait

MAX_REMEMBERED = 1000
_ERROR_CHARS = 300


class RestartGuard:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deaths: OrderedDict[Hashable, Deaths] = OrderedDict()

    def wait_turn(
        self, key: Hashable, who: str, interrupted: Callable[[], bool], tell: Callable[[str], None] | None = None
    ) -> None:
        """Return when another process of this kind may be started.

        Args:
            key: What it is for: `key_of(request)`, or a zygote's.
            who: In words, for the error.
            interrupted: Asked while waiting.
            tell: Hears that there is a wait, and why.

        Raises:
            GivenUp: Not for a while; says until when.
            JobCancelled: `interrupted` said so.
        """
        now = time.monotonic()
        with self._lock:
            deaths = self._deaths.get(key, Deaths())
        verdict = deaths.verdict(now)
        if isinstance(verdict, Refused):
            raise _given_up(verdict, who, verdict.until_s - now)
        if verdict.pause_s > 0:
            if tell is not None:
                tell(f"{deaths.count} {who} died in a row: waiting {verdict.pause_s:.1f} s before the next one")
            if wait(verdict.pause_s, interrupted):
                raise JobCancelled("cancelled while waiting for another worker")

    def failed(self, key: Hashable, error: WanCompatError) -> None:
        """Something went wrong; only what says that a process died counts, and not what somebody asked for."""
        if error.code in DEATHS:
            self.died(key, f"{error.code}: {error.message}")

    def died(self, key: Hashable, error: str) -> None:
        with self._lock:
            before = self._deaths.pop(key, Deaths())
            self._deaths[key] = before.after(clean_text(error, _ERROR_CHARS), time.monotonic())
            while len(self._deaths) > MAX_REMEMBERED:
                self._deaths.popitem(last=False)

    def succeeded(self, key: Hashable) -> None:
        with self._lock:
            self._deaths.pop(key, None)


def key_of(request: GenerationRequest) -> Hashable:
    """Return what jobs that would meet the same death have in common."""
    return request.model, request.mode, request.restricted


def conversion_key_of(request: ConversionRequest) -> Hashable:
    """The same for conversions, which read other files of a model in another way: whoever dies of them says nothing
    about a generation."""
    return "conversion", request.model


def _given_up(verdict: Refused, who: str, left_s: float) -> GivenUp:
    until_unix_s = time.time() + left_s
    at = datetime.datetime.fromtimestamp(until_unix_s).astimezone().strftime("%H:%M:%S %Z")
    return GivenUp(
        f"{verdict.deaths} {who} died one after the other, and none is started before {at} (in {left_s / 60:.0f} min); "
        f"the last one: {verdict.last_error}",
        fixes=[
            "see what the model's workers print with --worker-log FILE",
            "see what is wrong with the model with `wan-compat check`, or with the machine with `wan-compat doctor`",
        ],
        details={"deaths": verdict.deaths, "last_error": verdict.last_error, "until_unix_s": until_unix_s},
    )
