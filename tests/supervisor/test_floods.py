"""A flooding worker costs its supervisor a few megabytes and little time, and is ended by its first violation.

The workers are real and confined (tests/programs/flood_zygote.py); they write to the connection past libzmq, as hostile
code would. What is measured is this process, which is the supervisor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wan_compat import Supervisor
from wan_compat.policies import limits
from wan_compat.protocol import errors
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.client import MAX_UNREAD_EVENTS

PROGRAMS = Path(__file__).resolve().parent.parent / "programs"
MAX_GROWTH_BYTES = 32 << 20


@pytest.fixture
def flooding() -> Iterator[Callable[[str], Supervisor]]:
    made: list[Supervisor] = []

    def make(flood: str) -> Supervisor:
        supervisor = Supervisor()
        supervisor._zygote_program = (str(PROGRAMS / "flood_zygote.py"), flood)
        made.append(supervisor)
        return supervisor

    yield make
    for supervisor in made:
        supervisor.close()


class Growth:
    bytes = 0
    cpu_s = 0.0


@contextlib.contextmanager
def growth() -> Iterator[Growth]:
    """Measure how much the resident memory of this process grew at its peak, and the processor time it took."""

    def resident() -> int:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    found, over = Growth(), threading.Event()
    before, cpu_before = resident(), time.process_time()

    def watch() -> None:
        while not over.wait(0.01):
            found.bytes = max(found.bytes, resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found.cpu_s = time.process_time() - cpu_before


VIOLATIONS = {
    # The parts of a message that never ends: libzmq keeps them all, uncounted (docs/adr/0010).
    "denoise:endless-parts": (errors.ProtocolViolation, "several parts"),
    "denoise:empty-parts": (errors.ProtocolViolation, "several parts"),
    "denoise:short-parts": (errors.ProtocolViolation, "several parts"),
    "load:endless-parts": (errors.ProtocolViolation, "several parts"),
    "frame:endless-parts": (errors.ProtocolViolation, "several parts"),
    # Frames that are too long, claimed or sent.
    "denoise:oversized": (errors.ProtocolViolation, "exceeds"),
    "denoise:barely-oversized": (errors.ProtocolViolation, "exceeds"),
    # Whole frames that are no messages.
    "denoise:empty-messages": (errors.ProtocolViolation, "truncated"),
    "denoise:largest-messages": (errors.ProtocolViolation, "bytes after"),
    # Commands of ZMTP.
    "denoise:pings": (errors.ProtocolViolation, "command"),
    "denoise:long-commands": (errors.ProtocolViolation, "command"),
    "denoise:subscriptions": (errors.ProtocolViolation, "command"),
    # Well-formed messages.
    "denoise:progress": (errors.ProtocolViolation, "more than any phase"),
    "denoise:phases": (errors.ProtocolViolation, "back to"),
    # The doorbell.
    "denoise:ring-doorbell": (errors.CorruptFrame, "frame 1 expected|without a free slot"),
    "denoise:descriptors": (errors.CorruptFrame, "not running"),
    "denoise:everything": (errors.GenerationFailed, "several parts|not running"),
    # Before the handshake is over.
    "raw:huge-greeting": (errors.ProtocolViolation, "ZMTP"),
    "raw:endless-greeting": (errors.ProtocolViolation, "ZMTP"),
    "raw:huge-ready": (errors.ProtocolViolation, "exceeds"),
    "raw:many-properties": (errors.ProtocolViolation, "READY"),
    "raw:second-ready": (errors.ProtocolViolation, "READY"),
}


@pytest.mark.parametrize("flood", VIOLATIONS)
def test_flood_ends_its_worker_at_once_and_costs_the_supervisor_little(flood, flooding, request_for):
    kind, text = VIOLATIONS[flood]
    supervisor = flooding(flood)
    with growth() as grown, pytest.raises(kind, match=text):
        supervisor.generate(request_for(output=None, timeout_s=20))
    assert grown.bytes < MAX_GROWTH_BYTES
    assert grown.cpu_s < 5


# Nothing of these is a violation: they are slow, or they leave. Time ends them.
PATIENT = ("denoise:dribble", "denoise:never-reads", "raw:half-open", "raw:many-half-open", "raw:connect-storm")


@pytest.mark.parametrize("flood", PATIENT)
def test_what_only_wastes_time_is_ended_by_a_deadline(flood, flooding, request_for, monkeypatch):
    short = dataclasses.replace(
        limits.deadlines(weight_bytes=0, timeout_s=None), start_worker_s=3.0, text_encode_s=3.0, cancel_grace_s=0.5
    )
    monkeypatch.setattr("wan_compat.supervisor.job_run.deadlines", lambda **_: short)
    supervisor = flooding(flood)
    with growth() as grown, pytest.raises(errors.DeadlineExceeded):
        supervisor.generate(request_for(output=None, timeout_s=20))
    assert grown.bytes < MAX_GROWTH_BYTES
    assert grown.cpu_s < 5


@pytest.mark.parametrize("flood", ["denoise:log", "denoise:log-without-newline"])
def test_flood_of_output_does_not_grow_the_supervisor_and_the_job_succeeds(flood, flooding, request_for, tmp_path):
    supervisor = flooding(flood)
    with growth() as grown:
        assert supervisor.generate(request_for(output=None, worker_log=str(tmp_path / "log"), timeout_s=60)).success
    assert grown.bytes < MAX_GROWTH_BYTES
    assert grown.cpu_s < 3


def test_every_permitted_message_as_fast_as_it_can_is_no_violation(flooding, request_for):
    """And nobody has to read the events."""
    job = flooding("denoise:honest-progress").submit(request_for(output=None, timeout_s=60))
    with growth() as grown:
        assert job.result().success
    assert grown.bytes < MAX_GROWTH_BYTES
    steps = [event.step for event in job.events() if isinstance(event, ev.Progress) and event.phase == "text_encode"]
    assert steps == list(range(1, 3001)) and len(steps) < MAX_UNREAD_EVENTS


def test_supervisor_goes_on_with_the_next_worker_after_a_flood(flooding, request_for):
    supervisor = flooding("denoise:endless-parts")
    with growth() as grown:
        for _ in range(5):
            with pytest.raises(errors.ProtocolViolation):
                supervisor.generate(request_for(output=None))
    assert grown.bytes < MAX_GROWTH_BYTES
