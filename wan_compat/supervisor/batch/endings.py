"""What becomes of an item whose job is over: done, failed, once more, or left for later; and of one that finds no room.

    job ----> Done -----------> release
         |-> Failed, or once more
         |-> disk full: Released, wait for room
         '-> interrupted: Released

In the thread that runs the batch.
"""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Callable
from typing import Any

from wan_compat.policies.batch.carry import lesson
from wan_compat.policies.batch.items import Item
from wan_compat.policies.batch.progress import is_worth_another_try
from wan_compat.policies.batch.records import Done, Failed, Learned, Paused, Released
from wan_compat.protocol.errors import DiskExceeded, JobCancelled, OutputExists, WanCompatError
from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.supervisor.batch.books import Books
from wan_compat.supervisor.batch.contract import BatchView, RunOptions
from wan_compat.supervisor.batch.finding import done_fields, find_output
from wan_compat.supervisor.batch.folder import BatchFolder
from wan_compat.supervisor.batch.leases import Leases
from wan_compat.supervisor.batch.room import LOOK_AGAIN_S, Pause
from wan_compat.supervisor.batch.run_state import Running, RunState
from wan_compat.supervisor.batch.signals import SignalCame

# With room on the disk all the same, it is not the batch's disk that is full.
MAX_DISK_FAILURES = 3

# What would fail every item alike: the batch ends, and its items stay as they were.
_ENDS_ALL = frozenset((
    "sandbox_unavailable", "sandbox_entry_failed", "worker_extra_missing", "ffmpeg_missing", "state_unsafe",
    "state_corrupt", "queue_full",
))  # fmt: skip


