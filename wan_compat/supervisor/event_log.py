"""What happened to one job, kept for any number of readers: its own program, other threads, clients of a socket.

One writer appends; each reader has a place of its own, so that none takes an event from another and a late one begins
at the first. Bounded without the readers' help: of very much progress the older half is forgotten, and so is the older
half of the pictures; a reader who was slower than that misses what newer ones made old.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from wan_compat.supervisor import events as ev

MAX_KEPT = 10_000
MAX_PICTURES = 64  # latent previews, up to 48 kB each
BATCH = 256

_PASSING = (ev.Progress, ev.LatentPreview)


class EventLog:
    """Thread-safe. Events are numbered from 0; numbers of forgotten ones are not given again."""

    def __init__(self) -> None:
        self._events: list[tuple[int, ev.Event]] = []
        self._next = 0
        self._pictures = 0
        self._over = False
        self._changed = threading.Condition()
        self._watchers: list[Callable[[], None]] = []

    def append(self, event: ev.Event) -> None:
        """Add one event and wake the readers. After `end`, nothing is added any more."""
        self._add(event, is_last=False)

    def end(self, last: ev.Event | None = None) -> None:
        """Say that nothing will follow, after `last`. Only the first end counts."""
        self._add(last, is_last=True)

    def read(self, after: int, limit: int = BATCH) -> tuple[list[tuple[int, ev.Event]], bool]:
        """Return up to `limit` (number, event) from number `after` on, and whether these are the last ones of all."""
        with self._changed:
            found = self._events[self._place(after) :]
            return found[:limit], self._over and len(found) <= limit

    def wait(self, after: int, timeout_s: float | None = None) -> bool:
        """Wait until there is an event from number `after` on, or the end; return whether there is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._over or self._next > after, timeout_s)

    def wait_over(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; return whether it came."""
        with self._changed:
            return self._changed.wait_for(lambda: self._over, timeout_s)

    def __iter__(self) -> Iterator[ev.Event]:
        """Yield every event from the first one on, as they come, until the end."""
        after, is_over = 0, False
        while not is_over:
            self.wait(after)
            batch, is_over = self.read(after)
            for number, event in batch:
                after = number + 1
                yield event

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Have `watcher` called, by the writer's thread, whenever there is something new; it must not block or raise.

        It is called once at once, for what is there already.

        Returns:
            What ends this.
        """
        with self._changed:
            self._watchers.append(watcher)
        watcher()

        def unwatch() -> None:
            with self._changed:
                if watcher in self._watchers:
                    self._watchers.remove(watcher)

        return unwatch

    @property
    def next_number(self) -> int:
        """The number that the next event will have."""
        return self._next

    @property
    def is_over(self) -> bool:
        return self._over

    def replace_last(self, event: ev.Event) -> None:
        """Put another event in the place of the last one: the same with less in it."""
        with self._changed:
            self._events[-1] = (self._events[-1][0], event)

    def _add(self, event: ev.Event | None, *, is_last: bool) -> None:
        with self._changed:
            if self._over:
                return
            if event is not None:
                self._events.append((self._next, event))
                self._next += 1
                self._pictures += isinstance(event, ev.LatentPreview)
                if self._pictures > MAX_PICTURES:
                    self._forget((ev.LatentPreview,))
                if len(self._events) > MAX_KEPT:
                    self._forget(_PASSING)
            # With its last event at once: who reads that one may rely on the rest.
            self._over = is_last
            self._changed.notify_all()
            watchers = tuple(self._watchers)
        for watcher in watchers:
            watcher()

    def _place(self, after: int) -> int:
        first = self._events[0][0] if self._events else self._next
        if after <= first:
            return 0
        # Where nothing was forgotten in between, which is nearly always, numbers and places differ by a constant.
        guess = min(after - first, len(self._events))
        while guess > 0 and self._events[guess - 1][0] >= after:
            guess -= 1
        return guess

    def _forget(self, kinds: tuple[type, ...]) -> None:
        """Let the older half of these kinds go; and where that does not help, the oldest of whatever kind."""
        places = [place for place, (_, event) in enumerate(self._events) if isinstance(event, kinds)]
        gone = set(places[: (len(places) + 1) // 2])
        kept = [item for place, item in enumerate(self._events) if place not in gone]
        self._events = kept if len(kept) < MAX_KEPT else kept[-MAX_KEPT // 2 :]
        self._pictures = sum(isinstance(event, ev.LatentPreview) for _, event in self._events)
