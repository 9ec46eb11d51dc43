"""Runs the items of a batch: claims, records, jobs; what becomes of each is told in endings.py.

    claim -> look again -> Started -> job -> endings
                 |
                 '-> done elsewhere

One thread does all of it but to read the jobs' events; they, signals and lost leases come to it through one queue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from wan_compat.policies.batch.carry import with_lesson
from wan_compat.policies.batch.items import Item
from wan_compat.policies.batch.records import Done, Released, RunEnded, RunStarted, Started
from wan_compat.protocol.errors import DiskExceeded, OutputExists, WanCompatError
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.batch.books import Books
from wan_compat.supervisor.batch.contract import BatchView, Outcome, RunOptions
from wan_compat.supervisor.batch.endings import Endings
from wan_compat.supervisor.batch.finding import find_output, is_replaceable, remove_unfinished
from wan_compat.supervisor.batch.journal import Journal
from wan_compat.supervisor.batch.leases import Leases, Owner
from wan_compat.supervisor.batch.preflight import BatchPlan
from wan_compat.supervisor.batch.run_state import Running, RunState
from wan_compat.supervisor.batch.signals import SignalCame, signals_to
from wan_compat.supervisor.client import Supervisor

# How often what other processes did is looked for, while there is something to wait for.
LOOK_S = 1.0
STOP_TIMEOUT_S = 15.0


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
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._state = RunState(len(plan.items), plan.left, options.workers, self._books, view)
        self._waiting_told = False

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
        state = self._state
        self._endings = Endings(
            state, self._options, self._folder, books, leases, self._view, self._events, self._changed
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
            why = state.outcome.interrupted or ("ended by an error" if state.outcome.fatal else "ended")
            with contextlib.suppress(WanCompatError):  # a full disk: the run ends all the same
                books.append(RunEnded, why=why)
        state.outcome.left = len(state.todo)
        state.outcome.seconds = time.monotonic() - began
        return state.outcome

    # -- the loop ------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        self._state.show()
        while True:
            if not self._state.stopping:
                self._start_some()
            if not self._state.running and (self._state.stopping or not self._state.todo):
                return
            self._wait()

    def _wait(self) -> None:
        if not self._state.running and not self._endings.waits_for_room and not self._waiting_told:
            self._waiting_told = True
            self._view.note(f"Waiting for {len(self._state.todo)} videos that other runs are making")
        # While jobs run and nothing else is waited for, their events wake us; the look at the clock is a courtesy.
        try:
            event = self._events.get(timeout=LOOK_S)
        except queue.Empty:
            return
        if isinstance(event, SignalCame):
            self._state.hear_signal(event.number)
        elif isinstance(event, _LostLease):
            if (lost := self._state.running.get(event.key)) is not None:
                self._view.note(f"{lost.output} was taken over by another run")
                lost.job.cancel()
        else:
            key, what = event
            running = self._state.running.get(key)
            if running is None:
                return  # progress that was overtaken by the end, while a record waited for room
            if what is None:
                self._endings.after(running)
            elif not isinstance(what, ev.Finished | ev.Ended):
                self._view.event(running.item, what)

    def _start_some(self) -> None:
        """Start items while there are places. What another process has is left for the next look."""
        if len(self._state.running) >= self._options.workers or not self._state.todo or not self._endings.is_room():
            return
        self._look_around()
        for key, item in list(self._state.todo.items()):
            if len(self._state.running) >= self._options.workers or self._state.stopping:
                return
            if key in self._state.running or key not in self._state.todo or not self._leases.claim(key):
                continue
            try:
                # What happened to it before it was ours, to the last moment.
                self._look_around()
                if key in self._state.todo:
                    self._begin(item)
                else:
                    self._leases.release(key)
            except DiskExceeded as error:
                self._leases.release(key)
                self._endings.wait_for_room(error.message)
                return
            except BaseException:
                self._leases.release(key)
                raise

    def _look_around(self) -> None:
        """Read what other processes recorded; what they ended is not to do any more."""
        gone = False
        for record in self._books.news():
            item = self._state.todo.get(getattr(record, "key", ""))
            if item is None or item.key in self._state.running:
                continue
            if self._books.is_done(item) or self._books.failed_elsewhere(item):
                del self._state.todo[item.key]
                self._state.outcome.elsewhere += 1
                gone = True
        if gone:
            self._state.show()

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
                self._endings.fail(item, error, 0.0)
                return
            found = None
        if found is not None:
            record = self._books.of_item(Done, item, output=output, found=True, **found)
            self._state.outcome.found += 1
            self._endings.settle(item, record)
            return
        attempt = self._state.attempts.get(key, 0) + 1
        self._books.of_item(Started, item, output=output, attempt=attempt, replaces=replaces)
        self._state.attempts[key] = attempt
        fields = {} if key in self._state.unlearned else self._books.lessons.get(item.request.model, {})
        place = {"output": self._folder.output(output), "overwrite": replaces}
        asked = item.request.model_copy(update=dict(self._options.fields) | place)
        request = with_lesson(asked, fields)
        try:
            job = self._supervisor.submit(request, label=output[:200], group="batch")
        except WanCompatError as error:
            self._books.of_item(Released, item, why=error.code)
            self._state.end_all(error)
            self._leases.release(key)
            return
        self._state.running[key] = Running(item, output, job, attempt, time.monotonic(), request != asked)
        threading.Thread(target=self._read, args=(key, job), name=f"wan-compat-batch-{job.id}", daemon=True).start()
        self._view.started(item, attempt)
        self._state.show()

    def _read(self, key: str, job: Any) -> None:
        for event in job.events():
            self._events.put((key, event))
        self._events.put((key, None))

    def _stop_all(self) -> None:
        """End what runs, when the loop ended with an error of ours; after its regular end, nothing does."""
        if not self._state.running:
            return
        self._state.kill()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._state.running and time.monotonic() < deadline:
            with contextlib.suppress(WanCompatError):
                self._wait()
