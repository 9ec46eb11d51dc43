"""How much of a core the supervisor takes while a worker denoises.

    ours        processor time of this process, which is the supervisor, between the first and the last step
    reference   none: absolute, as a share of one core over the same wall time

It answers heartbeats once a second, polls the worker's memory, and tells of each step. Moving frames comes later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.arms import Shared
from benchmarks.harness import Benchmark, Row, Samples, at_most
from wan_compat.supervisor import events as ev

TURNS = 3


def run(shared: Shared) -> Iterator[Row]:
    shared.supervisor  # noqa: B018 - is made when first asked for
    yield Row("supervisor_cpu", Samples(tuple(_share(shared) for _ in range(TURNS))), "%", at_most(1))


def _share(shared: Shared) -> float:
    request = shared.request("t2v_mid", height=128, width=224, num_frames=25, num_inference_steps=12)
    moments = []
    job = shared.supervisor.submit(request)
    for event in job.events():
        if isinstance(event, ev.Progress) and event.phase == "denoise" and event.step in (1, event.total):
            moments.append((time.perf_counter(), time.process_time()))
    job.result()
    (wall_0, cpu_0), (wall_1, cpu_1) = moments
    return 100 * (cpu_1 - cpu_0) / (wall_1 - wall_0)


BENCHMARK = Benchmark("supervisor_cpu", "processor time of the supervisor while a worker computes; absolute", run)
