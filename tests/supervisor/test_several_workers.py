"""Jobs over several workers: order, status, cancelling, killing, pausing, draining. Workers are small real programs."""

from __future__ import annotations

import dataclasses
import itertools
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable

import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat import Job, Supervisor
from wan_compat.protocol import errors
from wan_compat.supervisor.events import Unusual, Warned
from wan_compat.supervisor.host import read_host

SLOW_STEPS = 20  # of 50 ms each, in a "slow" worker


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@pytest.fixture
def submit(request_for) -> Callable[..., Job]:
    def send(supervisor: Supervisor, *, steps: int = 1, ticket: dict[str, object] | None = None, **fields) -> Job:
        request = request_for(output=None, num_inference_steps=steps, **fields)
        return supervisor.submit(request, **(ticket or {}))

    return send


def test_two_jobs_run_at_once_and_the_status_tells_who_does_what(misbehaving, submit):
    supervisor = misbehaving("slow", workers=2)
    jobs = [submit(supervisor, steps=SLOW_STEPS, ticket={"label": "one\x1b[2J", "group": "g"}) for _ in range(3)]
    status = supervisor.status()

    def both_run() -> bool:  # all seen in one status: each of the jobs takes half a second only
        nonlocal status
        status = supervisor.status()
        busy = [
            worker.job for worker in status.workers if worker.activity == "busy" and worker.pid and worker.rss_bytes
        ]
        denoising = [job for job in status.running if job.phase == "denoise" and job.step > 0]
        return len(denoising) == 2 == len(busy) and set(busy) == {"j1", "j2"}

    until(both_run)
    assert (status.max_workers, status.queued_count, len(status.queued)) == (2, 1, 1)
    assert {job.id for job in status.running} == {"j1", "j2"}
    assert all(job.total == SLOW_STEPS for job in status.running)
    assert {job.worker for job in status.running} == {worker.id for worker in status.workers} == {"w1", "w2"}
    assert status.running[0].label == "one\\x1b[2J"
    for job in jobs:
        job.result(30)
    until(lambda: supervisor.status().done_count == 3)
    status = supervisor.status()
    assert {job.id for job in status.ended} == {"j1", "j2", "j3"}
    assert [worker.activity for worker in status.workers] == ["idle", "idle"]
    assert sum(worker.jobs_done for worker in status.workers) == 3


def test_memory_and_cores_are_shared_among_the_workers(misbehaving, submit):
    alone, shared = misbehaving("well"), misbehaving("well", workers=4)
    limits = [submit(each).result(30).sandbox.memory_limit_bytes for each in (alone, shared)]
    assert limits[1] < limits[0] / 3


def test_priority_comes_first_and_groups_take_turns(misbehaving, submit):
    supervisor = misbehaving("well")
    supervisor.pause()
    tickets = [("a", 0), ("a", 0), ("b", 0), ("a", 7)]
    jobs = [submit(supervisor, ticket={"group": group, "priority": priority}) for group, priority in tickets]
    assert [job.state for job in jobs] == ["queued"] * 4
    assert [job.id for job in supervisor.status().queued] == ["j4", "j1", "j3", "j2"]
    supervisor.resume()
    assert supervisor.drain(30)
    ended = [job.id for job in reversed(supervisor.status().ended)]
    assert ended == ["j4", "j1", "j3", "j2"]
    with pytest.raises(errors.InvalidRequest, match="drained"):
        submit(supervisor)


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_by_its_id(misbehaving, submit):
    supervisor = misbehaving("slow", max_queued=1)
    running = submit(supervisor, steps=1000)
    until(lambda: running.state == "running")
    waiting = submit(supervisor)
    with pytest.raises(errors.QueueFull):
        submit(supervisor)
    waiting.cancel()
    assert waiting.state == "cancelled"
    assert list(waiting.events())[-1].error.code == "job_cancelled"
    assert supervisor.cancel(running.id) and not supervisor.cancel("j99")
    with pytest.raises(errors.JobCancelled):
        running.result(30)
    assert not supervisor.cancel(running.id)


def test_a_worker_killed_on_request_ends_its_job_and_no_other(misbehaving, submit):
    supervisor = misbehaving("slow", workers=2)
    victim, other = submit(supervisor, steps=200, recover=True), submit(supervisor, steps=SLOW_STEPS)
    until(lambda: victim.status().step > 0)
    assert supervisor.kill_worker(victim.status().worker or "")
    with pytest.raises(errors.WorkerKilled, match="on request"):
        victim.result(30)
    assert other.result(30).success
    assert victim.status().attempt == 1  # nobody tries again what somebody ended
    until(lambda: len(supervisor.status().workers) == 1)
    assert supervisor.kill_worker(supervisor.status().workers[0].id)  # an idle one
    assert supervisor.status().workers == ()
    assert not supervisor.kill_worker("w99")


