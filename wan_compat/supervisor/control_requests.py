"""What a supervisor answers to each request of its control socket. Runs in the control thread; nothing here blocks.

A request that is not in the table is refused, as is one that the supervisor's role does not permit:

    GetStatus, GetJob, GetResult, FollowJob, UnfollowJob     always
    CancelJob, KillWorker, Pause, Resume, Drain              unless it is read-only
    Submit                                                   where it serves

Nothing that a client says can widen what the supervisor's own policy and mode permit: `Supervisor.submit` judges its
requests as it does those of its own program.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from wan_compat._version import __version__
from wan_compat.protocol import control as c
from wan_compat.protocol.errors import (
    GenerationFailed,
    InvalidRequest,
    ProtocolViolation,
    RefusedByPolicy,
    ResourceExceeded,
    WanCompatError,
    clean_text,
)
from wan_compat.supervisor.event_wire import event_fields, refusal
from wan_compat.supervisor.kept_jobs import KeptJob, KeptJobs
from wan_compat.supervisor.request_paths import relative_path_in

if TYPE_CHECKING:
    from wan_compat.protocol.base import Value
    from wan_compat.protocol.conversion import ConversionRequest
    from wan_compat.protocol.results import ConversionReport
    from wan_compat.protocol.status import SupervisorStatus
    from wan_compat.protocol.values import GenerationRequest, Mode
    from wan_compat.supervisor.job import Job

STATUS_KEPT_S = 0.1  # how old a status may be: asking faster than that costs the jobs nothing

_Answer = tuple[Any, int | None]


class Supervised(Protocol):
    """What a control socket needs of its supervisor; all of it may be called from any thread and returns at once."""

    mode: Mode

    def status(self) -> SupervisorStatus: ...
    def cancel(self, job_id: str) -> bool: ...
    def kill_worker(self, worker_id: str) -> bool: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def drain(self, timeout_s: float | None = None) -> bool: ...
    def submit(self, request: GenerationRequest, *, priority: int, group: str, label: str) -> Job: ...
    def submit_conversion(
        self, request: ConversionRequest, *, priority: int, group: str, label: str
    ) -> Job[ConversionReport]: ...


class Named(Supervised, Protocol):
    id: str


@dataclasses.dataclass
class Followed:
    """One job that a client follows: the request's number, and the number of the next event to send."""

    kept: KeptJob
    number: int
    after: int


@dataclasses.dataclass
class Visitor:
    """One client, as far as requests concern it.

    `program`: what it calls itself. `news`: those of `follows` that have events to send. `own`: jobs that shall not
    outlive its connection.
    """

    greeted: bool = False
    program: str = ""
    follows: dict[str, Followed] = dataclasses.field(default_factory=dict)
    news: dict[str, Followed] = dataclasses.field(default_factory=dict)
    own: list[str] = dataclasses.field(default_factory=list)

    def unfollow_all(self) -> None:
        self.follows.clear()
        self.news.clear()


