"""What a supervisor costs before its first job.

    ours        a whole interpreter that imports the public names and everything a job uses in the supervisor
    reference   none: the bars are absolute. A bare interpreter runs in turn with it, for the note

Time is the process's own processor time, start of the interpreter included: importing waits for nothing, and the wall
time of a fifth of a second says more about the neighbours. Peak memory is VmHWM of that process. None of torch,
diffusers, transformers and numpy may have been imported.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator

from benchmarks.arms import Shared
from benchmarks.child import run_python
from benchmarks.harness import Benchmark, Row, Samples, at_most

FORBIDDEN = {"torch", "diffusers", "transformers", "numpy"}

_REPORT = """
import json, re, sys, time
peak = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024
print(json.dumps([time.process_time(), peak, sorted({name.partition('.')[0] for name in sys.modules})]))
"""
_LIBRARY = """
from wan_compat import GenerationRequest, Supervisor
import wan_compat.supervisor.encoder, wan_compat.supervisor.ffmpeg, wan_compat.supervisor.outputs
"""
_COMMAND_LINE = "import wan_compat.supervisor.cli.main\n"


def run(shared: Shared) -> Iterator[Row]:
    bare, library, command_line = [], [], []
    for _ in range(7):
        bare.append(_measure(""))
        library.append(_measure(_LIBRARY))
        command_line.append(_measure(_COMMAND_LINE))
    milliseconds, megabytes = zip(*library, strict=True)
    note = (
        f"a bare interpreter takes {statistics.median(ms for ms, _ in bare):.0f} ms and"
        f" {statistics.median(mb for _, mb in bare):.0f} MB; none of {', '.join(sorted(FORBIDDEN))} is imported"
    )
    yield Row("supervisor_import.time", Samples(milliseconds), "ms", at_most(250), note)
    yield Row("supervisor_import.memory", Samples(megabytes), "MB", at_most(40))
    milliseconds, megabytes = zip(*command_line, strict=True)
    yield Row("supervisor_import.cli_time", Samples(milliseconds), "ms", at_most())
    yield Row("supervisor_import.cli_memory", Samples(megabytes), "MB", at_most())


def _measure(code: str) -> tuple[float, float]:
    """Return milliseconds of processor time and megabytes of a whole interpreter."""
    _, printed = run_python(code + _REPORT)
    seconds, megabytes, modules = json.loads(printed)
    imported = FORBIDDEN & set(modules)
    if imported:
        raise AssertionError(f"the supervisor imports {', '.join(sorted(imported))}")
    return seconds * 1000, megabytes


BENCHMARK = Benchmark("supervisor_import", "importing the supervisor; absolute", run)
