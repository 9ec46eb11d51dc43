"""What one more idle worker costs in memory.

    ours        private pages (USS) of a worker that is Ready: confined, connected, no model
    reference   resident memory of a new interpreter that imported what a script needs

The pages that a worker shares with the zygote exist once, for all workers; the zygote is the price of the first.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.arms import Shared
from benchmarks.child import SCRIPT_IMPORTS, run_python
from benchmarks.harness import Benchmark, Row, Skipped, alternate, part

_REPORT = "import re; print(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1])"


def run(shared: Shared) -> Iterator[Row]:
    samples = alternate(
        lambda: worker_megabytes(shared), lambda: int(run_python(SCRIPT_IMPORTS + _REPORT)[1]) / 1024, 3
    )
    yield Row("idle_memory", samples, "MB", part(0.05))


def worker_megabytes(shared: Shared) -> float:
    with shared.ready_worker() as worker:
        time.sleep(0.2)
        try:
            rollup = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
        except PermissionError as error:
            # A worker is not dumpable, and then its private pages can be counted by root alone.
            raise Skipped("only root may count a worker's private pages") from error
    return sum(int(kilobytes) for kilobytes in re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.MULTILINE)) / 1024


BENCHMARK = Benchmark("idle_memory", "private memory of an idle worker against a spawned one's", run)
