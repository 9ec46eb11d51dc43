"""Queue many jobs over a few workers, and cancel, kill, hang and flood at random; then see what became of each of them.

    python -m tests.soak_jobs [--jobs 200] [--workers 2] [--seed 0] [--real 8]

Every job must end in the state that what was done to it allows, in the order that priorities, groups and places in the
queue demand; the supervisor's memory and descriptors stay flat; afterwards nothing is left of any worker. Workers are
those of tests/programs/misbehaving_zygote.py, each job's behaviour stands in its prompt; `--real` jobs of the smallest
real model follow, some of whose workers are killed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import psutil

from tests import soak
from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Job, Supervisor
from wan_compat.protocol.status import JobStatus
from wan_compat.supervisor import job_run

PROGRAM = Path(__file__).resolve().parent / "programs" / "misbehaving_zygote.py"

# What a job's worker does, and how the job may end if nobody interferes.
BEHAVIOURS = {
    "well": {"done"},
    "slow": {"done"},
    "denoise:exit": {"worker_died"},
    "frame:crash": {"worker_died"},
    "denoise:hang": {"job_timeout"},
    "denoise:message-flood": {"protocol_violation"},
    "denoise:bad-sequence": {"protocol_violation"},
    "frame:skip-frame": {"corrupt_frame"},
    "idle:hang": {"done"},
    "denoise:print-flood": {"done"},
}
MIX = ["well", "slow", "slow", *BEHAVIOURS, "well", "slow"]
GROUPS = ("", "a", "b", "c")
WARMED_UP = 0.3  # of the jobs; what is made once has been made by then
MAX_GROWTH_BYTES = 12 << 20
MAX_NEW_DESCRIPTORS = 12  # those of the workers that are alive at one look and not at the other


@dataclasses.dataclass
class Tried:
    """What was done to the jobs."""

    behaviour: dict[str, str]
    cancelled: set[str] = dataclasses.field(default_factory=set)
    killed_workers: set[str] = dataclasses.field(default_factory=set)
    met_zygote_death: set[str] = dataclasses.field(default_factory=set)


def soak_jobs(jobs: int, workers: int, seed: int) -> list[str]:
    """Run it; return what was wrong."""
    chance = random.Random(seed)
    original = job_run.deadlines

    def short(**fields):
        return dataclasses.replace(original(**fields), cancel_grace_s=0.3)

    before = soak.count()
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(job_run, "deadlines", short):
        with mock.patch("wan_compat.supervisor.worker_pool.ANSWER_S", 0.5):
            problems = _run(chance, jobs, workers, folder)
        problems += [f"{name} is left" for name in os.listdir(folder) if ".part" in name]
    deadline = time.monotonic() + 5
    while (left := _more(before, soak.count())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return problems + left


def _run(chance: random.Random, jobs: int, workers: int, folder: str) -> list[str]:
    process = psutil.Process()
    warm: tuple[int, int] | None = None
    ended: dict[str, JobStatus] = {}
    with Supervisor(workers=workers, max_queued=jobs) as supervisor:
        supervisor._zygote_program = (str(PROGRAM), "as-asked")
        supervisor.pause()
        living, tried = _submit(supervisor, chance, jobs, folder)
        supervisor.resume()
        deadline = time.monotonic() + 60 + 3 * jobs
        while living and time.monotonic() < deadline:
            time.sleep(chance.random() * 0.1)
            _interfere(supervisor, chance, living, tried)
            for job_id in [job_id for job_id, job in living.items() if job.done()]:
                ended[job_id] = living.pop(job_id).status()  # results hold frames, and are let go
            if warm is None and len(ended) >= WARMED_UP * jobs:
                warm = process.memory_info().rss, process.num_fds()
        supervisor.resume()
        problems = [f"{job_id} did not end: {job.status()}" for job_id, job in living.items()]
        problems += [] if supervisor.drain(20) else ["the supervisor was not drained"]
        status = supervisor.status()
        counts = Counter(job.state for job in ended.values())
        if (status.done_count, status.failed_count, status.cancelled_count) != tuple(
            counts[state] for state in ("done", "failed", "cancelled")
        ):
            problems.append(f"the status counts {status.done_count, status.failed_count, status.cancelled_count}")
        assert warm is not None
        grown, more = process.memory_info().rss - warm[0], process.num_fds() - warm[1]
        if grown > MAX_GROWTH_BYTES or more > MAX_NEW_DESCRIPTORS:
            problems.append(f"the supervisor grew by {grown} bytes and {more} descriptors")
        codes = Counter(job.error_code for job in ended.values() if job.error_code)
        print(f"{dict(counts)}, {dict(codes)}, memory {grown / 1e6:+.1f} MB, descriptors {more:+d}", file=sys.stderr)
    problems += [problem for job in ended.values() if (problem := _wrong_end(job, tried)) is not None]
    return problems + wrong_order(list(ended.values()))


def _submit(supervisor: Supervisor, chance: random.Random, jobs: int, folder: str) -> tuple[dict[str, Job], Tried]:
    behaviours = [MIX[number % len(MIX)] for number in range(jobs)]
    chance.shuffle(behaviours)
    model = str(tiny_model("t2v"))
    living: dict[str, Job] = {}
    tried = Tried({})
    for number, behaviour in enumerate(behaviours):
        # A model of its own for each that dies: a model whose workers die in a row is given up, which is another test.
        name = os.path.join(folder, f"model-{number}")
        os.symlink(model, name)
        request = GenerationRequest(
            model=name,
            prompt=behaviour,
            height=64,
            width=96,
            num_frames=9,
            num_inference_steps=chance.choice([1, 5, 20]),
            timeout_s=1.0 if BEHAVIOURS[behaviour] == {"job_timeout"} else 60.0,
            recover=False,
            output=os.path.join(folder, f"{number}.mp4") if chance.random() < 0.3 else None,
        )
        job = supervisor.submit(request, priority=chance.choice([0, 0, 0, 1]), group=chance.choice(GROUPS))
        living[job.id] = job
        tried.behaviour[job.id] = behaviour
    return living, tried


def _interfere(supervisor: Supervisor, chance: random.Random, living: dict[str, Job], tried: Tried) -> None:
    what = chance.random()
    if what < 0.10 and living:
        job_id = chance.choice(list(living))
        tried.cancelled.add(job_id)
        living[job_id].cancel()
    elif what < 0.15:
        workers = supervisor.status().workers
        if workers and supervisor.kill_worker(worker := chance.choice(workers).id):
            tried.killed_workers.add(worker)
    elif what < 0.16:
        tried.met_zygote_death |= {job.id for job in supervisor.status().running}
        soak.interfere("kill zygote")
        tried.met_zygote_death |= {job.id for job in supervisor.status().running}
    elif what < 0.20:
        supervisor.pause()
        time.sleep(0.05)
        supervisor.resume()


def _wrong_end(job: JobStatus, tried: Tried) -> str | None:
    end = "done" if job.state == "done" else job.error_code
    allowed = set(BEHAVIOURS[tried.behaviour[job.id]])
    if job.id in tried.cancelled:
        allowed.add("job_cancelled")
    if job.worker in tried.killed_workers or (job.worker is None and tried.killed_workers):
        allowed.add("worker_killed")
    if job.id in tried.met_zygote_death:
        allowed |= {"worker_died", "worker_start_failed", "memory_exceeded"}  # of a SIGKILL that nobody explains
    if end in allowed and (job.state == "cancelled") == (end == "job_cancelled"):
        return None
    return f"{job.id} ({tried.behaviour[job.id]}) ended as {end}, not as one of {sorted(allowed)}: {job.error}"


def _began(job: JobStatus) -> float:
    """When it left the queue; never, for one that was cancelled there."""
    return float("inf") if job.started_unix_s is None else job.started_unix_s


def wrong_order(jobs: list[JobStatus]) -> list[str]:
    """Return what contradicts the order of the queue, for jobs that all waited when the first one began."""
    started = sorted((job for job in jobs if job.started_unix_s is not None), key=_began)
    numbers = {job.id: int(job.id[1:]) for job in jobs}
    problems = []
    for place, job in enumerate(started):
        for later in started[place + 1 :]:
            if later.priority > job.priority:
                problems.append(f"{job.id} before {later.id}, which has a higher priority")
            if (later.priority, later.group) == (job.priority, job.group) and numbers[later.id] < numbers[job.id]:
                problems.append(f"{job.id} before {later.id} of its group, which came first")
    for priority in {job.priority for job in started}:
        row = [job.group for job in started if job.priority == priority]
        for place in range(len(row) - 1):
            # Others that ran later waited at this moment; who was cancelled in the queue cannot be told apart.
            if row[place] == row[place + 1] and (passed := set(row[place + 2 :]) - {row[place]}):
                problems.append(f"group {row[place]!r} had two turns while {sorted(passed)} waited")
    return problems


def _more(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return [f"{after[name] - number} {name} are left" for name, number in before.items() if after[name] > number]


def real_jobs(jobs: int, workers: int, seed: int) -> list[str]:
    """Run jobs of the smallest real model and kill a worker now and then: recovery finishes every job."""
    chance = random.Random(seed)
    with Supervisor(workers=workers) as supervisor:
        size = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
        model = str(tiny_model("t2v"))
        queued = [supervisor.submit(GenerationRequest(model=model, prompt="x", seed=n, **size)) for n in range(jobs)]
        while not all(job.done() for job in queued):
            time.sleep(0.5 + chance.random())
            soak.interfere("kill worker")
        supervisor.drain(60)
        return [f"real {job.id} ended as {job.state}: {job.status().error}" for job in queued if job.state != "done"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=int, default=8)
    options = parser.parse_args()
    began = time.monotonic()
    problems = soak_jobs(options.jobs, options.workers, options.seed)
    if options.real:
        problems += real_jobs(options.real, options.workers, options.seed)
    for problem in problems:
        print(problem)
    print(
        f"{options.jobs} jobs over {options.workers} workers in {time.monotonic() - began:.0f} s: "
        f"{len(problems)} problems"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
