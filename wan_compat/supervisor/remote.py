"""`connect()`: a supervisor in another process of this user, with the methods of one in this process.

    with connect() as supervisor:
        job = supervisor.submit(GenerationRequest(model="path", prompt="a red fox", output="fox.mp4"))
        for event in job.events():
            ...
        result = job.result()

Events, results and errors are the same classes. Jobs belong to the supervisor: they go on when this program ends,
unless it said otherwise, and can be taken up again by their id. Paths mean what they mean here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic

from wan_compat.protocol import control as c
from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    ProtocolViolation,
    SupervisorGone,
    WanCompatError,
)
from wan_compat.protocol.results import ConversionReport, VideoGenerationResult
from wan_compat.protocol.values import GenerationRequest, Mode
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.attach import ask, wait_until_idle
from wan_compat.supervisor.control_client import Connection
from wan_compat.supervisor.event_log import EventLog
from wan_compat.supervisor.event_wire import error_of, event_of, result_of
from wan_compat.supervisor.job import R, all_results
from wan_compat.supervisor.request_paths import with_absolute_paths

if TYPE_CHECKING:
    from wan_compat.policies.scan.report import ScanReport
    from wan_compat.protocol.status import JobState, JobStatus, SupervisorStatus
    from wan_compat.supervisor.check import ModelReport
    from wan_compat.supervisor.plan_report import PlanReport

CANCEL_S = 5.0


def connect(socket: str | os.PathLike[str] | None = None) -> RemoteSupervisor:
    """Connect to the supervisor that `wan-compat serve` runs.

    Args:
        socket: Where it serves, if it was told to serve elsewhere than usual.

    Raises:
        NotServing: Nobody answers there.
        EnvironmentLacks: It is another user's, or another version.
    """
    from wan_compat.supervisor.serving import usual_socket

    return RemoteSupervisor(usual_socket() if socket is None else os.path.abspath(os.fspath(socket)))


class RemoteJob(Generic[R]):
    """One job of a supervisor elsewhere. Thread-safe; `Job` says what the methods do.

    Attributes:
        id: By which `RemoteSupervisor.job` finds it again, from any program of this user.
        request: What was asked for; None where it was found by its id.
        log: What happened to it, as far as it is known here.
    """

    def __init__(
        self,
        connection: Connection,
        id: str,
        request: GenerationRequest | ConversionRequest | None,
        on_over: Callable[[str], None],
    ) -> None:
        self._on_over = on_over
        self.id = id
        self.request = request
        self.log = EventLog()
        self._connection = connection
        self._after = 0
        self._outcome: VideoGenerationResult | ConversionReport | WanCompatError | None = None

    def events(self) -> Iterator[ev.Event]:
        return iter(self.log)

    def result(self, timeout: float | None = None) -> R:
        if not self.log.wait_over(timeout):
            raise DeadlineExceeded(f"the job was not over after {timeout:g} s; it goes on")
        if isinstance(self._outcome, WanCompatError):
            raise self._outcome
        return self._outcome  # type: ignore[return-value]

    def results(self, timeout: float | None = None) -> list[R]:
        return all_results(self.result(timeout))

    def done(self) -> bool:
        return self.log.is_over

    def cancel(self) -> None:
        """As of `Job`; and no effect once the supervisor is gone, and the job with it."""
        with contextlib.suppress(SupervisorGone):
            ask(self._connection, c.CancelJob(job=self.id), c.Done, CANCEL_S)

    @property
    def state(self) -> JobState:
        return self.status().state

    def status(self) -> JobStatus:
        return ask(self._connection, c.GetJob(job=self.id), c.JobReply).status

    # -- in the reader's thread

    def follow(self) -> None:
        """Ask for the events from where we are, which after a lost connection is not the beginning."""
        if not self.done():
            self._connection.post(c.FollowJob(job=self.id, after=self._after), self._followed)

    def hear(self, message: c.JobEvent) -> None:
        if message.index < self._after:
            return  # sent twice around a lost connection
        self._after = message.index + 1
        event = event_of(message)
        if event is None:
            self._connection.post(c.GetResult(job=self.id), self._settle)
        elif isinstance(event, ev.Ended):
            if "videos_finished" in event.error.details:
                failed = event.error
                self._connection.post(
                    c.GetResult(job=self.id), lambda answer, fd: self._settle_failed(failed, answer, fd)
                )
            else:
                self.end(event.error)
        else:
            self.log.append(event)

    def end(self, error: WanCompatError) -> None:
        """The job failed, or what became of it will not be known here."""
        if not self.done():
            self._outcome = error
            self.log.end(ev.Ended(error))
            self._on_over(self.id)

    def _followed(self, answer: Any, descriptor: int | None) -> None:
        if isinstance(answer, c.Refusal):
            self.end(error_of(answer))

    def _settle(self, answer: Any, descriptor: int | None) -> None:
        try:
            result = _result(answer, descriptor)
        except WanCompatError as error:
            self.end(error)
            return
        self._outcome = result
        self.log.end(ev.Finished(result))
        self._on_over(self.id)

    def _settle_failed(self, error: WanCompatError, answer: Any, descriptor: int | None) -> None:
        """Give to an error the videos that stand. Without them it still is what ended the job."""
        with contextlib.suppress(WanCompatError):
            result = _result(answer, descriptor)
            if isinstance(result, VideoGenerationResult):
                error.finished = tuple(dataclasses.replace(one, others=[]) for one in result.videos)
        self.end(error)


def _result(answer: Any, descriptor: int | None) -> VideoGenerationResult | ConversionReport:
    """Return the result in the answer to GetResult. Takes `descriptor`, whatever happens. Raises WanCompatError."""
    if isinstance(answer, c.Refusal):
        raise error_of(answer)
    if not isinstance(answer, c.JobResult):
        raise ProtocolViolation(f"a GetResult was answered with a {type(answer).__name__}")
    try:
        return result_of(answer, descriptor)
    except OSError as error:
        raise GenerationFailed(f"the frames cannot be mapped: {error}") from error


class RemoteSupervisor:
    """A served supervisor, seen from another program. Thread-safe; `Supervisor` says what the methods do.

    Methods raise SupervisorGone once it has ended.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, RemoteJob[Any]] = {}  # that are followed, until they are over
        self._connection = Connection(path, on_event=self._hear, on_return=self._follow_again, on_end=self._end)
        self.greeting = self._connection.greeting
        self.id = self.greeting.supervisor
        self.mode = Mode(self.greeting.mode)

    def submit(
        self,
        request: GenerationRequest,
        *,
        priority: int = 0,
        group: str = "",
        label: str = "",
        cancel_on_disconnect: bool = False,
    ) -> RemoteJob:
        """As `Supervisor.submit`.

        Args:
            cancel_on_disconnect: Cancel the job when this connection ends before it does, in whatever way.
        """
        if not isinstance(request, GenerationRequest):
            raise InvalidRequest(f"a GenerationRequest is needed, not a {type(request).__name__}")
        absolute = with_absolute_paths(request)
        return self._submit(request, cancel_on_disconnect, priority, group, label, generation=absolute)

    def submit_conversion(
        self,
        request: ConversionRequest,
        *,
        priority: int = 0,
        group: str = "",
        label: str = "",
        cancel_on_disconnect: bool = False,
    ) -> RemoteJob[ConversionReport]:
        """As `Supervisor.submit_conversion`."""
        if not isinstance(request, ConversionRequest):
            raise InvalidRequest(f"a ConversionRequest is needed, not a {type(request).__name__}")
        absolute = with_absolute_paths(request)
        return self._submit(request, cancel_on_disconnect, priority, group, label, conversion=absolute)

    def _submit(
        self,
        request: GenerationRequest | ConversionRequest,
        cancel_on_disconnect: bool,
        priority: int,
        group: str,
        label: str,
        **job: Any,
    ) -> RemoteJob[Any]:
        from pydantic import ValidationError

        try:
            order = c.Submit(
                key=secrets.token_hex(16),
                priority=priority,
                group=group,
                label=label,
                cancel_on_disconnect=cancel_on_disconnect,
                **job,
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise InvalidRequest(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
        return self._follow(ask(self._connection, order, c.Submitted).job, request)

    def job(self, id: str) -> RemoteJob[Any]:
        """Return a job that a client submitted, by its id: to take it up again after the connection was lost.

        Raises:
            UnknownJob: There is none of that id, or it was over so long ago that it is forgotten.
        """
        with self._lock:
            known = self._jobs.get(id)
        if known is not None:
            return known
        ask(self._connection, c.GetJob(job=id), c.JobReply)
        return self._follow(id, None)

    def generate(self, request: GenerationRequest | None = None, **fields: Any) -> VideoGenerationResult:
        return self.submit(request if request is not None else GenerationRequest(**fields)).result()

    def convert(self, request: ConversionRequest | None = None, **fields: Any) -> ConversionReport:
        return self.submit_conversion(request if request is not None else ConversionRequest(**fields)).result()

    def check(self, model: str, task: str | None = None) -> ModelReport:
        """As `Supervisor.check`, in this process: it is the same machine and the same user, and nothing is started."""
        from wan_compat.supervisor.check import check_model

        return check_model(model, task)

    def scan(self, model: str, *, hash_weights: bool = False) -> ScanReport:
        """As `Supervisor.scan`, in this process."""
        from wan_compat.supervisor.scanner import scan_model

        return scan_model(model, hash_weights=hash_weights)

    def plan(
        self, model: str, *, vram_bytes: int | None = None, ram_bytes: int | None = None, **fields: Any
    ) -> PlanReport:
        """As `Supervisor.plan`, in this process."""
        from wan_compat.supervisor.plan_report import plan_model

        request = GenerationRequest(**{"prompt": "", **fields, "model": model})
        return plan_model(request, vram_bytes=vram_bytes, ram_bytes=ram_bytes)

    def status(self) -> SupervisorStatus:
        return ask(self._connection, c.GetStatus(), c.StatusReply).status

    def cancel(self, job_id: str) -> bool:
        return ask(self._connection, c.CancelJob(job=job_id), c.Done).done

    def kill_worker(self, worker_id: str) -> bool:
        return ask(self._connection, c.KillWorker(worker=worker_id), c.Done).done

    def pause(self) -> None:
        ask(self._connection, c.Pause(), c.Done)

    def resume(self) -> None:
        ask(self._connection, c.Resume(), c.Done)

    def drain(self, timeout_s: float | None = None) -> bool:
        ask(self._connection, c.Drain(), c.Done)
        return wait_until_idle(self.status, timeout_s)

    def close(self) -> None:
        """Hang up. Jobs go on without us, but for those with `cancel_on_disconnect`. Safe to call twice."""
        self._connection.close()

    def __enter__(self) -> RemoteSupervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _follow(self, id: str, request: GenerationRequest | ConversionRequest | None) -> RemoteJob[Any]:
        job: RemoteJob[Any] = RemoteJob(self._connection, id, request, self._forget)
        with self._lock:
            job = self._jobs.setdefault(id, job)
            end = self._connection.end
        if end is not None:
            job.end(end)
        job.follow()
        return job

    # -- in the reader's thread

    def _hear(self, message: c.JobEvent) -> None:
        with self._lock:
            job = self._jobs.get(message.job)
        if job is not None:
            job.hear(message)

    def _forget(self, id: str) -> None:
        with self._lock:
            self._jobs.pop(id, None)

    def _follow_again(self) -> None:
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.follow()

    def _end(self, error: WanCompatError) -> None:
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.end(error)
