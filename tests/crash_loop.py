"""Kill a running batch at random moments, again and again; then look whether anything was made twice or is broken.

    python -m tests.crash_loop [--rounds 50] [--seed 0] [--items 12] [--real]

The process is the real program, killed with SIGKILL. Its workers are the fakes of tests/programs/misbehaving_zygote.py,
so that a round takes a second; with --real they are the demo model's. Some rounds also cut the journal's last line
short, or add half a line, as a power cut would. When a batch is finished before the rounds are, another one begins.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.assets.tiny_wan import tiny_model
from wan_compat.policies.batch.records import Done, Started
from wan_compat.sandbox import cgroup
from wan_compat.supervisor import runtime
from wan_compat.supervisor.batch.journal import Follower
from wan_compat.supervisor.demo import demo_model

PROGRAM = Path(__file__).resolve().parent / "programs" / "batch_with_fake_workers.py"
SMALL = ("--width", "96", "--height", "64", "--num-frames", "5", "--num-inference-steps", "2", "--fps", "8")
RUN_TIMEOUT_S = 120.0


@dataclasses.dataclass
class Crashes:
    """What a loop did. `moments`: how many kills found the batch before its first item, within one, or at its end."""

    rounds: int = 0
    batches: int = 0
    items: int = 0
    found: int = 0
    interrupted: int = 0
    cut_lines: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)


class Batch:
    """One batch in a folder of its own."""

    def __init__(self, folder: Path, items: int, *, real: bool, workers: int) -> None:
        self.file, self.out = folder / "batch.jsonl", folder / "out"
        self.items = items
        lines = [{"prompt": f"a red ball, number {number}", "seed": number} for number in range(items)]
        self.file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        program = ["-m", "wan_compat"] if real else [str(PROGRAM), "well"]
        model = demo_model() if real else str(tiny_model("t2v"))
        self.command = [sys.executable, *program, "batch", "run", str(self.file), "--out", str(self.out)]
        self.command += ["--model", model, "--workers", str(workers), *SMALL]
        # Of each output, when it was first seen whole: an output that is made again is another file.
        self.seen: dict[str, tuple[int, int]] = {}

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def records(self) -> list[Any]:
        own = self.out / ".batch"
        return list(Follower().fresh(sorted(map(str, own.glob("journal-*.jsonl"))))) if own.is_dir() else []

    def examine(self) -> list[str]:
        """Return what is wrong with what lies there now, whatever happened before."""
        problems = []
        videos = sorted(self.out.glob("*.mp4")) if self.out.is_dir() else []
        for video in videos:
            status = video.stat()
            identity = (status.st_ino, status.st_mtime_ns)
            if self.seen.setdefault(video.name, identity) != identity:
                problems.append(f"{video.name} was made twice")
            sidecar = Path(f"{video}.json")
            if sidecar.exists() and json.loads(sidecar.read_bytes())["video"]["sha256"] != sha256(video):
                problems.append(f"{video.name} is not what its sidecar says")
        done: dict[str, Done] = {}
        for record in self.records():
            if isinstance(record, Done):
                if record.key in done:
                    problems.append(f"{record.output} was recorded twice")
                done[record.key] = record
                path = self.out / record.output
                if not path.exists() or sha256(path) != record.sha256:
                    problems.append(f"{record.output} is recorded, and is not there as it was recorded")
        return problems

    def examine_end(self) -> list[str]:
        """Return what is wrong with a batch that has come to its end."""
        records = self.records()
        done = {record.key for record in records if isinstance(record, Done)}
        problems = self.examine()
        videos = {path.name for path in self.out.glob("*.mp4")}
        if len(done) != self.items or len(videos) != self.items:
            problems.append(f"{len(done)} done and {len(videos)} videos of {self.items}")
        begun = {record.output for record in records if isinstance(record, Started)}
        if not videos <= begun:
            problems.append(f"videos that nobody began: {sorted(videos - begun)}")
        allowed = (
            videos | {f"{name}.json" for name in videos} | {".batch", "report.html", "summary.json", "report_posters"}
        )
        if strange := sorted(set(os.listdir(self.out)) - allowed):
            problems.append(f"left behind: {strange}")
        if leases := os.listdir(self.out / ".batch" / "leases"):
            problems.append(f"leases left behind: {leases}")
        return problems


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def damage(journal: Path, chance: random.Random) -> bool:
    """Do to the journal what a crash in the middle of a record does: a part of one more line."""
    content = journal.read_bytes() if journal.exists() else b""
    if not content.endswith(b"\n"):  # the kill itself did it
        return bool(content)
    last = content.splitlines(keepends=True)[-1]
    with journal.open("ab") as file:
        file.write(last[: chance.randrange(1, len(last))])
    return True


def crash_loop(rounds: int, seed: int, items: int, *, real: bool = False, workers: int = 2) -> Crashes:
    """Kill batches `rounds` times; return what was found."""
    chance = random.Random(seed)
    crashes = Crashes()
    with tempfile.TemporaryDirectory() as place:
        while crashes.rounds < rounds and not crashes.problems:
            crashes.batches += 1
            folder = Path(place) / str(crashes.batches)
            folder.mkdir()
            batch = Batch(folder, items, real=real, workers=workers)
            _crash_until_done(batch, rounds, chance, crashes, start_s=6.0 if real else 1.0)
            crashes.problems += batch.examine_end()
            crashes.items += items
            crashes.found += sum(record.found for record in batch.records() if isinstance(record, Done))
            crashes.interrupted += sum(isinstance(record, Started) for record in batch.records()) - items
        # Of processes that were killed; the next supervisor would do it.
        cgroup.sweep_stale()
        runtime.sweep_stale(runtime.runtime_base())
    return crashes


def _crash_until_done(batch: Batch, rounds: int, chance: random.Random, crashes: Crashes, *, start_s: float) -> None:
    while True:
        process = batch.start()
        last = crashes.rounds >= rounds
        if not last:
            _wait_for_a_moment(process, batch, chance, start_s)
        try:
            _, said = process.communicate(timeout=RUN_TIMEOUT_S if last else 0)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if last:
                crashes.problems.append(f"the last run did not end within {RUN_TIMEOUT_S:g} s")
                return
            crashes.rounds += 1
            time.sleep(0.05)  # the kernel ends its children
            crashes.problems += batch.examine()
            if chance.random() < 0.3:
                crashes.cut_lines += damage(batch.out / ".batch" / "journal-1-of-1.jsonl", chance)
            continue
        if process.returncode != 0:
            words = re.sub(r"\s+", " ", said.decode(errors="replace"))[-500:]
            crashes.problems.append(f"a run ended with {process.returncode}: {words}")
        return


def _wait_for_a_moment(process: subprocess.Popen[bytes], batch: Batch, chance: random.Random, start_s: float) -> None:
    """Wait for a random time; more often, until something appears in the folder and a few milliseconds more.

    What is between a video's name and its record takes milliseconds, and start-up most of a run's time: by the clock
    alone, hardly a kill would come between the two.
    """
    if chance.random() < 0.3:
        end = time.monotonic() + chance.uniform(0.1, 2 * start_s)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        return
    ending, more = chance.choice((".mp4", ".mp4", ".mp4.json", ".part")), chance.choice((1, 1, 2, 3))
    before, end = _names(batch.out, ending), time.monotonic() + 20 * start_s
    while process.poll() is None and len(_names(batch.out, ending) - before) < more and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(chance.uniform(0.0, 0.02))


def _names(folder: Path, ending: str) -> set[str]:
    try:
        return {name for name in os.listdir(folder) if name.endswith(ending)}
    except FileNotFoundError:
        return set()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--real", action="store_true", help="the demo model in real workers")
    arguments = parser.parse_args()
    began = time.monotonic()
    crashes = crash_loop(arguments.rounds, arguments.seed, arguments.items, real=arguments.real)
    print(
        f"{crashes.rounds} kills in {crashes.batches} batches of {arguments.items}, {time.monotonic() - began:.0f} s: "
        f"{crashes.interrupted} attempts interrupted, {crashes.found} videos found finished without a record, "
        f"{crashes.cut_lines} last lines cut"
    )
    for problem in crashes.problems:
        print(f"PROBLEM: {problem}")
    return 1 if crashes.problems else 0


if __name__ == "__main__":
    sys.exit(main())
