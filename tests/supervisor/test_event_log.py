"""A job's events: for every reader all of them, in order, within bounds."""

from __future__ import annotations

import threading

import pytest

from wan_compat.protocol.errors import JobCancelled
from wan_compat.supervisor import event_log
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.event_log import EventLog

END = ev.Ended(JobCancelled("enough"))


def step(number: int, total: int = 1_000_000) -> ev.Progress:
    return ev.Progress("denoise", number, total)


def test_every_reader_sees_every_event_from_the_first_one():
    log = EventLog()
    seen: list[list[ev.Event]] = [[], [], []]
    threads = [threading.Thread(target=lambda into=into: into.extend(log)) for into in seen[:2]]
    for thread in threads:
        thread.start()
    for number in range(1000):
        log.append(step(number))
    log.end(END)
    for thread in threads:
        thread.join(10)
    seen[2].extend(log)  # long after the end
    expected = [step(number) for number in range(1000)] + [END]
    assert seen == [expected] * 3


def test_reading_from_a_number_on_gives_what_follows_it():
    log = EventLog()
    for number in range(10):
        log.append(step(number))
    batch, is_over = log.read(7)
    assert ([number for number, _ in batch], is_over) == ([7, 8, 9], False)
    log.end(END)
    assert log.read(0, limit=4)[1] is False
    assert log.read(7, limit=4) == ([(7, step(7)), (8, step(8)), (9, step(9)), (10, END)], True)
    assert log.read(11) == ([], True)
    assert log.read(99) == ([], True)


def test_nothing_follows_the_end():
    log = EventLog()
    log.end(END)
    log.append(step(1))
    log.end(ev.Ended(JobCancelled("again")))
    assert list(log) == [END]


def test_much_progress_is_forgotten_and_nothing_else_is(monkeypatch):
    monkeypatch.setattr(event_log, "MAX_KEPT", 100)
    log = EventLog()
    warning = ev.Warned("kept")
    for number in range(1000):
        log.append(step(number))
        if number == 5:
            log.append(warning)
        assert len(log._events) <= 100
    log.end(END)
    kept = list(log)
    assert warning in kept and kept[-2:] == [step(999), END]
    steps = [event.step for event in kept if isinstance(event, ev.Progress)]
    assert steps == list(range(steps[0], 1000)) and len(steps) >= 50
    for after in range(1002):
        batch, _ = log.read(after, limit=1)
        assert batch[0][0] >= after
        assert batch == [item for item in log._events if item[0] >= after][:1]


def test_events_that_are_no_progress_are_bounded_as_well(monkeypatch):
    monkeypatch.setattr(event_log, "MAX_KEPT", 100)
    log = EventLog()
    for number in range(1000):
        log.append(ev.Warned(str(number)))
    assert len(log._events) <= 100


def test_pictures_are_fewer_than_steps(monkeypatch):
    log = EventLog()
    for number in range(500):
        log.append(step(number))
        log.append(ev.LatentPreview(number, 4, 4, bytes(48)))
    log.end(END)
    kept = list(log)
    assert sum(isinstance(event, ev.LatentPreview) for event in kept) <= event_log.MAX_PICTURES
    assert sum(isinstance(event, ev.Progress) for event in kept) == 500


def test_a_watcher_is_told_of_what_is_there_of_what_comes_and_no_more_once_it_leaves():
    log = EventLog()
    log.append(step(1))
    told: list[int] = []
    leave = log.watch(lambda: told.append(log.next_number))
    assert told == [1]
    log.append(step(2))
    leave()
    leave()
    log.append(step(3))
    assert told == [1, 2]


@pytest.mark.parametrize("timeout_s", [0, 0.01])
def test_waiting_ends_with_the_time_or_with_the_end(timeout_s):
    log = EventLog()
    assert not log.wait(0, timeout_s) and not log.wait_over(timeout_s)
    log.append(step(1))
    assert log.wait(0, timeout_s) and not log.wait(1, timeout_s) and not log.is_over
    log.end()
    assert log.wait(1, timeout_s) and log.wait_over(timeout_s) and log.is_over
