"""What `wan-compat check` costs on a large repository.

    ours        `check` of a sharded A14B: two experts of 14 billion parameters in 24 shards, text encoder, VAE. The
                headers are real, the data are holes
    reference   none: the bars are absolute

`time` is the processor time of the whole command, interpreter included: it waits for nothing, and the wall time of a
third of a second (`wall`) says more about the neighbours. `memory` is the VmHWM of that process; `call` the processor
time of `check_model` in a process that did it before. None of torch, diffusers, transformers and numpy may have been
imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.arms import Shared
from benchmarks.child import ROOT, run_python, script_environment
from benchmarks.harness import Benchmark, Row, Samples, at_most
from tests.assets.corpus.repositories import build_sharded_14b

FORBIDDEN = {"torch", "diffusers", "transformers", "numpy"}

_MEMORY = """
import contextlib, io, json, re, sys
from wan_compat.supervisor.cli.main import main
with contextlib.redirect_stdout(io.StringIO()):
    main(["check", {path!r}])
peak = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024
print(json.dumps([peak, sorted({{name.partition('.')[0] for name in sys.modules}})]))
"""
_CALL = """
import json, time
from wan_compat.supervisor.check import check_model
check_model({path!r})
taken = []
for _ in range(9):
    started = time.process_time()
    check_model({path!r})
    taken.append((time.process_time() - started) * 1000)
print(json.dumps(taken))
"""


def run(shared: Shared) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="wan-compat-check-") as folder:
        path = str(build_sharded_14b(Path(folder) / "model"))
        processor, wall = zip(*(_command(path) for _ in range(7)), strict=True)
        yield Row("check.time", Samples(processor), "ms", at_most(500))
        yield Row("check.wall", Samples(wall), "ms", at_most())
        yield Row("check.memory", Samples(tuple(_memory(path) for _ in range(3))), "MB", at_most(60))
        _, printed = run_python(_CALL.format(path=path))
        yield Row("check.call", Samples(tuple(json.loads(printed))), "ms", at_most(30))


def _command(path: str) -> tuple[float, float]:
    """Return milliseconds of processor time and of wall time."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "wan_compat", "check", path],
        stdout=subprocess.DEVNULL,
        env=script_environment(),
        cwd=ROOT,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 6):  # 6: not enough memory, on most machines
        raise AssertionError(f"check ended with {process.returncode}")
    return (usage.ru_utime + usage.ru_stime) * 1000, seconds * 1000


def _memory(path: str) -> float:
    _, printed = run_python(_MEMORY.format(path=path))
    megabytes, modules = json.loads(printed)
    imported = FORBIDDEN & set(modules)
    if imported:
        raise AssertionError(f"check imports {', '.join(sorted(imported))}")
    return float(megabytes)


BENCHMARK = Benchmark("check", "checking a sharded A14B repository; absolute", run)
