"""The threads that ask: one that hangs, fails or ends holds up nobody."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pytest

from tests.supervisor.monitor.statuses import a_status
from wan_compat.protocol.errors import EnvironmentLacks
from wan_compat.protocol.status import SupervisorStatus
from wan_compat.supervisor.monitor import source as source_module
from wan_compat.supervisor.monitor.model import Answered, Event, Failed, Found, Heard, Order
from wan_compat.supervisor.monitor.source import MAX_ORDERS, Watch, look_once


class Fake:
    """Supervisors by name: `good`, `hangs` until released, `fails`, `refuses` orders."""

    def __init__(self, *ids: str) -> None:
        self.ids = list(ids)
        self.release = threading.Event()
        self.asked: list[str] = []
        self.closed = 0

    def find(self) -> list[str]:
        if "broken" in self.ids:
            raise EnvironmentLacks("the runtime folder is not private")
        return list(self.ids)

    def attach(self, id: str) -> FakeConnection:
        return FakeConnection(self, id)


class FakeConnection:
    def __init__(self, source: Fake, id: str) -> None:
        self.source, self.id = source, id

    def _act(self, what: str) -> bool:
        self.source.asked.append(what)
        if self.id == "hangs":
            self.source.release.wait(30)
        if self.id == "fails":
            raise ConnectionRefusedError(111, "Connection refused")
        return True

    def status(self) -> SupervisorStatus:
        self._act("status")
        return a_status(self.id)

    def cancel(self, job: str) -> bool:
        return self._act(f"cancel {job}") and job == "j1"

    def kill_worker(self, worker: str) -> bool:
        return self._act(f"kill {worker}") and worker == "w1"

    def pause(self) -> None:
        self._act("pause")

    def resume(self) -> None:
        self._act("resume")

    def close(self) -> None:
        self.source.closed += 1


class Collected:
    """Collects what a Watch puts."""

    def __init__(self, fake: Fake) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.watch = Watch(fake, self.events.put)

    def wait(self, kind: type[Event], id: str | None = None) -> Event:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            event = self.events.get(timeout=20)
            if isinstance(event, kind) and id in (None, getattr(event, "id", None)):
                return event
        raise AssertionError(f"no {kind.__name__}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("FIND_EVERY_S", "ASK_EVERY_S", "ASK_AGAIN_S"):
        monkeypatch.setattr(source_module, name, 0.01)
    yield


def test_each_is_asked_by_itself(quick: None) -> None:
    fake = Fake("hangs", "good", "fails")
    heard = Collected(fake)
    heard.watch.start()
    assert heard.wait(Found) == Found(("hangs", "good", "fails"))
    assert heard.wait(Heard, "good") == Heard("good", a_status("good"))
    assert heard.wait(Failed) == Failed("fails", "Connection refused")
    heard.wait(Heard, "good")
    fake.ids.remove("good")
    end = time.monotonic() + 20
    while heard.wait(Found) != Found(("hangs", "fails")):
        assert time.monotonic() < end
    heard.watch.close()
    fake.release.set()


def test_what_cannot_be_found_is_told(quick: None) -> None:
    heard = Collected(Fake("broken"))
    heard.watch.start()
    event = heard.wait(Answered)
    heard.watch.close()
    assert event == Answered("could not look for supervisors: the runtime folder is not private", is_problem=True)


@pytest.mark.parametrize(
    ("order", "asked", "answer"),
    [
        (Order("good", "cancel", "j1"), "cancel j1", Answered("j1 was asked to stop")),
        (Order("good", "cancel", "j2"), "cancel j2", Answered("j2 is over already")),
        (Order("good", "kill", "w1"), "kill w1", Answered("worker w1 was killed")),
        (Order("good", "kill", "w2"), "kill w2", Answered("worker w2 is gone already")),
        (Order("good", "pause"), "pause", Answered("good starts nothing new until it is resumed")),
        (Order("good", "resume"), "resume", Answered("good goes on")),
        (Order("fails", "kill", "w1"), "kill w1", Answered("could not kill w1: Connection refused", is_problem=True)),
    ],
)
def test_orders_are_carried_out_and_answered(order: Order, asked: str, answer: Answered) -> None:
    fake = Fake("good", "fails")
    heard = Collected(fake)
    heard.watch.give(order)
    assert heard.wait(Answered) == answer
    assert fake.asked == [asked]


def test_orders_to_one_that_hangs_are_bounded_and_hold_up_no_other() -> None:
    fake = Fake("hangs")
    heard = Collected(fake)
    for _ in range(MAX_ORDERS + 1):
        heard.watch.give(Order("hangs", "cancel", "j1"))
    event = heard.wait(Answered)
    assert isinstance(event, Answered)
    assert event.is_problem
    assert "orders are on their way" in event.text
    fake.release.set()
    for _ in range(MAX_ORDERS):
        assert heard.wait(Answered) == Answered("j1 was asked to stop")
    heard.watch.give(Order("good", "resume"))
    assert heard.wait(Answered) == Answered("good goes on")


def test_one_look_waits_for_nobody_longer_than_it_said() -> None:
    fake = Fake("hangs", "good", "fails")
    statuses, silent = look_once(fake, 0.3)
    assert [status.id for status in statuses] == ["good"]
    assert silent == {"fails": "Connection refused", "hangs": "no answer within 0.3 s"}
    fake.release.set()
