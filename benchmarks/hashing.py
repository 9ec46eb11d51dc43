"""How fast weights are hashed, beside coreutils.

    ours        `supervisor/hashing.py`, without its cache, in a process that is warm
    reference   `sha256sum` of the same files: one of it on one file; for `.cores` as many at a time as there are cores

The files are in the page cache in both arms, so that a core is compared with a core and not a disk with a disk.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.arms import Shared
from benchmarks.harness import Benchmark, Row, Skipped, alternate, faster, timed
from wan_compat.supervisor.hashing import FileIdentity, HashRequest, hash_files

FILE_BYTES = 256 << 20


def run(shared: Shared) -> Iterator[Row]:
    if shutil.which("sha256sum") is None:
        raise Skipped("sha256sum is not installed")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="wan-compat-bench-") as folder:
        paths = []
        for number in range(cores):
            path = Path(folder) / f"weights{number}"
            block = os.urandom(1 << 20)
            with path.open("wb") as file:
                for _ in range(FILE_BYTES >> 20):
                    file.write(block)
            paths.append(path)
        requests = [HashRequest(str(path), FileIdentity.of(path.stat())) for path in paths]
        one = alternate(
            lambda: timed(lambda: hash_files(requests[:1], threads=1)), lambda: _sha256sum(paths[:1]), warm_up=1
        )
        yield Row("hashing", one, "s", faster(0.8), f"{FILE_BYTES >> 20} MiB in the page cache, one core")
        every = alternate(lambda: timed(lambda: hash_files(requests)), lambda: _sha256sum(paths), warm_up=1)
        yield Row("hashing.cores", every, "s", faster(0.8), f"{cores} such files on {cores} cores")


def _sha256sum(paths: list[Path]) -> float:
    def all_at_once() -> None:
        running = [subprocess.Popen(["sha256sum", path], stdout=subprocess.DEVNULL) for path in paths]
        for process in running:
            if process.wait():
                raise RuntimeError("sha256sum failed")

    return timed(all_at_once)


BENCHMARK = Benchmark("hashing", "SHA-256 of weights against sha256sum", run)
