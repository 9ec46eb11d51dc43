"""Threads that ask every supervisor, so that the screen never waits for one.

    finder            looks every second which supervisors of this user exist
    asker, one each   attaches, asks for a status, waits, asks again; attaches anew after a failure
    order, one each   attaches, gives one order, and tells how it ended

A supervisor that hangs holds up its own asker only. All threads are daemons: whoever quits does not wait for them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from wan_compat.protocol.errors import WanCompatError, clean_text
from wan_compat.protocol.status import SupervisorStatus
from wan_compat.supervisor.monitor.model import MAX_SUPERVISORS, Answered, Event, Failed, Found, Heard, Order

FIND_EVERY_S = 1.0
ASK_EVERY_S = 0.5
ASK_AGAIN_S = 1.0  # after a failure
MAX_ORDERS = 8  # on their way at once


class Connection(Protocol):
    """A conversation with one supervisor; every call ends in an answer or an error within a time of its own."""

    def status(self) -> SupervisorStatus: ...
    def cancel(self, job: str, /) -> bool: ...
    def kill_worker(self, worker: str, /) -> bool: ...
    def pause(self) -> object: ...
    def resume(self) -> object: ...
    def close(self) -> None: ...


class Source(Protocol):
    """Where supervisors are found."""

    def find(self) -> Sequence[str]:
        """Return the ids of the supervisors that exist now."""
        ...

    def attach(self, id: str) -> Connection:
        """Connect to one of them."""
        ...


class Watch:
    """Keeps asking from `start` to `close`, and hands what it hears to `put`, which is called in its threads."""

    def __init__(self, source: Source, put: Callable[[Event], None]) -> None:
        self._source = source
        self._put = put
        self._stop = threading.Event()
        self._look_now = threading.Event()
        self._askers: dict[str, threading.Event] = {}  # id -> what ends its thread
        self._orders = threading.Semaphore(MAX_ORDERS)

    def start(self) -> None:
        self._spawn(self._find, "finder")

    def close(self) -> None:
        """Ask all threads to end; does not wait for them."""
        self._stop.set()
        self._look_now.set()

    def give(self, order: Order) -> None:
        """Carry out an order; how it ended comes as an Answered."""
        if not self._orders.acquire(blocking=False):
            self._put(Answered(f"{MAX_ORDERS} orders are on their way; wait for an answer", is_problem=True))
            return
        self._spawn(lambda: self._carry_out(order), f"order-{order.verb}")

    def _spawn(self, work: Callable[[], None], name: str) -> None:
        threading.Thread(target=work, name=f"monitor-{name}", daemon=True).start()

    # -- the threads -----------------------------------------------------------------------------------------------

    def _find(self) -> None:
        while not self._stop.is_set():
            self._look_now.clear()
            try:
                ids = tuple(self._source.find())[:MAX_SUPERVISORS]
            except Exception as error:  # noqa: BLE001 - shown on the screen: a traceback would be written over it
                self._put(Answered(f"could not look for supervisors: {_words(error)}", is_problem=True))
            else:
                self._put(Found(ids))
                self._ask_these(ids)
            self._look_now.wait(FIND_EVERY_S)
        self._ask_these(())

    def _ask_these(self, ids: tuple[str, ...]) -> None:
        for id in set(self._askers) - set(ids):
            self._askers.pop(id).set()
        for id in ids:
            if id not in self._askers:
                end = self._askers[id] = threading.Event()
                self._spawn(lambda id=id, end=end: self._ask(id, end), f"asker-{id}")  # type: ignore[misc]

    def _ask(self, id: str, end: threading.Event) -> None:
        connection: Connection | None = None
        while not end.is_set():
            pause_s = ASK_EVERY_S
            try:
                if connection is None:
                    connection = self._source.attach(id)
                status = connection.status()
                if not end.is_set():
                    self._put(Heard(id, status))
            except Exception as error:  # noqa: BLE001 - as in _find
                if not end.is_set():
                    self._put(Failed(id, _words(error)))
                _close(connection)
                connection, pause_s = None, ASK_AGAIN_S
                self._look_now.set()  # most often it has just ended
            end.wait(pause_s)
        _close(connection)

    def _carry_out(self, order: Order) -> None:
        connection: Connection | None = None
        try:
            # A connection of its own: the asker's may be in the middle of a long answer.
            connection = self._source.attach(order.supervisor)
            self._put(_obey(connection, order))
        except Exception as error:  # noqa: BLE001 - as in _find
            self._put(Answered(f"could not {order.verb} {order.target or order.supervisor}: {_words(error)}", True))
        finally:
            self._orders.release()
            _close(connection)


def look_once(source: Source, timeout_s: float) -> tuple[list[SupervisorStatus], dict[str, str]]:
    """Ask every supervisor once, all at the same time.

    Returns:
        Statuses in the order in which they were found, and why the others did not answer.
    """
    ids = tuple(source.find())[:MAX_SUPERVISORS]
    heard: dict[str, SupervisorStatus] = {}
    failed: dict[str, str] = {}

    def ask(id: str) -> None:
        connection: Connection | None = None
        try:
            connection = source.attach(id)
            heard[id] = connection.status()
        except Exception as error:  # noqa: BLE001 - one that fails must not hide the others
            failed[id] = _words(error)
        finally:
            _close(connection)

    threads = [threading.Thread(target=ask, args=(id,), daemon=True) for id in ids]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    # One copy of each: a late answer must not change what is told.
    answers, failures = dict(heard), dict(failed)
    silent = {id: f"no answer within {timeout_s:g} s" for id in ids if id not in answers and id not in failures}
    return [answers[id] for id in ids if id in answers], failures | silent


def _obey(connection: Connection, order: Order) -> Answered:
    match order.verb:
        case "cancel":
            if connection.cancel(order.target):
                return Answered(f"{order.target} was asked to stop")
            return Answered(f"{order.target} is over already")
        case "kill":
            if connection.kill_worker(order.target):
                return Answered(f"worker {order.target} was killed")
            return Answered(f"worker {order.target} is gone already")
        case "pause":
            connection.pause()
            return Answered(f"{order.supervisor} starts nothing new until it is resumed")
        case "resume":
            connection.resume()
            return Answered(f"{order.supervisor} goes on")


def _close(connection: Connection | None) -> None:
    if connection is not None:
        with contextlib.suppress(Exception):
            connection.close()


def _words(error: Exception) -> str:
    if isinstance(error, WanCompatError):
        return clean_text(error.message, 300)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return clean_text(f"{type(error).__name__}: {error}", 300)