def test_a_killed_zygote_ends_the_jobs_of_its_workers_and_the_next_ones_get_another(misbehaving, submit):
    supervisor = misbehaving("slow", workers=2)
    jobs = [submit(supervisor, steps=1000) for _ in range(2)]
    until(lambda: all(job.status().step > 0 for job in jobs))
    assert supervisor._runners.pool is not None
    (zygote,) = supervisor._runners.pool._zygotes._zygotes.values()
    zygote._process.kill()
    for job in jobs:
        with pytest.raises(errors.WorkerDied):
            job.result(30)
    assert submit(supervisor).result(30).success


def test_closing_ends_what_runs_and_refuses_what_waits(misbehaving, submit):
    supervisor = misbehaving("slow", workers=2)
    jobs = [submit(supervisor, steps=1000) for _ in range(4)]
    until(lambda: all(job.status().step > 0 for job in jobs[:2]))
    supervisor.close()
    assert [job.state for job in jobs] == ["cancelled"] * 4
    assert supervisor.status().workers == ()


def test_a_deadline_of_one_job_ends_that_job_alone(misbehaving, submit):
    supervisor = misbehaving("slow", workers=2)
    late, other = submit(supervisor, steps=1000, timeout_s=1.0), submit(supervisor, steps=SLOW_STEPS)
    with pytest.raises(errors.JobTimeout):
        late.result(30)
    assert other.result(30).success


def test_as_many_models_stay_warm_as_may_and_the_least_recently_used_goes(misbehaving, submit, tmp_path):
    models = []
    for name in "abc":
        models.append(str(tmp_path / name))
        shutil.copytree(tiny_model("t2v"), models[-1])
    supervisor = misbehaving("well", max_warm=2)

    def warm() -> list[str]:
        return [worker.model[-1] for worker in supervisor.status().workers]

    for model, expected in [(0, "a"), (1, "ab"), (0, "ab"), (2, "ac"), (0, "ac"), (1, "ab")]:
        submit(supervisor, model=models[model]).result(30)
        until(lambda expected=expected: sorted(warm()) == list(expected))
    assert {worker.id: worker.jobs_done for worker in supervisor.status().workers} == {"w1": 3, "w4": 1}
    assert any("another model needs its place" in note.text for note in supervisor.status().notes)


def test_an_idle_worker_that_died_or_does_not_answer_is_replaced(misbehaving, submit, monkeypatch):
    monkeypatch.setattr("wan_compat.supervisor.worker_pool.ANSWER_S", 0.3)
    monkeypatch.setattr("wan_compat.supervisor.runners.TEND_S", 60.0)
    supervisor = misbehaving("idle:hang")
    for expected in ("w1", "w2"):
        job = submit(supervisor)
        assert job.result(30).success
        assert job.status().worker == expected
    assert any("did not answer" in note.text for note in supervisor.status().notes)


def test_an_idle_worker_that_breaks_the_protocol_is_ended_and_the_next_job_does_not_notice(misbehaving, submit):
    supervisor = misbehaving("idle:late-bad-sequence")
    assert submit(supervisor).result(30).success
    until(lambda: supervisor.status().workers == ())  # nobody asked: idle ones are looked after
    assert any("protocol_violation" in note.text for note in supervisor.status().notes)
    assert submit(supervisor).result(30).success


def test_an_idle_worker_that_is_busy_with_something_of_its_own_is_ended(misbehaving, submit, monkeypatch):
    monkeypatch.setattr("wan_compat.policies.consumption.IDLE_WINDOW_S", 0.3)
    monkeypatch.setattr("wan_compat.supervisor.worker_watch.CONSUMPTION_S", 0.1)
    monkeypatch.setattr("wan_compat.supervisor.runners.TEND_S", 0.1)
    supervisor = misbehaving("idle:spin")
    assert submit(supervisor).result(30).success
    until(lambda: supervisor.status().workers == ())
    assert any("it computes while idle" in note.text for note in supervisor.status().notes)


def test_an_idle_worker_that_nobody_needs_for_long_goes(misbehaving, submit, monkeypatch):
    monkeypatch.setattr("wan_compat.supervisor.runners.TEND_S", 0.1)
    supervisor = misbehaving("well", max_idle_s=0.3)
    submit(supervisor).result(30)
    until(lambda: supervisor.status().workers == ())
    assert any("no job came for it" in note.text for note in supervisor.status().notes)
    assert submit(supervisor).result(30).success
    with pytest.raises(errors.InvalidRequest, match="max_idle_s"):
        misbehaving("well", max_idle_s=-1)