class Requests:
    """
    Args:
        supervisor: Whose requests are answered.
        id: Its name, unique on this machine.
        serves: Takes jobs of other programs.
        read_only: Takes no orders.
        on_news: Called, from any thread, when a job that clients may follow has news; gets the job.
    """

    def __init__(
        self, supervisor: Supervised, *, id: str, serves: bool, read_only: bool, on_news: Callable[[KeptJob], None]
    ) -> None:
        self._supervisor = supervisor
        self._id = id
        self.serves = serves
        self.read_only = read_only
        self._on_news = on_news
        self.kept = KeptJobs()
        self._status: SupervisorStatus | None = None
        self._status_until = 0.0
        self._table: dict[type, Callable[[Any, Visitor, int], _Answer]] = {
            c.GetStatus: self._get_status,
            c.CancelJob: self._cancel_job,
            c.KillWorker: self._kill_worker,
            c.Pause: self._pause,
            c.Resume: self._resume,
            c.Drain: self._drain,
            c.Submit: self._submit,
            c.FollowJob: self._follow_job,
            c.UnfollowJob: self._unfollow_job,
            c.GetJob: self._get_job,
            c.GetResult: self._get_result,
        }

    def answer(self, request: Value, number: int, visitor: Visitor) -> _Answer:
        """Return the one answer to a request, and the descriptor that goes with it, which stays ours.

        Raises:
            ProtocolViolation: The client did not greet first, or greets again.
        """
        if isinstance(request, c.Greet) is visitor.greeted:
            raise ProtocolViolation("the first message is Greet, and no other one is")
        if isinstance(request, c.Greet):
            visitor.greeted = True
            visitor.program = request.program
            return self._greeting(), None
        try:
            return self._table[type(request)](request, visitor, number)
        except WanCompatError as error:
            return refusal(error), None
        except Exception as error:  # noqa: BLE001 - one request must not end the thread that answers all
            return refusal(GenerationFailed(f"internal error: {type(error).__name__}: {error}")), None

    def next_events(self, followed: Followed, limit: int) -> tuple[list[c.JobEvent], bool]:
        """Return the next events to send to a client that follows a job, and whether these are the last ones."""
        batch, is_over = followed.kept.log.read(followed.after, limit)
        if is_over:
            self.kept.settle(followed.kept)
        found = []
        for index, event in batch:
            kind, fields = event_fields(event)
            found.append(c.JobEvent(job=followed.kept.id, index=index, kind=kind, fields=fields))
            followed.after = index + 1
        return found, is_over

    def leave(self, visitor: Visitor) -> None:
        """A client is gone: end what was only for it."""
        visitor.unfollow_all()
        for job_id in visitor.own:
            self._supervisor.cancel(job_id)

    def close(self) -> None:
        self.kept.close()

    def _greeting(self) -> c.Greeting:
        return c.Greeting(
            supervisor=self._id,
            pid=os.getpid(),
            version=__version__,
            mode=self._supervisor.mode.value,
            serves=self.serves,
            read_only=self.read_only,
        )

    def _get_status(self, request: c.GetStatus, visitor: Visitor, number: int) -> _Answer:
        now = time.monotonic()
        if self._status is None or now >= self._status_until:
            own = {"serves": self.serves, "read_only": self.read_only}
            self._status = self._supervisor.status().model_copy(update=own)
            self._status_until = now + STATUS_KEPT_S
        return c.StatusReply(status=self._status), None

    def _cancel_job(self, request: c.CancelJob, visitor: Visitor, number: int) -> _Answer:
        self._require_orders()
        return c.Done(done=self._supervisor.cancel(request.job)), None

    def _kill_worker(self, request: c.KillWorker, visitor: Visitor, number: int) -> _Answer:
        self._require_orders()
        return c.Done(done=self._supervisor.kill_worker(request.worker)), None

    def _pause(self, request: c.Pause, visitor: Visitor, number: int) -> _Answer:
        self._require_orders()
        self._supervisor.pause()
        return c.Done(done=True), None

    def _resume(self, request: c.Resume, visitor: Visitor, number: int) -> _Answer:
        self._require_orders()
        self._supervisor.resume()
        return c.Done(done=True), None

    def _drain(self, request: c.Drain, visitor: Visitor, number: int) -> _Answer:
        self._require_orders()
        self._supervisor.drain(0)  # says so and does not wait; a status tells when it is done
        return c.Done(done=True), None

    def _require_orders(self) -> None:
        if self.read_only:
            raise RefusedByPolicy(
                "this supervisor can be watched through its socket, but takes no orders", hint="stop its program itself"
            )

    def _submit(self, request: c.Submit, visitor: Visitor, number: int) -> _Answer:
        if not self.serves:
            raise RefusedByPolicy(
                "this supervisor runs the jobs of its own program only", hint="start one with `wan-compat serve`"
            )
        kept = self.kept.of_key(request.key)
        if kept is None:
            kept = self.kept.add(request.key, self._queue(request, visitor))
            kept.log.watch(lambda kept=kept: self._on_news(kept))  # type: ignore[misc]
        if request.cancel_on_disconnect:
            visitor.own = [*filter(self.kept.is_live, visitor.own), kept.id]
        return c.Submitted(job=kept.id), None

    def _queue(self, request: c.Submit, visitor: Visitor) -> Job[Any]:
        generation, conversion = request.generation, request.conversion
        wanted = generation if generation is not None else conversion
        if wanted is None or (generation is not None and conversion is not None):
            raise InvalidRequest("a job is either a generation or a conversion")
        if (relative := relative_path_in(wanted)) is not None:
            raise InvalidRequest(
                f"{relative} is not an absolute path",
                hint="the client knows its working folder, the supervisor does not",
            )
        label = request.label or clean_text(visitor.program, c.MAX_LABEL_CHARS)
        queued = {"priority": request.priority, "group": request.group, "label": label}
        if generation is not None:
            return self._supervisor.submit(generation, **queued)  # type: ignore[arg-type]
        assert conversion is not None
        return self._supervisor.submit_conversion(conversion, **queued)  # type: ignore[arg-type]

    def _follow_job(self, request: c.FollowJob, visitor: Visitor, number: int) -> _Answer:
        kept = self.kept.get(request.job)
        if len(visitor.follows) >= c.MAX_FOLLOWED and kept.id not in visitor.follows:
            raise ResourceExceeded(
                f"a client follows {c.MAX_FOLLOWED} jobs at most", hint="read the events of some of them to their end"
            )
        visitor.follows[kept.id] = visitor.news[kept.id] = Followed(kept, number, request.after)
        return c.Done(done=True), None

    def _unfollow_job(self, request: c.UnfollowJob, visitor: Visitor, number: int) -> _Answer:
        visitor.news.pop(request.job, None)
        return c.Done(done=visitor.follows.pop(request.job, None) is not None), None

    def _get_job(self, request: c.GetJob, visitor: Visitor, number: int) -> _Answer:
        kept = self.kept.get(request.job)
        status = kept.status if kept.job is None else kept.job.status()
        assert status is not None
        return c.JobReply(status=status), None

    def _get_result(self, request: c.GetResult, visitor: Visitor, number: int) -> _Answer:
        return self.kept.answer(self.kept.get(request.job))
