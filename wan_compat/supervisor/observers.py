"""Observers: what wants to know what a supervisor's jobs do, without being asked to: a log, metrics.

    queued   a job was accepted                    by the thread that submitted it
    event    something happened to a job           by its runner
    note     something happened to the supervisor  by whoever saw it
    close    the supervisor is over

An observer returns at once, since a job waits for it, and never changes anything. One that raises is let go, and a note
says so: a full disk under a log costs the log, not the video.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan_compat.protocol.status import Note
    from wan_compat.supervisor import events as ev
    from wan_compat.supervisor.job import Job


class Observer:
    """Base of observers: all of it does nothing."""

    name = "an observer"

    def queued(self, job: Job[Any]) -> None:
        """A job was accepted and waits."""

    def event(self, job: Job[Any], event: ev.Event) -> None:
        """Something happened to a job; the last event of each is Finished or Ended."""

    def note(self, note: Note) -> None:
        """Something happened that a person may want to know."""

    def close(self) -> None:
        """Nothing will follow. May take a moment, for what has to be written still."""


class Observers:
    """The observers of one supervisor. Thread-safe.

    Args:
        lost: Told in a sentence when an observer failed and was let go.
    """

    def __init__(self, lost: Callable[[str], None]) -> None:
        self._lost = lost
        self._lock = threading.Lock()
        self._all: tuple[Observer, ...] = ()

    def add(self, observer: Observer) -> None:
        with self._lock:
            self._all = (*self._all, observer)

    def queued(self, job: Job[Any]) -> None:
        for observer in self._all:
            self._tell(observer, observer.queued, job)

    def event(self, job: Job[Any], event: ev.Event) -> None:
        for observer in self._all:
            self._tell(observer, observer.event, job, event)

    def note(self, note: Note) -> None:
        for observer in self._all:
            self._tell(observer, observer.note, note)

    def close(self) -> None:
        with self._lock:
            observers, self._all = self._all, ()
        for observer in observers:
            self._tell(observer, observer.close)

    def _tell(self, observer: Observer, tell: Callable[..., None], *arguments: Any) -> None:
        try:
            tell(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job is not to blame
            with self._lock:
                self._all = tuple(other for other in self._all if other is not observer)
            self._lost(f"{observer.name} failed and was let go: {type(error).__name__}: {error}")
