"""What a video of a batch takes: eight prompts, each a tiny clip (64x96, 9 frames, 4 steps) in a file of its own.

    ours        all jobs queued at once on a supervisor whose worker is warm, until the last file stands; an eighth
    reference   a plain diffusers script, as a shell loop runs it for each: import, load, generate, export_to_video
    .two        ours with two workers, which have half of the cores each; the same reference

A script runs once a turn, since each run costs the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.arms import Job, Shared, script_arguments
from benchmarks.child import Child
from benchmarks.harness import Benchmark, Row, Samples, faster
from wan_compat import Supervisor

PROMPTS = 8
TURNS = 5


def run(shared: Shared) -> Iterator[Row]:
    request = shared.request("t2v")

    def batch(supervisor: Supervisor) -> float:
        started = time.perf_counter()
        jobs = [
            supervisor.submit(
                request.model_copy(
                    update={"prompt": f"a red ball, {number}", "output": str(shared.folder / f"{number}.mp4")}
                )
            )
            for number in range(PROMPTS)
        ]
        for job in jobs:
            job.result()
        return (time.perf_counter() - started) / PROMPTS

    def script() -> float:
        started = time.perf_counter()
        with Child("benchmarks.plain_script") as child:
            child.ask(do="load", model=request.model)
            output = str(shared.folder / "script.mp4")
            child.ask(do="generate", arguments=script_arguments(request), seed=request.seed, output=output)
            return time.perf_counter() - started

    one, two, reference = [], [], []
    with Supervisor(workers=2) as pair:
        Job(shared.supervisor, request)
        batch(pair)  # until both workers are warm
        for _ in range(TURNS):
            one.append(batch(shared.supervisor))
            two.append(batch(pair))
            reference.append(script())
    yield Row("batch_throughput", Samples(tuple(one), tuple(reference)), "s", faster(5))
    yield Row("batch_throughput.two", Samples(tuple(two), tuple(reference)), "s", faster())


BENCHMARK = Benchmark("batch_throughput", "a video of a batch on a warm worker against a script per prompt", run)
