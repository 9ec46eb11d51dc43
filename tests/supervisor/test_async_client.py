"""`AsyncSupervisor`: coroutines that never block the loop, and jobs that outlive the tasks that wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from tests.supervisor.conftest import PROGRAMS
from wan_compat import AsyncSupervisor, GenerationRequest, Supervisor
from wan_compat.protocol import errors
from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.supervisor import events as ev

RequestFor = Callable[..., GenerationRequest]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Supervisor, str]]:
    """A served supervisor, slow enough to be interrupted."""
    path = str(tmp_path_factory.mktemp("served") / "s")
    with Supervisor(workers=2) as supervisor:
        supervisor._zygote_program = (str(PROGRAMS / "misbehaving_zygote.py"), "slow")
        supervisor.serve(path)
        yield supervisor, path


@pytest.fixture(params=["own process", "served"])
def supervisor(request: pytest.FixtureRequest, served: tuple[Supervisor, str]) -> Iterator[AsyncSupervisor]:
    """The same supervisor, seen from its own process or over its socket."""
    if request.param == "served":
        made = asyncio.run(AsyncSupervisor.connect(served[1]))
        yield made
        asyncio.run(made.close())
    else:
        made = AsyncSupervisor.__new__(AsyncSupervisor)
        made._supervisor = served[0]
        yield made


async def started(job) -> None:
    async with contextlib.aclosing(job.events()) as events:
        async for event in events:
            if isinstance(event, ev.Progress) and event.phase == "denoise":
                return


def test_events_and_result_come_without_blocking_the_loop(supervisor, request_for):
    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(tick())
        job = await supervisor.submit(request_for(output=None, num_inference_steps=20), label="fox")
        seen = [event async for event in job.events()]
        result = await job.result()
        ticking.cancel()
        assert isinstance(seen[-1], ev.Finished) and seen[-1].result is result
        assert [e.step for e in seen if isinstance(e, ev.Progress) and e.phase == "denoise"] == list(range(1, 21))
        assert result.frames.frames.shape == (9, 64, 96, 3)
        assert ticks > 10 and job.done() and await job.state() == "done" and (await job.status()).label == "fox"
        assert [event async for event in job.events()] == seen  # a later reader too

    asyncio.run(main())


def test_a_cancelled_task_leaves_the_job_alone_unless_it_said_otherwise(supervisor, request_for):
    async def main() -> None:
        job = await supervisor.submit(request_for(output=None, num_inference_steps=1000))
        await started(job)
        for waiting in (job.result(), started_forever(job)):
            task = asyncio.create_task(waiting)
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(errors.DeadlineExceeded, match="goes on"):
            await job.result(timeout=0.02)
        assert await job.state() == "running"
        task = asyncio.create_task(job.result(cancel_job=True))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(errors.JobCancelled):
            await job.result(timeout=20)

    async def started_forever(job) -> None:
        async for _ in job.events():
            pass

    asyncio.run(main())


def test_leaving_the_events_cancels_the_job_if_it_shall(supervisor, request_for):
    async def main() -> None:
        job = await supervisor.submit(request_for(output=None, num_inference_steps=1000))
        async with contextlib.aclosing(job.events(cancel_job=True)) as events:
            async for event in events:
                if isinstance(event, ev.Started | ev.Progress):
                    break
        with pytest.raises(errors.JobCancelled):
            await job.result(timeout=20)

    asyncio.run(main())


def test_a_task_that_is_cancelled_while_it_submits_leaves_no_job_behind(supervisor, request_for, monkeypatch):
    made = []

    def slowly(*arguments, submit=supervisor._supervisor.submit, **options):
        made.append(submit(*arguments, **options))
        time.sleep(0.1)
        return made[-1]

    async def main() -> None:
        monkeypatch.setattr(supervisor._supervisor, "submit", slowly)
        task = asyncio.create_task(supervisor.submit(request_for(output=None, num_inference_steps=1000)))
        while not made:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(errors.JobCancelled):
            await asyncio.to_thread(made[0].result, 20)

    asyncio.run(main())


def test_many_tasks_wait_for_many_jobs(supervisor, request_for):
    async def main() -> None:
        jobs = [await supervisor.submit(request_for(output=None, seed=seed)) for seed in range(6)]
        results = await asyncio.gather(*(job.result(60) for job in jobs))
        assert [result.metadata.generation_params["seed"] for result in results] == list(range(6))

    asyncio.run(main())


def test_every_other_method_answers(supervisor, request_for, tmp_path):
    async def main() -> None:
        assert supervisor.mode == "safe"
        assert (await supervisor.check(request_for().model)).architecture.is_wan
        assert (await supervisor.scan(request_for().model)).is_safe
        assert (await supervisor.plan(request_for().model, width=64, height=64, num_frames=5)).choice.fits
        await supervisor.pause()
        try:
            job = await supervisor.submit(request_for(output=None))
            assert (await supervisor.status()).paused
            assert (await supervisor.job(job.id)).id == job.id
            assert await supervisor.cancel(job.id)
            with pytest.raises(errors.JobCancelled):
                await job.result(10)
            await job.cancel()
            assert not await supervisor.kill_worker("w99")
        finally:
            await supervisor.resume()
        with pytest.raises(errors.ModelNotFound):
            await supervisor.convert(ConversionRequest(model=str(tmp_path / "old"), output=str(tmp_path / "new")))
        with pytest.raises(errors.UnknownJob):
            await supervisor.job("j999")
        with pytest.raises(errors.ModelNotFound):
            await supervisor.generate(model=str(tmp_path / "nothing"), prompt="x")

    asyncio.run(main())


def test_a_supervisor_of_its_own_is_closed_with_its_context_even_by_a_cancelled_task(request_for):
    async def main() -> AsyncSupervisor:
        entered = asyncio.Event()
        made = AsyncSupervisor(workers=1)

        async def use() -> None:
            async with made as supervisor:
                job = await supervisor.submit(request_for(model="/nothing/there"))
                with pytest.raises(errors.ModelNotFound):
                    await job.result(20)
                entered.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(use())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return made

    made = asyncio.run(main())
    with pytest.raises(errors.InvalidRequest, match="closed"):
        made._supervisor.submit(request_for())


def test_draining_waits_without_blocking(request_for):
    async def main() -> None:
        async with AsyncSupervisor() as supervisor:
            assert await supervisor.drain(5)
            with pytest.raises(errors.InvalidRequest, match="drained"):
                await supervisor.submit(request_for())

    asyncio.run(main())


def test_options_are_those_of_a_supervisor():
    with pytest.raises(errors.InvalidRequest, match="workers"):
        AsyncSupervisor(workers=0)
