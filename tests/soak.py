"""Start workers and end them at random moments in every way there is; then count what is left. Nothing may be.

    python -m tests.soak [--workers 500] [--seed 0]

Counts before and after: processes below this one, mounts, cgroups, descriptors, runtime folders, files. Workers are the
well-behaved fakes of tests/programs/misbehaving_zygote.py: really forked, really confined, without torch.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.assets.tiny_wan import tiny_model
from tests.conftest import abandoned_runtime_folders
from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol.errors import WanCompatError

PROGRAM = Path(__file__).resolve().parent / "programs" / "misbehaving_zygote.py"
WAYS = ("finish", "cancel", "kill worker", "stop worker", "kill zygote", "close")
JOBS_PER_SUPERVISOR = 10


def count() -> dict[str, int]:
    """Return how much there is of everything that a worker could leave behind."""
    cgroups = sum(
        name.startswith("wan-compat-") and f"-{os.getpid()}-" in name
        for _, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
    )
    return {
        "processes": len(psutil.Process().children(recursive=True)),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "cgroups": cgroups,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "runtime folders": len(abandoned_runtime_folders()),
    }


def one_job(supervisor: Supervisor, request: GenerationRequest, way: str, moment: float) -> None:
    job = supervisor.submit(request)
    time.sleep(moment)
    if way == "cancel":
        job.cancel()
    elif way == "close":
        supervisor.close()
    elif way != "finish":
        interfere(way)
    try:
        job.result(60)
    except WanCompatError:
        pass


def interfere(way: str) -> None:
    zygotes = [child for child in psutil.Process().children() if is_zygote(child)]
    for zygote in zygotes:
        try:
            targets = [zygote] if way == "kill zygote" else zygote.children()
            for target in targets:
                target.suspend() if way == "stop worker" else target.kill()
        except psutil.NoSuchProcess:
            continue


def is_zygote(process: psutil.Process) -> bool:
    try:
        return str(PROGRAM) in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def soak(workers: int, seed: int) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Run `workers` jobs, each with a worker of its own; return the counts before and after."""
    chance = random.Random(seed)
    model = str(tiny_model("t2v"))
    with tempfile.TemporaryDirectory() as folder:
        run_batch(chance, model, folder, 2)  # whatever is made once per process is made now
        before = count()
        began = time.monotonic()
        done = 0
        while done < workers:
            done += run_batch(chance, model, folder, min(JOBS_PER_SUPERVISOR, workers - done))
            print(f"{done}/{workers} workers, {time.monotonic() - began:.0f} s", file=sys.stderr)
        # A stopped process that was killed, and a cgroup that empties, take the kernel a moment.
        deadline = time.monotonic() + 5
        while any((after := count())[name] > number for name, number in before.items()) and time.monotonic() < deadline:
            time.sleep(0.1)
        files = [name for name in os.listdir(folder) if name.endswith(".part")]
        return before | {"unfinished files": 0}, after | {"unfinished files": len(files)}


def run_batch(chance: random.Random, model: str, folder: str, jobs: int) -> int:
    with Supervisor() as supervisor:
        supervisor._zygote_program = (str(PROGRAM), chance.choice(["well", "slow"]))
        for number in range(1, jobs + 1):
            way = chance.choice(WAYS)
            request = GenerationRequest(
                model=model,
                prompt="x",
                height=64,
                width=96,
                num_frames=9,
                num_inference_steps=chance.choice([1, 10]),
                isolation="job",
                timeout_s=2.0 if way == "stop worker" else 30.0,
                output=os.path.join(folder, f"{chance.getrandbits(64):x}.mp4") if chance.random() < 0.5 else None,
            )
            one_job(supervisor, request, way, chance.random() * 0.4)
            if way == "close":
                return number
    return jobs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    before, after = soak(options.workers, options.seed)
    for name, number in before.items():
        print(f"{name:<17} {number:5d} before {after[name]:5d} after")
    return 0 if all(after[name] <= number for name, number in before.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
