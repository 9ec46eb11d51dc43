"""One submitted request, as its submitter holds it: events, the result, its state, and a way to stop it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from wan_compat.policies.queue import MAX_PRIORITY, MIN_PRIORITY
from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.protocol.errors import DeadlineExceeded, InvalidRequest, JobCancelled, WanCompatError, clean_text
from wan_compat.protocol.results import ConversionReport, VideoGenerationResult
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor import events as ev
from wan_compat.supervisor import incidents
from wan_compat.supervisor.event_log import MAX_KEPT, EventLog

if TYPE_CHECKING:
    from wan_compat.protocol.status import JobState, JobStatus

# What a job gives back; a bare `Job` makes a video.
R = TypeVar("R", VideoGenerationResult, ConversionReport, default=VideoGenerationResult)

MAX_UNREAD_EVENTS = MAX_KEPT
MAX_NAME_CHARS = 200  # of a group or a label
_SHOWN_CHARS = 500  # of a text in a status


@dataclasses.dataclass(frozen=True)
class Ticket:
    """How a job is queued. `group`: jobs of several groups take turns. `label`: for people, shown in a status.

    Raises:
        InvalidRequest: A priority out of range, or a name too long.
    """

    priority: int = 0
    group: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.priority, int) or not MIN_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise InvalidRequest(
                f"priority is {self.priority!r}; it is a whole number from {MIN_PRIORITY} to {MAX_PRIORITY}"
            )
        for name, value in (("group", self.group), ("label", self.label)):
            if not isinstance(value, str) or len(value) > MAX_NAME_CHARS:
                raise InvalidRequest(f"{name} is not a text of at most {MAX_NAME_CHARS} characters")


@dataclasses.dataclass
class _Progress:
    """Where a job stands. Written by its runner, read by whoever asks for a status."""

    worker: str | None = None
    phase: str = ""
    step: int = 0
    total: int = 0
    rate_s: float | None = None
    eta_s: float | None = None
    attempt: int = 1
    video: int = 0
    started_unix_s: float | None = None
    ended_unix_s: float | None = None


def all_results(first: R) -> list[R]:
    """Return the results of a job whose own is `first`."""
    return first.videos if isinstance(first, VideoGenerationResult) else [first]


class Job(Generic[R]):
    """One submitted request. Thread-safe.

    Attributes:
        id: "j1", "j2", ...; unique in its supervisor.
        log: What happened to it so far, bounded.
    """

    def __init__(
        self,
        request: GenerationRequest | ConversionRequest,
        id: str,
        ticket: Ticket,
        on_cancel: Callable[[Job[Any]], None],
    ) -> None:
        self.request = request
        self.id = id
        self.ticket = ticket
        self._on_cancel = on_cancel
        self.observe: Callable[[Job[Any], ev.Event], None] = lambda _job, _event: None
        self.log = EventLog()
        self._future: concurrent.futures.Future[R] = concurrent.futures.Future()
        self._cancelled = threading.Event()
        self._submitted_unix_s = time.time()
        self._progress = _Progress()

    def events(self) -> Iterator[ev.Event]:
        """Yield what happens, from the beginning until the job is over; the last event is Finished or Ended.

        For any number of readers, in any thread; each sees all of it. One that comes very late or reads very slowly
        misses progress that newer progress made old (event_log.py).
        """
        return iter(self.log)

    def result(self, timeout: float | None = None) -> R:
        """Wait for the end and return the result, or raise the job's error.

        Raises:
            DeadlineExceeded: Not over after `timeout` seconds; the job goes on.
            WanCompatError: Whatever ended the job, with its code.
        """
        try:
            return self._future.result(timeout)
        except concurrent.futures.TimeoutError as error:
            if self._future.done():
                raise
            raise DeadlineExceeded(f"the job was not over after {timeout:g} s; it goes on") from error

    def results(self, timeout: float | None = None) -> list[R]:
        """Wait for the end and return the results of all videos of the job, in their order; `result` is the first.

        Raises:
            DeadlineExceeded, WanCompatError: As `result`. Videos that were finished before a failure stay: the error's
                `finished` has their results, `details["videos_finished"]` names their files.
        """
        return all_results(self.result(timeout))

    def done(self) -> bool:
        return self._future.done()

    def cancel(self) -> None:
        """Ask the job to stop; `result` then raises JobCancelled, at once if it still waits. No effect once over."""
        self._cancelled.set()
        self._on_cancel(self)

    @property
    def state(self) -> JobState:
        """Where it stands: "queued", "running", "done", "failed" or "cancelled"."""
        if self._future.done():
            error = self._future.exception()
            return "done" if error is None else "cancelled" if isinstance(error, JobCancelled) else "failed"
        return "queued" if self._progress.started_unix_s is None else "running"

    def status(self) -> JobStatus:
        """Return what a monitor shows of it; text in it is cleaned."""
        from wan_compat.protocol.status import JobStatus

        request, now, state = self.request, dataclasses.replace(self._progress), self.state
        error = self._future.exception() if state in ("failed", "cancelled") else None
        return JobStatus(
            id=self.id,
            state=state,
            model=clean_text(request.model, _SHOWN_CHARS),
            prompt=clean_text(request.prompt, _SHOWN_CHARS) if isinstance(request, GenerationRequest) else "",
            label=clean_text(self.ticket.label, _SHOWN_CHARS),
            group=clean_text(self.ticket.group, _SHOWN_CHARS),
            priority=self.ticket.priority,
            mode=request.mode.value,
            worker=now.worker,
            phase=now.phase,
            step=now.step,
            total=now.total,
            rate_s=now.rate_s,
            eta_s=now.eta_s,
            attempt=now.attempt,
            video=now.video,
            num_videos=request.num_videos if isinstance(request, GenerationRequest) else 1,
            output=None if request.output is None else clean_text(request.output, _SHOWN_CHARS),
            submitted_unix_s=self._submitted_unix_s,
            started_unix_s=now.started_unix_s,
            ended_unix_s=now.ended_unix_s,
            error_code=error.code if isinstance(error, WanCompatError) else None,
            error=None if error is None else clean_text(str(error), _SHOWN_CHARS),
        )

    # -- for the runner

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def begin(self) -> None:
        """The job leaves the queue."""
        self._progress.started_unix_s = time.time()

    def hold(self, worker: str | None) -> None:
        """Note which worker does the job now."""
        self._progress.worker = worker

    def emit(self, event: ev.Event) -> None:
        self._follow(event)
        self.log.append(event)
        self.observe(self, event)

    def finish(self, outcome: R | WanCompatError) -> None:
        self._progress.ended_unix_s = time.time()
        if isinstance(outcome, WanCompatError):
            if (incident := incidents.of_error(outcome)) is not None:
                self.emit(ev.Incident(incident))
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)
        last = ev.Ended(outcome) if isinstance(outcome, WanCompatError) else ev.Finished(outcome)
        self.log.end(last)
        self.observe(self, last)

    def _follow(self, event: ev.Event) -> None:
        now = self._progress
        if isinstance(event, ev.PhaseStarted):
            if event.video != now.video:
                now.video, now.attempt = event.video, 1
            now.phase, now.step, now.total, now.rate_s, now.eta_s = event.phase, 0, 0, None, None
        elif isinstance(event, ev.Progress):
            now.phase, now.step, now.total = event.phase, event.step, event.total
            now.rate_s, now.eta_s = event.rate_s, event.eta_s
        elif isinstance(event, ev.Recovering):
            now.attempt += 1
