"""`Supervisor` and `Job`: what a program calls.

    with Supervisor() as supervisor:
        job = supervisor.submit(GenerationRequest(model="path", prompt="a red fox", output="fox.mp4"))
        for event in job.events():
            ...
        result = job.result()

A supervisor spawns nothing until its first job. Runner threads own workers and encoders (`runners.py`); the calling
threads only hand over requests and read events. Leaving the context kills and reaps everything and removes what was
made.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from wan_compat.policies.policy import Policy
from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.protocol.errors import InvalidRequest, JobCancelled, UnknownJob, WanCompatError
from wan_compat.protocol.results import ConversionReport, VideoGenerationResult
from wan_compat.protocol.values import GenerationRequest, Mode
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.cpu_watch import CpuMeter
from wan_compat.supervisor.job import MAX_UNREAD_EVENTS, Job, R, Ticket
from wan_compat.supervisor.job_execution import execute_job, forget_frames
from wan_compat.supervisor.job_queue import JobQueue
from wan_compat.supervisor.observers import Observers
from wan_compat.supervisor.runners import Runners
from wan_compat.supervisor.runtime import fresh_name
from wan_compat.supervisor.supervisor_options import checked_options, refused
from wan_compat.supervisor.wake import Wake
from wan_compat.supervisor.zygote import ZYGOTE_PROGRAM

if TYPE_CHECKING:
    from wan_compat.policies.scan.report import ScanReport
    from wan_compat.protocol.status import SupervisorStatus
    from wan_compat.supervisor.check import ModelReport
    from wan_compat.supervisor.control_server import ControlServer
    from wan_compat.supervisor.plan_report import PlanReport
    from wan_compat.supervisor.status_report import Records
    from wan_compat.supervisor.worker_pool import WorkerPool

__all__ = ["MAX_UNREAD_EVENTS", "Job", "R", "Supervisor"]

CLOSE_TIMEOUT_S = 15.0


class Supervisor:
    """Runs jobs in contained workers.

    Args:
        mode: "safe" (no code from repositories) is the only mode that needs no approval.
        policy: What jobs may do and use (policies/policy.py); None is the built-in one. Requests can only narrow it.
        min_tier: Weakest sandbox tier to accept, instead of the policy's; below it jobs fail with SandboxUnavailable.
        memory_limit_bytes: Cap for each worker, instead of the policy's. None: what the machine can spare.
        start_method: "zygote" forks workers from a warm process, "spawn" gives each a fresh interpreter.
        workers: How many jobs run at once; memory and cores are shared among them.
        max_queued: How many jobs may wait; `submit` raises QueueFull beyond.
        max_warm: How many workers may stay for the next job of their model; None is as many as `workers`.
        max_idle_s: How long such a worker stays without a job, with the memory that its model takes; None is until the
            supervisor is closed, or its place or memory is needed.
        control: What other programs of this user may do through its control socket (docs/embed.md): "full" is to watch
            it and to cancel, kill, pause and drain; "read-only" to watch; "none" leaves the socket out.
        log_file: A log of JSON lines about its jobs (docs/operations.md).
        metrics: A file for Prometheus, or an address such as 127.0.0.1:9464 (docs/operations.md).

    Attributes:
        id: Name of its runtime folder, unique on this machine.
        program: What it is part of, for a status.
        observers: Who is told what its jobs do (operations.py).

    Raises:
        InvalidRequest: Unknown mode, tier or start method, or a number out of range.
        EnvironmentLacks: Log or metrics cannot be had as asked for.
    """

    def __init__(
        self,
        mode: Mode | str = Mode.SAFE,
        *,
        policy: Policy | None = None,
        min_tier: Tier | str | None = None,
        memory_limit_bytes: int | None = None,
        start_method: str = "zygote",
        workers: int = 1,
        max_queued: int = 1000,
        max_warm: int | None = None,
        max_idle_s: float | None = None,
        control: str = "full",
        log_file: str | os.PathLike[str] | None = None,
        metrics: str | os.PathLike[str] | None = None,
    ) -> None:
        options = checked_options(
            mode,
            policy=policy,
            min_tier=min_tier,
            memory_limit_bytes=memory_limit_bytes,
            start_method=start_method,
            workers=workers,
            max_queued=max_queued,
            max_warm=max_warm,
            max_idle_s=max_idle_s,
            control=control,
        )
        self.mode, self.policy, self.workers = options.mode, options.policy, options.workers
        self._options = options
        self._control: ControlServer | None = None
        self.id = fresh_name()
        self.program = " ".join(["python", *(os.path.basename(word) for word in sys.argv[:1] if word)])
        self._zygote_program: Sequence[str] = ZYGOTE_PROGRAM
        self._queue = JobQueue(options.max_queued)
        self._runners = Runners(self._queue, self.workers, self._make_pool, self._run)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._started_unix_s = time.time()
        self._records: Records | None = None
        self.observers = Observers(lambda why: self._record().note("warning", why))
        self._cpu = CpuMeter()
        self._closing = False
        if log_file is not None or metrics is not None:
            from wan_compat.supervisor.operations import observe

            observe(self, log_file=log_file, metrics=metrics)

    def submit(self, request: GenerationRequest, *, priority: int = 0, group: str = "", label: str = "") -> Job:
        """Queue a request. Returns at once; errors of the job come with the job.

        Args:
            priority: Jobs of a higher one run first; from -100 to 100.
            group: Jobs of one priority run in the order in which they came; those of several groups take turns.
            label: Shown in a status, for people.

        Raises:
            QueueFull: As many jobs wait as may.
            InvalidRequest, RefusedByPolicy: What can be said at once.
        """
        if not isinstance(request, GenerationRequest):
            raise InvalidRequest(f"a GenerationRequest is needed, not a {type(request).__name__}")
        if self.mode is Mode.SAFE and request.mode is Mode.TRUST:
            raise refused(
                "the request asks for trust mode, this supervisor runs in safe mode only",
                "run the model in safe mode, which needs no code from the repository",
                self.mode,
                request.model,
            )
        if request.restricted and not self.policy.allow_restricted:
            raise refused(
                "the policy does not allow restricted code of repositories",
                "use a repository whose pipeline is part of diffusers",
                self.mode,
                request.model,
            )
        return self._enqueue(request, Ticket(priority, group, label))

    def submit_conversion(
        self, request: ConversionRequest, *, priority: int = 0, group: str = "", label: str = ""
    ) -> Job[ConversionReport]:
        """Queue a conversion (supervisor/conversion.py); for the rest as `submit`."""
        if not isinstance(request, ConversionRequest):
            raise InvalidRequest(f"a ConversionRequest is needed, not a {type(request).__name__}")
        return self._enqueue(request, Ticket(priority, group, label))

    def _enqueue(self, request: GenerationRequest | ConversionRequest, ticket: Ticket) -> Job[Any]:
        with self._lock:
            if self._closing:
                raise InvalidRequest("the supervisor is closed")
            if not self._runners:
                atexit.register(_close_at_exit, weakref.ref(self))
            job: Job[Any] = Job(request, f"j{next(self._numbers)}", ticket, self._cancelled)
            job.observe = self.observers.event
            self._queue.put(job)
            is_first = not self._runners
            self._runners.ensure()
        if is_first:
            self._open_control()
        self.observers.queued(job)
        return job

    def _open_control(self) -> None:
        """Let other programs of this user look at it; a supervisor without does its jobs all the same."""
        if self._options.control == "none" or self._control is not None:
            return
        from wan_compat.supervisor.control_server import open_control

        try:
            control = open_control(self, self._runtime_folder(), read_only=self._options.control == "read-only")
        except WanCompatError as error:
            self._record().note("warning", f"no control socket: {error.message}", code=error.code)
            return
        self._keep_control(control)

    def serve(self, path: str) -> None:
        """Take jobs of other programs of this user at the socket `path` too (docs/embed.md), until `close`.

        What is asked for there is judged like a request of this program: it can only narrow mode and policy.

        Raises:
            InvalidRequest: It runs or serves already, or its control is not "full".
            AlreadyServing: Another one serves there.
            EnvironmentLacks: The socket cannot be made, or not in a folder that only this user writes to.
        """
        from wan_compat.supervisor.serving import open_served

        with self._lock:
            if self._runners or self._closing or self._options.control != "full":
                raise InvalidRequest("a supervisor serves from its beginning, and with control='full'")
            atexit.register(_close_at_exit, weakref.ref(self))
            self._runners.ensure(at_once=True)
        self._keep_control(open_served(self, self._runtime_folder(), path))

    def _runtime_folder(self) -> str:
        pool = self._runners.pool
        assert pool is not None
        return pool.runtime_folder().path

    def _keep_control(self, control: ControlServer) -> None:
        with self._lock:
            if not self._closing:
                self._control, control = control, None  # type: ignore[assignment]
        if control is not None:
            control.close()

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

    def plan(
        self, model: str, *, vram_bytes: int | None = None, ram_bytes: int | None = None, **fields: Any
    ) -> PlanReport:
        """Say how much memory each phase takes and which way to run fits (supervisor/plan_report.py). Starts nothing.

        Args:
            model: As of a request.
            vram_bytes, ram_bytes: Plan for a machine with this much instead of this one; no VRAM is a CPU.
            **fields: What else a GenerationRequest has: `width`, `num_frames`, `offload`, ...

        Raises:
            ModelNotCompatible: It has classes of its own, whose memory nobody knows.
            InvalidRequest, ModelNotFound, ...: As of a job.
        """
        from wan_compat.supervisor.plan_report import plan_model

        request = GenerationRequest(**{"prompt": "", **fields, "model": model})
        return plan_model(request, vram_bytes=vram_bytes, ram_bytes=ram_bytes, policy=self.policy)

    # -- looking and steering ------------------------------------------------------------------------------------

    def status(self) -> SupervisorStatus:
        """Return what its workers and jobs do now, what waits, and what happened lately. For any thread."""
        from wan_compat.supervisor.status_report import supervisor_status

        pool = self._runners.pool
        living = pool.living() if pool is not None else []
        with self._lock:
            busy = self._cpu.percents([worker.pid for worker, _ in living if worker.pid])
        return supervisor_status(self, self._started_unix_s, self._queue, self._record(), living, busy)

    def find(self, job_id: str) -> Job[Any] | None:
        """Return a job that waits or runs."""
        return self._queue.find(job_id)

    def job(self, id: str) -> Job[Any]:
        """Return a job that waits or runs. Raises UnknownJob."""
        job = self._queue.find(id)
        if job is None:
            raise UnknownJob(f"no job {id} waits or runs here", hint="keep the job that submit returned")
        return job

    def cancel(self, job_id: str) -> bool:
        """Cancel a job that waits or runs; return whether there is one of that id."""
        job = self._queue.find(job_id)
        if job is not None:
            job.cancel()
        return job is not None

    def kill_worker(self, worker_id: str) -> bool:
        """Kill a worker at once; its job, if it has one, fails with WorkerKilled. Return whether there is one."""
        pool = self._runners.pool
        killed = pool is not None and pool.kill(worker_id)
        if killed:
            self._record().note("warning", f"worker {worker_id} was killed on request", worker=worker_id)
        return killed

    def pause(self) -> None:
        """Start no more jobs until `resume`; what runs goes on, and `submit` still queues."""
        self._queue.pause(True)

    def resume(self) -> None:
        self._queue.pause(False)

    @property
    def draining(self) -> bool:
        """Whether somebody asked it to accept no more jobs."""
        return self._queue.draining

    def drain(self, timeout_s: float | None = None) -> bool:
        """Accept no more jobs, and wait for those that wait and run; a pause ends.

        Returns:
            Whether all are over; after `timeout_s` they may not be, and go on.
        """
        self._queue.drain()
        return self._queue.wait_empty(timeout_s)

    def close(self, *, linger_s: float = 0.0) -> None:
        """Cancel what runs, end all processes, remove what was made. Safe to call twice.

        Args:
            linger_s: How long programs that are connected may still fetch results of jobs that are over.
        """
        with self._lock:
            self._closing = True
        for job in self._queue.close():
            self._finish(job, JobCancelled("the supervisor was closed before the job started"))
        for job in self._queue.running():
            job.cancel()
        self._runners.join(CLOSE_TIMEOUT_S)
        if self._control is not None:
            self._control.close(linger_s)  # last, so that who follows a job there learns how it ended
        self.observers.close()
        if self._runners:
            atexit.unregister(_close_at_exit)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- for the runners -----------------------------------------------------------------------------------------

    def _record(self) -> Records:
        with self._lock:
            if self._records is None:
                from wan_compat.supervisor.status_report import Records

                self._records = Records(self.observers.note)
            return self._records

    def _make_pool(self) -> WorkerPool:
        from wan_compat.supervisor.worker_pool import WorkerPool

        return WorkerPool(
            spawn_only=self._options.spawn_only,
            zygote_program=self._zygote_program,
            workers=self.workers,
            max_warm=self._options.max_warm,
            max_idle_s=self._options.max_idle_s,
            name=self.id,
            tell=lambda worker, what: self._record().note("info", f"worker {worker}: {what}", worker=worker),
        )

    def _cancelled(self, job: Job[Any]) -> None:
        """A job was cancelled: it ends here if it still waits, and in its runner if it runs."""
        if self._queue.remove(job):
            self._finish(job, JobCancelled("cancelled before it started"))
        else:
            self._runners.wake(job)

    def _finish(self, job: Job[Any], outcome: Any) -> None:
        if isinstance(outcome, BaseException):
            forget_frames(outcome)
        job.finish(outcome)
        records, status = self._record(), job.status()
        records.ended(status)
        if status.state == "failed":
            records.note("error", outcome.message, code=outcome.code, job=job.id, worker=status.worker)

    def _emit(self, job: Job[Any], event: ev.Event) -> None:
        job.emit(event)
        if isinstance(event, ev.Recovering):
            text = f"after {event.error}: {event.action}"
            self._record().note("warning", text, code="recovering", job=job.id, worker=job.status().worker)
        elif isinstance(event, ev.Unusual):
            self._record().note("warning", f"unusual: {event.what}", code="unusual", job=job.id, worker=event.worker)

    def _run(self, job: Job[Any], pool: WorkerPool, wake: Wake) -> None:
        def is_over() -> bool:
            return job.is_cancelled() or self._closing

        if is_over():
            self._finish(job, JobCancelled("cancelled before it started"))
            return
        outcome = execute_job(
            job, pool, wake, policy=self.policy, emit=lambda event: self._emit(job, event), is_over=is_over
        )
        self._finish(job, outcome)


def _close_at_exit(reference: weakref.ref[Supervisor]) -> None:
    supervisor = reference()
    if supervisor is not None:
        supervisor.close()