class Endings:
    """
    Args:
        state: Of the run.
        leases: Of its items.
        events: Of jobs, and signals: heard while a record waits for room.
        changed: Called after every item that ended, to keep the report.
    """

    def __init__(
        self,
        state: RunState,
        options: RunOptions,
        folder: BatchFolder,
        books: Books,
        leases: Leases,
        view: BatchView,
        events: queue.SimpleQueue[Any],
        changed: Callable[[], None],
    ) -> None:
        self._state, self._options, self._folder = state, options, folder
        self._books, self._leases, self._view = books, leases, view
        self._events, self._changed = events, changed
        self._pause = Pause(folder.path)

    @property
    def waits_for_room(self) -> bool:
        return self._pause.is_on

    def after(self, running: Running) -> None:
        """Record what a job came to, and what is to be done with its item."""
        del self._state.running[running.item.key]
        try:
            result: VideoGenerationResult = running.job.result(0)
        except WanCompatError as error:
            self._end_without(running, error)
        else:
            self._end_with(running, result)

    def _end_with(self, running: Running, result: VideoGenerationResult) -> None:
        item = running.item
        assert result.output is not None
        facts = {"sha256": result.output.sha256, "bytes": result.output.bytes} | done_fields(result.to_json())
        # There is a video now: its record is worth waiting for room, whatever else was asked for meanwhile.
        record = self._record_in_time(Done, item, output=running.output, **facts)
        # Without what only the first video of a worker costs, so that the rest is not thought as slow.
        spent = result.timings
        self._state.seconds.append(max(0.0, spent.total_s - spent.worker_start_s - spent.load_s))
        learned = lesson(result.recovery)
        if learned and self._books.lessons.get(item.request.model) != learned and record is not None:
            self._books.lessons[item.request.model] = learned
            with contextlib.suppress(WanCompatError):  # it would be learned once more
                self._books.append(Learned, model=item.request.model[:4000], fields=dict(learned), key=item.key)
            words = ", ".join(f"{name} {value}" for name, value in learned.items())
            self._view.note(f"The following videos of {item.request.model} start with what helped this one: {words}")
        if record is not None:
            self.settle(item, record)

    def _end_without(self, running: Running, error: WanCompatError) -> None:
        item, key = running.item, running.item.key
        if not self._leases.holds(key):
            # Another process has it now: nothing is recorded of what is not ours, and its video is the one that counts.
            self._found_instead(running, error)
            return
        if isinstance(error, JobCancelled) and running.cancelled:
            self._release(item, "interrupted")
            return
        if isinstance(error, DiskExceeded) and self._state.disk_failures.get(key, 0) < MAX_DISK_FAILURES:
            self._state.disk_failures[key] = self._state.disk_failures.get(key, 0) + 1
            self._state.attempts[key] -= 1
            self._release(item, "the disk is full")
            self.wait_for_room(error.message)
            return
        if error.code in _ENDS_ALL:
            self._release(item, error.code)
            self._state.end_all(error)
            return
        if running.learned and key not in self._state.unlearned and not isinstance(error, JobCancelled):
            self._state.unlearned.add(key)
            self._state.attempts[key] -= 1
            self._release(item, f"{error.code}, with what another item learned")
            self._view.note(f"{running.output} failed ({error.code}); once more without what others learned")
            return
        if isinstance(error, OutputExists) and (found := self._found_instead(running, error)) is not None:
            self.settle(item, self._books.of_item(Done, item, output=running.output, found=True, **found))
            return
        if (
            running.attempt <= self._options.max_retries
            and is_worth_another_try(error.code)
            and not self._state.stopping
        ):
            self._release(item, f"{error.code}, to be tried again")
            self._view.note(f"{running.output} failed ({error.code}): {error.message}; once more")
            return
        self.fail(item, error, time.monotonic() - running.began)

    def _found_instead(self, running: Running, error: WanCompatError) -> dict[str, Any] | None:
        """Return the facts of this very video, made by somebody else meanwhile; ours, made for nothing, is removed."""
        kept = error.details.get("kept")
        with contextlib.suppress(OutputExists):
            found = find_output(self._folder, running.item, running.output, None)
            if found is not None and isinstance(error, OutputExists) and isinstance(kept, str):
                with contextlib.suppress(OSError):
                    os.unlink(kept)
            return found
        return None

    def fail(self, item: Item, error: WanCompatError, seconds: float) -> None:
        """An item failed, for this run."""
        record = self._record_in_time(
            Failed,
            item,
            code=error.code,
            message=error.message[:4000],
            attempt=self._state.attempts.get(item.key, 1),
            seconds=seconds,
            kept=_text(error.details.get("kept")),
        )
        if record is not None:
            self.settle(item, record)
        if self._options.fail_fast and not self._state.stopping:
            self._state.stopping = True
            self._view.note("Nothing more is started (--fail-fast)")

    def settle(self, item: Item, record: Done | Failed) -> None:
        """An item has its end."""
        if isinstance(record, Done):
            self._state.outcome.done += 1
        else:
            self._state.outcome.failed += 1
        self._state.todo.pop(item.key, None)
        self._leases.release(item.key)
        self._view.ended(item, record)
        self._state.show()
        self._changed()

    def _release(self, item: Item, why: str) -> None:
        """An item is to do again, by whoever comes first."""
        try:
            record = self._books.of_item(Released, item, why=why[:200])
            self._view.ended(item, record)
        except DiskExceeded:
            pass  # an attempt without an end says the same
        self._leases.release(item.key)
        self._state.show()

    def is_room(self) -> bool:
        """Whether there is room to start something."""
        if not self._pause.is_on:
            return True
        waited = self._pause.end_if_over()
        if waited is None:
            return False
        with contextlib.suppress(WanCompatError):
            self._books.append(Paused, room=True)
        self._view.note(f"There is room again, after {waited:.0f} s; going on")
        return True

    def wait_for_room(self, message: str) -> None:
        """Start nothing until there is room on the disk."""
        if self._pause.begin():
            self._view.note(f"The disk is full: {message}. Waiting for room; free some, and it goes on by itself")
            with contextlib.suppress(WanCompatError):  # there is no room for this either, most likely
                self._books.append(Paused, room=False)

    def _record_in_time(self, kind: Any, item: Item, **fields: Any) -> Any:
        """Record the end of an item, waiting for room if need be; None if that was given up on a signal."""
        while True:
            try:
                return self._books.of_item(kind, item, **fields)
            except DiskExceeded as error:
                self.wait_for_room(error.message)
            deadline = time.monotonic() + LOOK_AGAIN_S
            kept: list[Any] = []
            while (left := deadline - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    event = self._events.get(timeout=left)
                    if isinstance(event, SignalCame):
                        self._state.hear_signal(event.number)
                    else:
                        kept.append(event)
            for event in kept:
                self._events.put(event)
            if self._state.killing:
                # The video stands with its sidecar: the next run finds it.
                self._leases.release(item.key)
                return None


def _text(value: object) -> str | None:
    return value[:4000] if isinstance(value, str) else None
