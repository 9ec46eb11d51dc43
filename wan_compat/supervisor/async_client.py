"""`AsyncSupervisor`: the same as `Supervisor` or `connect()`, with coroutines, for asyncio, notebooks and web servers.

    async with AsyncSupervisor() as supervisor:
        job = await supervisor.submit(GenerationRequest(model="path", prompt="a red fox", output="fox.mp4"))
        async for event in job.events():
            ...
        result = await job.result()

Nothing here blocks the event loop, and waiting for a job takes no thread: the job's log wakes the loop. A task that is
cancelled while it waits leaves the job alone, unless it said otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic

from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.protocol.errors import DeadlineExceeded
from wan_compat.protocol.results import ConversionReport, VideoGenerationResult
from wan_compat.protocol.values import GenerationRequest, Mode
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.client import Supervisor
from wan_compat.supervisor.event_log import EventLog
from wan_compat.supervisor.job import Job, R, all_results

if TYPE_CHECKING:
    from wan_compat.policies.scan.report import ScanReport
    from wan_compat.protocol.status import JobState, JobStatus, SupervisorStatus
    from wan_compat.supervisor.check import ModelReport
    from wan_compat.supervisor.plan_report import PlanReport
    from wan_compat.supervisor.remote import RemoteJob, RemoteSupervisor


class AsyncJob(Generic[R]):
    """One job. For any number of tasks of one event loop or of several.

    Attributes:
        id: By which `AsyncSupervisor.cancel` and, where it is served, `AsyncSupervisor.job` find it.
        request: What was asked for; None where it was found by its id.
    """

    def __init__(self, job: Job[R] | RemoteJob[R]) -> None:
        self._job: Any = job
        self.id = job.id
        self.request = job.request

    async def events(self, *, cancel_job: bool = False) -> AsyncIterator[ev.Event]:
        """Yield what happens, from the beginning until the job is over; the last event is Finished or Ended.

        Args:
            cancel_job: Cancel the job when the loop over the events is left before its end, by a `break`, an error or
                the cancellation of its task. Left by `break`, the generator ends when it is closed or collected: use
                `contextlib.aclosing` where that must be at once.
        """
        log, after, is_over = self._job.log, 0, False
        try:
            with _News(log) as news:
                while not is_over:
                    await news.wait()
                    batch, is_over = log.read(after)
                    if batch and not is_over:
                        news.set()  # there may be more than one batch
                    for number, event in batch:
                        after = number + 1
                        yield event
        finally:
            if cancel_job and not is_over:
                self._cancel_soon()

    async def result(self, timeout: float | None = None, *, cancel_job: bool = False) -> R:
        """Wait for the end and return the result, or raise the job's error.

        Args:
            cancel_job: Cancel the job too when the task that waits here is cancelled.

        Raises:
            DeadlineExceeded: Not over after `timeout` seconds; the job goes on.
            WanCompatError: Whatever ended the job, with its code.
        """
        log = self._job.log
        try:
            with _News(log) as news:
                async with asyncio.timeout(timeout):
                    while not log.is_over:
                        await news.wait()
        except TimeoutError as error:
            raise DeadlineExceeded(f"the job was not over after {timeout:g} s; it goes on") from error
        except asyncio.CancelledError:
            if cancel_job:
                self._cancel_soon()
            raise
        result: R = self._job.result(0)
        return result

    async def results(self, timeout: float | None = None, *, cancel_job: bool = False) -> list[R]:
        """As `result`, of all videos of the job, in their order."""
        return all_results(await self.result(timeout, cancel_job=cancel_job))

    def done(self) -> bool:
        return bool(self._job.log.is_over)

    async def cancel(self) -> None:
        """Ask the job to stop; `result` then raises JobCancelled. No effect once it is over."""
        await asyncio.to_thread(self._job.cancel)

    async def state(self) -> JobState:
        """Return where it stands: "queued", "running", "done", "failed" or "cancelled"."""
        return (await self.status()).state

    async def status(self) -> JobStatus:
        return await asyncio.to_thread(self._job.status)

    def _cancel_soon(self) -> None:
        """Cancel from where nothing can be awaited any more."""
        with contextlib.suppress(RuntimeError):  # the loop is gone, and its program with it
            asyncio.get_running_loop().run_in_executor(None, self._job.cancel)


class AsyncSupervisor:
    """A supervisor for asyncio; `Supervisor` says what the arguments and methods do.

    Args:
        mode, options: Those of `Supervisor`.
    """

    def __init__(self, mode: Mode | str = Mode.SAFE, **options: Any) -> None:
        self._supervisor: Supervisor | RemoteSupervisor = Supervisor(mode, **options)

    @classmethod
    async def connect(cls, socket: str | os.PathLike[str] | None = None) -> AsyncSupervisor:
        """Connect to the supervisor that `wan-compat serve` runs, as `wan_compat.connect`."""
        from wan_compat.supervisor.remote import connect

        connected = cls.__new__(cls)
        connected._supervisor = await asyncio.to_thread(connect, socket)
        return connected

    @property
    def mode(self) -> Mode:
        return self._supervisor.mode

    async def submit(
        self,
        request: GenerationRequest,
        *,
        priority: int = 0,
        group: str = "",
        label: str = "",
        cancel_on_disconnect: bool = False,
    ) -> AsyncJob:
        """As `Supervisor.submit`; `cancel_on_disconnect` is for a served one (remote.py), and nothing otherwise.

        Cancelled while it waits here, it leaves no job behind.
        """
        options = self._options(cancel_on_disconnect, priority=priority, group=group, label=label)
        return await self._submit(self._supervisor.submit, request, options)

    async def submit_conversion(
        self,
        request: ConversionRequest,
        *,
        priority: int = 0,
        group: str = "",
        label: str = "",
        cancel_on_disconnect: bool = False,
    ) -> AsyncJob[ConversionReport]:
        """As `Supervisor.submit_conversion`."""
        options = self._options(cancel_on_disconnect, priority=priority, group=group, label=label)
        return await self._submit(self._supervisor.submit_conversion, request, options)

    def _options(self, cancel_on_disconnect: bool, **options: Any) -> dict[str, Any]:
        return (
            options
            if isinstance(self._supervisor, Supervisor)
            else options | {"cancel_on_disconnect": cancel_on_disconnect}
        )

    async def _submit(self, submit: Callable[..., Any], request: Any, options: dict[str, Any]) -> AsyncJob[Any]:
        submitting = asyncio.ensure_future(asyncio.to_thread(submit, request, **options))
        try:
            return AsyncJob(await asyncio.shield(submitting))
        except asyncio.CancelledError:
            # Whoever asked is gone before there was a job to hold: nobody would ever look at it.
            submitting.add_done_callback(_cancel_unheld)
            raise

    async def job(self, id: str) -> AsyncJob[Any]:
        """Return a job by its id. Raises UnknownJob."""
        return AsyncJob(await asyncio.to_thread(self._supervisor.job, id))

    async def generate(
        self, request: GenerationRequest | None = None, *, cancel_job: bool = False, **fields: Any
    ) -> VideoGenerationResult:
        """As `Supervisor.generate`; `cancel_job` as of `AsyncJob.result`."""
        job = await self.submit(request if request is not None else GenerationRequest(**fields))
        return await job.result(cancel_job=cancel_job)

    async def convert(self, request: ConversionRequest | None = None, **fields: Any) -> ConversionReport:
        job = await self.submit_conversion(request if request is not None else ConversionRequest(**fields))
        return await job.result()

    async def check(self, model: str, task: str | None = None) -> ModelReport:
        return await asyncio.to_thread(self._supervisor.check, model, task)

    async def scan(self, model: str, *, hash_weights: bool = False) -> ScanReport:
        return await asyncio.to_thread(self._supervisor.scan, model, hash_weights=hash_weights)

    async def plan(
        self, model: str, *, vram_bytes: int | None = None, ram_bytes: int | None = None, **fields: Any
    ) -> PlanReport:
        return await asyncio.to_thread(
            self._supervisor.plan, model, vram_bytes=vram_bytes, ram_bytes=ram_bytes, **fields
        )

    async def status(self) -> SupervisorStatus:
        return await asyncio.to_thread(self._supervisor.status)

    async def cancel(self, job_id: str) -> bool:
        return await asyncio.to_thread(self._supervisor.cancel, job_id)

    async def kill_worker(self, worker_id: str) -> bool:
        return await asyncio.to_thread(self._supervisor.kill_worker, worker_id)

    async def pause(self) -> None:
        await asyncio.to_thread(self._supervisor.pause)

    async def resume(self) -> None:
        await asyncio.to_thread(self._supervisor.resume)

    async def drain(self, timeout_s: float | None = None) -> bool:
        return await asyncio.to_thread(self._supervisor.drain, timeout_s)

    async def close(self) -> None:
        await asyncio.to_thread(self._supervisor.close)

    async def __aenter__(self) -> AsyncSupervisor:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Shielded: a cancelled task must not leave workers behind.
        await asyncio.shield(self.close())


def _cancel_unheld(submitting: asyncio.Future[Any]) -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.get_loop().run_in_executor(None, submitting.result().cancel)


class _News:
    """Tells a task when a log, which other threads write, has something new. `wait` answers once at the beginning."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> _News:
        self._unwatch = self._log.watch(self._wake)
        return self

    def __exit__(self, *_: object) -> None:
        self._unwatch()

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()

    def set(self) -> None:
        self._event.set()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed before its task was
            self._loop.call_soon_threadsafe(self._event.set)
