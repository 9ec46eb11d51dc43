"""`Supervisor` and `Job`: what a program calls.

    with Supervisor() as supervisor:
        job = supervisor.submit(GenerationRequest(model="path", prompt="a red fox", output="fox.mp4"))
        for event in job.events():
            ...
        result = job.result()

A supervisor spawns nothing until its first job. One runner thread owns zygote, workers and encoder; the calling threads
only hand over requests and read events. Leaving the context kills and reaps everything and removes what was made.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic

from pydantic import ValidationError
from typing_extensions import TypeVar

from wan_compat.policies.policy import Policy, replace
from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    JobCancelled,
    RefusedByPolicy,
    WanCompatError,
)
from wan_compat.protocol.results import ConversionReport, VideoGenerationResult
from wan_compat.protocol.values import GenerationRequest, Mode
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor import audit_log, incidents
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.job_run import JobContext, JobRun
from wan_compat.supervisor.worker_pool import WorkerPool
from wan_compat.supervisor.zygote import ZYGOTE_PROGRAM

if TYPE_CHECKING:
    from wan_compat.policies.scan.report import ScanReport
    from wan_compat.supervisor.check import ModelReport

# What a job gives back; a bare `Job` makes a video.
R = TypeVar("R", VideoGenerationResult, ConversionReport, default=VideoGenerationResult)

CLOSE_TIMEOUT_S = 15.0

# Nobody has to read a job's events: beyond this many unread ones, progress is dropped (and only progress).
MAX_UNREAD_EVENTS = 10_000


class Job(Generic[R]):
    """One submitted request. Thread-safe."""

    def __init__(self, request: GenerationRequest | ConversionRequest, wake: Any) -> None:
        self.request = request
        self._wake = wake
        self._events: queue.Queue[ev.Event | None] = queue.Queue()
        self._future: concurrent.futures.Future[R] = concurrent.futures.Future()
        self._cancelled = threading.Event()

    def events(self) -> Iterator[ev.Event]:
        """Yield what happens until the job is over; the last event is Finished or Ended. For one reader."""
        while (event := self._events.get()) is not None:
            yield event

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

    def done(self) -> bool:
        return self._future.done()

    def cancel(self) -> None:
        """Ask the job to stop; `result` then raises JobCancelled. No effect once it is over."""
        self._cancelled.set()
        self._wake()

    # -- for the runner

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def emit(self, event: ev.Event) -> None:
        if isinstance(event, ev.Progress) and self._events.qsize() >= MAX_UNREAD_EVENTS:
            return
        self._events.put(event)

    def finish(self, outcome: R | WanCompatError) -> None:
        if isinstance(outcome, WanCompatError):
            if (incident := incidents.of_error(outcome)) is not None:
                self.emit(ev.Incident(incident))
            self._future.set_exception(outcome)
            self.emit(ev.Ended(outcome))
        else:
            self._future.set_result(outcome)
            self.emit(ev.Finished(outcome))
        self._events.put(None)


class Supervisor:
    """Runs jobs in contained workers.

    Args:
        mode: "safe" (no code from repositories) is the only mode that needs no approval.
        policy: What jobs may do and use (policies/policy.py); None is the built-in one. Requests can only narrow it.
        min_tier: Weakest sandbox tier to accept, instead of the policy's; below it jobs fail with SandboxUnavailable.
        memory_limit_bytes: Cap for each worker, instead of the policy's. None: what the machine can spare.
        start_method: "zygote" forks workers from a warm process, "spawn" gives each a fresh interpreter.

    Raises:
        InvalidRequest: Unknown mode, tier or start method.
    """

    def __init__(
        self,
        mode: Mode | str = Mode.SAFE,
        *,
        policy: Policy | None = None,
        min_tier: Tier | str | None = None,
        memory_limit_bytes: int | None = None,
        start_method: str = "zygote",
    ) -> None:
        self.mode = _choice(Mode, mode, "mode")
        fields: dict[str, Any] = {}
        if min_tier is not None:
            fields["min_tier"] = _choice(Tier, min_tier, "min_tier")
        if memory_limit_bytes is not None:
            fields["memory_limit_bytes"] = memory_limit_bytes
        try:
            self.policy = replace(policy or Policy(), fields)
        except ValidationError as error:
            raise InvalidRequest(f"memory_limit_bytes is {memory_limit_bytes!r}, out of range") from error
        if self.policy.min_tier is Tier.E and not self.policy.allow_unsandboxed:
            raise self._refusal(
                "tier E means no sandbox at all, and the policy does not allow it", "ask for tier A, B or C"
            )
        if self.mode is Mode.TRUST and self.policy.mode is Mode.SAFE:
            raise self._refusal("the policy allows safe mode only", "run the model in safe mode")
        if start_method not in ("zygote", "spawn"):
            raise InvalidRequest(f"start_method is {start_method!r}; known are 'zygote' and 'spawn'")
        self._zygote_program: Sequence[str] = ZYGOTE_PROGRAM
        self._spawn_only = start_method == "spawn"
        self._jobs: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._runner: threading.Thread | None = None
        self._wake_fd = -1
        self._current: Job[Any] | None = None
        self._closing = False

    def submit(self, request: GenerationRequest) -> Job:
        """Queue a request; jobs run in the order in which they came. Returns at once; errors come with the job."""
        if not isinstance(request, GenerationRequest):
            raise InvalidRequest(f"a GenerationRequest is needed, not a {type(request).__name__}")
        if self.mode is Mode.SAFE and request.mode is Mode.TRUST:
            raise self._refusal(
                "the request asks for trust mode, this supervisor runs in safe mode only",
                "run the model in safe mode, which needs no code from the repository",
                request.model,
            )
        if request.restricted and not self.policy.allow_restricted:
            raise self._refusal(
                "the policy does not allow restricted code of repositories",
                "use a repository whose pipeline is part of diffusers",
                request.model,
            )
        job: Job = Job(request, self._wake)
        self._enqueue(job)
        return job

    def submit_conversion(self, request: ConversionRequest) -> Job[ConversionReport]:
        """Queue a conversion (supervisor/conversion.py); for the rest as `submit`."""
        if not isinstance(request, ConversionRequest):
            raise InvalidRequest(f"a ConversionRequest is needed, not a {type(request).__name__}")
        job: Job[ConversionReport] = Job(request, self._wake)
        self._enqueue(job)
        return job

    def _enqueue(self, job: Job[Any]) -> None:
        with self._lock:
            if self._closing:
                raise InvalidRequest("the supervisor is closed")
            if self._runner is None:
                self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                # A daemon, so that a program that forgets to close can still end; atexit then closes for it.
                self._runner = threading.Thread(target=self._run, name="wan-compat-runner", daemon=True)
                atexit.register(_close_at_exit, weakref.ref(self))
                self._runner.start()
            self._jobs.put(job)

    def generate(self, request: GenerationRequest | None = None, **fields: Any) -> VideoGenerationResult:
        """Run one request and wait for it; `fields` build a GenerationRequest. Raises the job's error."""
        return self.submit(request if request is not None else GenerationRequest(**fields)).result()

    def convert(self, request: ConversionRequest | None = None, **fields: Any) -> ConversionReport:
        """Turn original-layout or pickled weights into a folder that `generate` runs in safe mode, and wait for it.

        `fields` build a ConversionRequest: `model`, `output`, ...

        Raises:
            WanCompatError: Whatever ended it, with its code; then nothing was written.
        """
        return self.submit_conversion(request if request is not None else ConversionRequest(**fields)).result()

    def check(self, model: str, task: str | None = None) -> ModelReport:
        """Say what a model is, what it needs and whether it will run here (supervisor/check.py). Starts nothing.

        Raises:
            ModelNotFound: There is nothing of that name.
            InvalidRequest: An unknown task.
        """
        from wan_compat.supervisor.check import check_model

        return check_model(model, task)

    def scan(self, model: str, *, hash_weights: bool = False) -> ScanReport:
        """Look for what could harm who loads a model (supervisor/scanner.py). No worker, and no permission either."""
        from wan_compat.supervisor.scanner import scan_model

        return scan_model(model, hash_weights=hash_weights)

    def close(self) -> None:
        """Cancel what runs, end all processes, remove what was made. Safe to call twice."""
        with self._lock:
            self._closing = True
            runner, current = self._runner, self._current
        if runner is None:
            return
        if current is not None:
            current.cancel()
        self._jobs.put(None)
        self._wake()
        runner.join(CLOSE_TIMEOUT_S)
        atexit.unregister(_close_at_exit)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refusal(self, message: str, hint: str, model: str | None = None) -> RefusedByPolicy:
        error = RefusedByPolicy(message, hint=hint)
        audit_log.note_error(error, model=model, mode=self.mode.value)
        return error

    # -- the runner thread ---------------------------------------------------------------------------------------

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        pool = WorkerPool(
            spawn_only=self._spawn_only,
            wake_fd=self._wake_fd,
            zygote_program=self._zygote_program,
        )
        try:
            while (job := self._jobs.get()) is not None:
                self._current = job
                if self._closing or job.is_cancelled():
                    job.finish(JobCancelled("cancelled before it started"))
                    continue
                job.finish(self._run_job(job, pool))
                self._current = None
        finally:
            pool.close()
            self._refuse_rest()
            os.close(self._wake_fd)
            self._wake_fd = -1

    def _run_job(self, job: Job[Any], pool: WorkerPool) -> VideoGenerationResult | ConversionReport | WanCompatError:
        context = JobContext(
            pool=pool,
            emit=job.emit,
            cancelled=lambda: self._is_over(job),
            wake_fd=self._wake_fd,
            policy=self.policy,
        )
        try:
            if isinstance(job.request, ConversionRequest):
                from wan_compat.supervisor.conversion import ConversionRun

                return ConversionRun(job.request, context).execute()
            return JobRun(job.request, context).execute()
        except WanCompatError as error:
            audit_log.note_error(error, model=job.request.model, mode=job.request.mode.value)
            return error
        except Exception as error:  # noqa: BLE001 - the runner must survive its own bugs; the job tells them
            failure = GenerationFailed(
                f"internal error: {type(error).__name__}: {error}", hint="please report this with the traceback"
            )
            failure.__cause__ = error
            return failure

    def _is_over(self, job: Job[Any]) -> bool:
        """Whether the running job shall stop. Takes back what woke the runner, which may have been another job's."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        return job.is_cancelled() or self._closing

    def _refuse_rest(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                job.finish(JobCancelled("the supervisor was closed before the job started"))


def _choice(kind: Any, value: Any, name: str) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(repr(item.value) for item in kind)
        raise InvalidRequest(f"{name} is {value!r}; known are {known}") from error


def _close_at_exit(reference: weakref.ref[Supervisor]) -> None:
    supervisor = reference()
    if supervisor is not None:
        supervisor.close()
