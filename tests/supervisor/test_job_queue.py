"""The queue between those who submit and those who run: bounded, paused, drained, closed. No processes."""

from __future__ import annotations

import threading

import pytest

from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol import errors
from wan_compat.supervisor.job import Job, Ticket
from wan_compat.supervisor.job_queue import JobQueue


@pytest.fixture
def make_job():
    numbers = iter(range(1, 100))

    def make(**ticket) -> Job:
        request = GenerationRequest(model="m", prompt="p", height=64, width=64)
        return Job(request, f"j{next(numbers)}", Ticket(**ticket), lambda job: None)

    return make


def test_more_than_may_wait_are_refused_with_the_numbers(make_job):
    queue = JobQueue(2)
    queue.put(make_job())
    queue.put(make_job())
    with pytest.raises(errors.QueueFull, match="2 jobs wait already") as caught:
        queue.put(make_job())
    assert caught.value.details == {"queued": 2, "max_queued": 2}
    assert queue.take(0) is not None
    queue.put(make_job())  # what runs does not count


def test_a_paused_queue_gives_nothing_until_it_goes_on(make_job):
    queue = JobQueue(2)
    queue.pause(True)
    queue.put(make_job())
    assert queue.take(0) is None
    queue.pause(False)
    assert queue.take(0) is not None


def test_draining_accepts_no_more_and_waits_for_what_runs(make_job):
    queue = JobQueue(2)
    queue.put(make_job())
    queue.drain()
    with pytest.raises(errors.InvalidRequest, match="drained"):
        queue.put(make_job())
    job = queue.take(0)
    assert job is not None and not queue.wait_empty(0)
    threading.Timer(0.01, queue.done, [job]).start()
    assert queue.wait_empty(10)


def test_closing_gives_back_what_waits_and_wakes_who_waits(make_job):
    queue = JobQueue(2)
    woken = threading.Event()
    taker = threading.Thread(target=lambda: (queue.take(), woken.set()))
    taker.start()
    queue.pause(True)
    waiting = make_job()
    queue.put(waiting)
    assert queue.close() == [waiting]
    assert woken.wait(10)
    taker.join()
    with pytest.raises(errors.InvalidRequest, match="closed"):
        queue.put(make_job())


def test_jobs_that_wait_or_run_are_found_by_their_id(make_job):
    queue = JobQueue(5)
    first, second = make_job(), make_job(priority=1)
    queue.put(first)
    queue.put(second)
    assert queue.take(0) is second
    assert queue.find("j1") is first and queue.find("j2") is second and queue.find("j3") is None
    queue.done(second)
    assert queue.find("j2") is None


@pytest.mark.parametrize(
    "ticket", [{"priority": 101}, {"priority": -101}, {"priority": "high"}, {"group": "g" * 201}, {"label": 5}]
)
def test_tickets_out_of_range_are_refused(ticket):
    with pytest.raises(errors.InvalidRequest):
        Ticket(**ticket)


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 65}, {"max_queued": 0}, {"max_warm": -1}])
def test_numbers_of_workers_and_places_out_of_range_are_refused(options):
    with pytest.raises(errors.InvalidRequest, match="whole number"):
        Supervisor(**options)
