"""Runs the items of a batch: claims, records, jobs, and what becomes of each.

    claim -> look again -> Started -> job ----> Done -----------> release
                 |                      |-> Failed, or once more
                 |                      |-> disk full: Released, wait for room
                 '-> done elsewhere     '-> interrupted: Released

One thread does all of it but to read the jobs' events; they, signals and lost leases come to it through one queue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from wan_compat.policies.batch.carry import lesson, with_lesson
from wan_compat.policies.batch.items import Item
from wan_compat.policies.batch.progress import is_worth_another_try, remaining_s
from wan_compat.policies.batch.records import Done, Failed, Learned, Paused, Released, RunEnded, RunStarted, Started
from wan_compat.protocol.errors import DiskExceeded, JobCancelled, OutputExists, WanCompatError
from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.batch.books import Books
from wan_compat.supervisor.batch.contract import BatchView, Outcome, RunOptions
from wan_compat.supervisor.batch.finding import done_fields, find_output, is_replaceable, remove_unfinished
from wan_compat.supervisor.batch.journal import Journal
from wan_compat.supervisor.batch.leases import Leases, Owner
from wan_compat.supervisor.batch.preflight import BatchPlan
from wan_compat.supervisor.batch.room import LOOK_AGAIN_S, Pause
from wan_compat.supervisor.batch.signals import SignalCame, signals_to
from wan_compat.supervisor.client import Supervisor

# How often what other processes did is looked for, while there is something to wait for.
LOOK_S = 1.0
# With room on the disk all the same, it is not the batch's disk that is full.
MAX_DISK_FAILURES = 3
STOP_TIMEOUT_S = 15.0

# What would fail every item alike: the batch ends, and its items stay as they were.
_ENDS_ALL = frozenset((
    "sandbox_unavailable", "sandbox_entry_failed", "worker_extra_missing", "ffmpeg_missing", "state_unsafe",
    "state_corrupt", "queue_full",
))  # fmt: skip


@dataclasses.dataclass
class _Running:
    """An item whose job was submitted. `learned`: with what other items taught; `cancelled`: by this run."""

    item: Item
    output: str
    job: Any
    attempt: int
    began: float
    learned: bool
    cancelled: bool = False


@dataclasses.dataclass(frozen=True)
class _LostLease:
    key: str


class BatchRun:
    """One run of one shard. The shard is held, and its journal open, for as long as it exists.

    Args:
        supervisor: Runs the jobs; not closed here.
        changed: Called after every item that ended, to keep the report.
    """

    def __init__(
        self,
        plan: BatchPlan,
        options: RunOptions,
        supervisor: Supervisor,
        journal: Journal,
        view: BatchView,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan, self._options, self._supervisor = plan, options, supervisor
        self._folder, self._view, self._changed = plan.folder, view, changed
        self._owner = Owner.this_process()
        self._books = Books(plan, journal, self._owner)
        self._pause = Pause(plan.folder.path)
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: dict[str, _Running] = {}
        self._todo = {item.key: item for item in plan.left if not self._books.is_done(item)}
        self._attempts: dict[str, int] = {}
        self._disk_failures: dict[str, int] = {}
        self._unlearned: set[str] = set()  # items that failed with what was learned, and go without it
        self._seconds: list[float] = []
        self._stopping = False  # nothing more is started
        self._killing = False  # and what runs is cancelled
        self._waiting_told = False
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Run all items that are left; return how that went. Ctrl-C, SIGTERM and SIGHUP end it in an orderly way.

        Raises:
            DiskExceeded, OutputNotWritable: The journal cannot be written from the beginning, or the folder is gone.
        """
        began = time.monotonic()
        owner, books = self._owner, self._books
        leases = self._leases = Leases(
            self._folder.leases,
            owner,
            stale_s=self._options.stale_s,
            beat_s=self._options.beat_s,
            lost=lambda key: self._events.put(_LostLease(key)),
        )
        with contextlib.ExitStack() as stack:
            stack.callback(leases.close)
            stack.enter_context(signals_to(self._events))
            batch, items = self._plan.file.path[:4000], len(self._plan.items)
            books.append(RunStarted, pid=owner.pid, host=owner.host[:200], batch=batch, items=items)
            try:
                self._loop()
                self._look_around()  # the report tells of the other runs what is known at the end
                leases.sweep(lambda key: not books.progress.is_waiting(key))
            finally:
                self._stop_all()
            why = self._outcome.interrupted or ("ended by an error" if self._outcome.fatal else "ended")
            with contextlib.suppress(WanCompatError):  # a full disk: the run ends all the same
                books.append(RunEnded, why=why)
        self._outcome.left = len(self._todo)
        self._outcome.seconds = time.monotonic() - began
        return self._outcome

    # -- the loop ------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        self._show()
        while True:
            if not self._stopping:
                self._start_some()
            if not self._running and (self._stopping or not self._todo):
                return
            self._wait()

    def _wait(self) -> None:
        if not self._running and not self._pause.is_on and not self._waiting_told:
            self._waiting_told = True
            self._view.note(f"Waiting for {len(self._todo)} videos that other runs are making")
        # While jobs run and nothing else is waited for, their events wake us; the look at the clock is a courtesy.
        try:
            event = self._events.get(timeout=LOOK_S)
        except queue.Empty:
            return
        if isinstance(event, SignalCame):
            self._hear_signal(event.number)
        elif isinstance(event, _LostLease):
            if (lost := self._running.get(event.key)) is not None:
                self._view.note(f"{lost.output} was taken over by another run")
                lost.job.cancel()
        else:
            key, what = event
            running = self._running.get(key)
            if running is None:
                return  # progress that was overtaken by the end, while a record waited for room
            if what is None:
                self._end(running)
            elif not isinstance(what, ev.Finished | ev.Ended):
                self._view.event(running.item, what)

    def _start_some(self) -> None:
        """Start items while there are places. What another process has is left for the next look."""
        if len(self._running) >= self._options.workers or not self._todo or not self._room():
            return
        self._look_around()
        for key, item in list(self._todo.items()):
            if len(self._running) >= self._options.workers or self._stopping:
                return
            if key in self._running or key not in self._todo or not self._leases.claim(key):
                continue
            try:
                # What happened to it before it was ours, to the last moment.
                self._look_around()
                if key in self._todo:
                    self._begin(item)
                else:
                    self._leases.release(key)
            except DiskExceeded as error:
                self._leases.release(key)
                self._wait_for_room(error.message)
                return
            except BaseException:
                self._leases.release(key)
                raise

    def _look_around(self) -> None:
        """Read what other processes recorded; what they ended is not to do any more."""
        gone = False
        for record in self._books.news():
            item = self._todo.get(getattr(record, "key", ""))
            if item is None or item.key in self._running:
                continue
            if self._books.is_done(item) or self._books.failed_elsewhere(item):
                del self._todo[item.key]
                self._outcome.elsewhere += 1
                gone = True
        if gone:
            self._show()

    # -- one item ------------------------------------------------------------------------------------------------

    def _begin(self, item: Item) -> None:
        """Start an item that is claimed; or record what stands of it already."""
        key = item.key
        output = self._books.progress.output(key) or item.output
        if self._books.progress.done(key) is not None:
            self._books.of_item(Released, item, why="its video is gone")
        begun = self._books.progress.begun(key)
        if begun is not None:
            remove_unfinished(self._folder, output)
        replaces = False
        try:
            found = find_output(self._folder, item, output, begun)
        except OutputExists as error:
            replaces = self._options.overwrite and is_replaceable(self._folder, output)
            if not replaces:
                self._fail(item, error, 0.0)
                return
            found = None
        if found is not None:
            record = self._books.of_item(Done, item, output=output, found=True, **found)
            self._outcome.found += 1
            self._settle(item, record)
            return
        attempt = self._attempts.get(key, 0) + 1
        self._books.of_item(Started, item, output=output, attempt=attempt, replaces=replaces)
        self._attempts[key] = attempt
        fields = {} if key in self._unlearned else self._books.lessons.get(item.request.model, {})
        place = {"output": self._folder.output(output), "overwrite": replaces}
        asked = item.request.model_copy(update=dict(self._options.fields) | place)
        request = with_lesson(asked, fields)
        try:
            job = self._supervisor.submit(request, label=output[:200], group="batch")
        except WanCompatError as error:
            self._books.of_item(Released, item, why=error.code)
            self._end_all(error)
            self._leases.release(key)
            return
        self._running[key] = _Running(item, output, job, attempt, time.monotonic(), request != asked)
        threading.Thread(target=self._read, args=(key, job), name=f"wan-compat-batch-{job.id}", daemon=True).start()
        self._view.started(item, attempt)
        self._show()

    def _read(self, key: str, job: Any) -> None:
        for event in job.events():
            self._events.put((key, event))
        self._events.put((key, None))

    def _end(self, running: _Running) -> None:
        del self._running[running.item.key]
        try:
            result: VideoGenerationResult = running.job.result(0)
        except WanCompatError as error:
            self._end_without(running, error)
        else:
            self._end_with(running, result)

    def _end_with(self, running: _Running, result: VideoGenerationResult) -> None:
        item = running.item
        assert result.output is not None
        facts = {"sha256": result.output.sha256, "bytes": result.output.bytes} | done_fields(result.to_json())
        # There is a video now: its record is worth waiting for room, whatever else was asked for meanwhile.
        record = self._record_in_time(Done, item, output=running.output, **facts)
        # Without what only the first video of a worker costs, so that the rest is not thought as slow.
        spent = result.timings
        self._seconds.append(max(0.0, spent.total_s - spent.worker_start_s - spent.load_s))
        learned = lesson(result.recovery)
        if learned and self._books.lessons.get(item.request.model) != learned and record is not None:
            self._books.lessons[item.request.model] = learned
            with contextlib.suppress(WanCompatError):  # it would be learned once more
                self._books.append(Learned, model=item.request.model[:4000], fields=dict(learned), key=item.key)
            words = ", ".join(f"{name} {value}" for name, value in learned.items())
            self._view.note(f"The following videos of {item.request.model} start with what helped this one: {words}")
        if record is not None:
            self._settle(item, record)

    def _end_without(self, running: _Running, error: WanCompatError) -> None:
        item, key = running.item, running.item.key
        if not self._leases.holds(key):
            # Another process has it now: nothing is recorded of what is not ours, and its video is the one that counts.
            self._found_instead(running, error)
            return
        if isinstance(error, JobCancelled) and running.cancelled:
            self._release(item, "interrupted")
            return
        if isinstance(error, DiskExceeded) and self._disk_failures.get(key, 0) < MAX_DISK_FAILURES:
            self._disk_failures[key] = self._disk_failures.get(key, 0) + 1
            self._attempts[key] -= 1
            self._release(item, "the disk is full")
            self._wait_for_room(error.message)
            return
        if error.code in _ENDS_ALL:
            self._release(item, error.code)
            self._end_all(error)
            return
        if running.learned and key not in self._unlearned and not isinstance(error, JobCancelled):
            self._unlearned.add(key)
            self._attempts[key] -= 1
            self._release(item, f"{error.code}, with what another item learned")
            self._view.note(f"{running.output} failed ({error.code}); once more without what others learned")
            return
        if isinstance(error, OutputExists) and (found := self._found_instead(running, error)) is not None:
            self._settle(item, self._books.of_item(Done, item, output=running.output, found=True, **found))
            return
        if running.attempt <= self._options.max_retries and is_worth_another_try(error.code) and not self._stopping:
            self._release(item, f"{error.code}, to be tried again")
            self._view.note(f"{running.output} failed ({error.code}): {error.message}; once more")
            return
        self._fail(item, error, time.monotonic() - running.began)

    def _found_instead(self, running: _Running, error: WanCompatError) -> dict[str, Any] | None:
        """Return the facts of this very video, made by somebody else meanwhile; ours, made for nothing, is removed."""
        kept = error.details.get("kept")
        with contextlib.suppress(OutputExists):
            found = find_output(self._folder, running.item, running.output, None)
            if found is not None and isinstance(error, OutputExists) and isinstance(kept, str):
                with contextlib.suppress(OSError):
                    os.unlink(kept)
            return found
        return None

    def _fail(self, item: Item, error: WanCompatError, seconds: float) -> None:
        record = self._record_in_time(
            Failed,
            item,
            code=error.code,
            message=error.message[:4000],
            attempt=self._attempts.get(item.key, 1),
            seconds=seconds,
            kept=_text(error.details.get("kept")),
        )
        if record is not None:
            self._settle(item, record)
        if self._options.fail_fast and not self._stopping:
            self._stopping = True
            self._view.note("Nothing more is started (--fail-fast)")

    def _settle(self, item: Item, record: Done | Failed) -> None:
        """An item has its end."""
        if isinstance(record, Done):
            self._outcome.done += 1
        else:
            self._outcome.failed += 1
        self._todo.pop(item.key, None)
        self._leases.release(item.key)
        self._view.ended(item, record)
        self._show()
        self._changed()

    def _release(self, item: Item, why: str) -> None:
        """An item is to do again, by whoever comes first."""
        try:
            record = self._books.of_item(Released, item, why=why[:200])
            self._view.ended(item, record)
        except DiskExceeded:
            pass  # an attempt without an end says the same
        self._leases.release(item.key)
        self._show()

    # -- the disk ------------------------------------------------------------------------------------------------

    def _room(self) -> bool:
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

    def _wait_for_room(self, message: str) -> None:
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
                self._wait_for_room(error.message)
            deadline = time.monotonic() + LOOK_AGAIN_S
            kept: list[Any] = []
            while (left := deadline - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    event = self._events.get(timeout=left)
                    if isinstance(event, SignalCame):
                        self._hear_signal(event.number)
                    else:
                        kept.append(event)
            for event in kept:
                self._events.put(event)
            if self._killing:
                # The video stands with its sidecar: the next run finds it.
                self._leases.release(item.key)
                return None

    # -- the end -------------------------------------------------------------------------------------------------

    def _hear_signal(self, number: int) -> None:
        if number != signal.SIGINT:
            self._outcome.interrupted = "terminated"
            self._kill()
        elif not self._stopping or not self._outcome.interrupted:
            self._outcome.interrupted = "ctrl-c"
            self._stopping = True
            if self._running:
                many = "the videos" if len(self._running) > 1 else "the video"
                self._view.note(f"Finishing {many} that are being made ... (Ctrl-C again to stop now)")
        else:
            self._view.note("Stopping now ...")
            self._kill()

    def _kill(self) -> None:
        self._stopping = self._killing = True
        for running in self._running.values():
            running.cancelled = True
            running.job.cancel()

    def _end_all(self, error: WanCompatError) -> None:
        """Start nothing more: what happened would happen to every item."""
        if self._outcome.fatal is None:
            self._outcome.fatal = error
        self._stopping = True

    def _stop_all(self) -> None:
        """End what runs, when the loop ended with an error of ours; after its regular end, nothing does."""
        if not self._running:
            return
        self._kill()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._running and time.monotonic() < deadline:
            with contextlib.suppress(WanCompatError):
                self._wait()

    def _show(self) -> None:
        eta_s = remaining_s(self._seconds, len(self._todo), self._options.workers)
        books = self._books
        self._view.counts(len(books.done), len(books.failed), len(self._plan.items), eta_s)


def _text(value: object) -> str | None:
    return value[:4000] if isinstance(value, str) else None