def test_idle_workers_go_when_memory_is_short(misbehaving, submit, monkeypatch, tmp_path):
    other = str(tmp_path / "other")
    shutil.copytree(tiny_model("t2v"), other)
    supervisor = misbehaving("well", max_warm=2)
    submit(supervisor).result(30)
    full = dataclasses.replace(read_host(), memory_available_bytes=1 << 20)
    monkeypatch.setattr("wan_compat.supervisor.worker_pool.read_host", lambda: full)
    submit(supervisor, model=other).result(30)
    until(lambda: [worker.model for worker in supervisor.status().workers] == [other])
    assert any("another model needs its memory" in note.text for note in supervisor.status().notes)


def test_a_model_whose_workers_die_again_and_again_waits_and_is_given_up(misbehaving, submit, monkeypatch):
    monkeypatch.setattr("wan_compat.policies.restarts.PAUSES_S", (0.01, 0.5, 0.01))
    supervisor = misbehaving("load:exit")
    for _ in range(5):
        job = submit(supervisor)
        with pytest.raises(errors.WorkerDied):
            job.result(30)
    assert any("waiting" in event.message for event in job.events() if isinstance(event, Warned))
    with pytest.raises(errors.WorkerDied):
        submit(supervisor).result(30)
    living = supervisor.status().workers
    refused = submit(supervisor)
    with pytest.raises(errors.GivenUp, match=r"6 workers of this model died .*in 5 min.*status 3") as caught:
        refused.result(30)
    assert caught.value.details["until_unix_s"] > time.time() + 200
    assert supervisor.status().workers == living == ()
    assert refused.status().error_code == "given_up"


def test_a_zygote_that_never_comes_up_is_not_started_for_ever(misbehaving, submit, monkeypatch, tmp_path):
    monkeypatch.setattr("wan_compat.policies.restarts.PAUSES_S", (0.01, 0.01, 0.01))
    program = tmp_path / "zygote.py"
    program.write_text("import sys; sys.exit('no zygote today')")
    supervisor = misbehaving("well")
    supervisor._zygote_program = (str(program),)
    for _ in range(6):
        with pytest.raises(errors.WorkerStartFailed, match="no zygote today"):
            submit(supervisor).result(30)
    with pytest.raises(errors.GivenUp, match="6 zygotes died"):
        submit(supervisor).result(30)


def test_a_worker_that_floods_its_log_is_told_about_and_left_alone(misbehaving, submit, monkeypatch):
    monkeypatch.setattr("wan_compat.policies.consumption.FLOOD_WINDOW_S", 0.4)
    monkeypatch.setattr("wan_compat.supervisor.worker_watch.CONSUMPTION_S", 0.1)
    supervisor = misbehaving("denoise:print-flood")
    job = submit(supervisor)
    assert Unusual("w1", "floods its log") in itertools.takewhile(lambda event: job.state == "running", job.events())
    status = supervisor.status()
    assert status.workers[0].unusual == ("floods its log",)
    assert ("unusual: floods its log", "j1", "w1") in [(note.text, note.job, note.worker) for note in status.notes]
    assert job.state == "running" and supervisor.kill_worker("w1")


def test_a_program_with_a_thousand_descriptors_can_run_jobs(misbehaving, submit):
    # What select() cannot wait for: numbers above 1023, as a server with many connections has them.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("this user may not have so many")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        supervisor = misbehaving("well", workers=2)
        assert all(submit(supervisor).result(30).success for _ in range(2))
        supervisor.close()
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_jobs_that_wait_for_one_zygote_are_cancelled_one_by_one(misbehaving, submit, tmp_path):
    program = tmp_path / "zygote.py"
    program.write_text("import time; time.sleep(600)")
    supervisor = misbehaving("well", workers=2)
    supervisor._zygote_program = (str(program),)
    first, second = submit(supervisor), submit(supervisor)
    until(lambda: all(job.status().phase == "start_worker" for job in (first, second)))
    first.cancel()
    with pytest.raises(errors.JobCancelled, match="being imported"):
        first.result(10)
    assert second.state == "running"
    second.cancel()
    with pytest.raises(errors.JobCancelled):
        second.result(10)


def test_many_threads_submit_and_cancel_at_once(misbehaving, submit):
    supervisor = misbehaving("well", workers=2)
    jobs: list[Job] = []

    def work() -> None:
        for number in range(4):
            job = submit(supervisor)
            jobs.append(job)
            if number % 2:
                job.cancel()
            supervisor.status()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert supervisor.drain(60)
    assert {job.state for job in jobs} <= {"done", "cancelled"}
    status = supervisor.status()
    assert status.done_count + status.cancelled_count == len(jobs) == 12
    assert len({job.id for job in jobs}) == 12
