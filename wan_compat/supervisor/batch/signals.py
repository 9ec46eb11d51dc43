"""Ctrl-C, SIGTERM and SIGHUP as events that wait their turn: none falls between two steps that belong together."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import signal
import threading
from collections.abc import Iterator
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class SignalCame:
    number: int


@contextlib.contextmanager
def signals_to(events: queue.SimpleQueue[Any]) -> Iterator[None]:
    """Put signals into a queue. A SimpleQueue's put may interrupt its own get, which signal handlers do.

    Outside of a main thread nothing is changed: handlers are its alone, and it is who runs the program that hears them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    # Ignored by who started us, and means it; or not Python's to give back.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, lambda number, _frame: events.put(SignalCame(number)))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
