"""From a request to the frames of a tiny clip (64x96, 9 frames, 4 steps) in memory, nothing of the model loaded before.

    ours        a running supervisor gets a job with isolation "job": it inspects the folder, forks and confines a new
                worker, which loads and generates; every frame crosses
    reference   a plain diffusers script from process start: import, from_pretrained, generate, frames as uint8

The supervisor's zygote has imported already: that is the first job's price, and it is one import as the script's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.arms import Shared, script_arguments
from benchmarks.child import Child
from benchmarks.harness import Benchmark, Row, alternate, faster


def run(shared: Shared) -> Iterator[Row]:
    request = shared.request("t2v")

    def script() -> float:
        started = time.perf_counter()
        with Child("benchmarks.plain_script") as child:
            child.ask(do="load", model=request.model)
            child.ask(do="generate", arguments=script_arguments(request), seed=request.seed)
            return time.perf_counter() - started

    shared.supervisor  # noqa: B018 - is made when first asked for
    yield Row("first_generation", alternate(lambda: shared.job("t2v", isolation="job").seconds, script), "s", faster(8))


BENCHMARK = Benchmark("first_generation", "request to frames in a fresh worker against a script from its start", run)
