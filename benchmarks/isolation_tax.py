"""What a whole generation costs more because it runs confined, in another process.

    ours        a warm worker in the sandbox: from submit to all frames in the supervisor's memory
    reference   the same pipeline in the plain script's own process: from the call to all frames as uint8
                .untuned: with no settings in its environment, where threads spin while they wait (wait_policy)

A model large enough to keep two cores busy for seconds (20 million parameters, 102 MB), same seed, same threads, conv3d
through oneDNN on both sides. Frames must be equal, or the run does not count. The fastest runs are compared: runs of
the same arm differ by more than the bar allows.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.arms import Shared, script_arguments
from benchmarks.child import Child
from benchmarks.harness import Benchmark, Row, Samples, part

SIZE: dict[str, Any] = {"height": 128, "width": 224, "num_frames": 17, "num_inference_steps": 5}
TURNS = 9
UNTUNED_TURNS = 3  # a turn of it can take half a minute where others use the cores


def run(shared: Shared) -> Iterator[Row]:
    request = shared.request("t2v_mid", **SIZE)
    children = shared.plain, shared.untuned
    threads = [child.ask(do="load", model=request.model)["threads"] for child in children]

    def ours() -> tuple[float, str]:
        job = shared.job("t2v_mid", **SIZE)
        assert job.result.frames is not None
        return job.seconds, hashlib.sha256(job.result.frames.frames).hexdigest()

    def reference(child: Child) -> tuple[float, str]:
        moments = child.ask(do="generate", arguments=script_arguments(request), seed=request.seed)
        return moments["frames"], moments["sha256"]

    turns = []
    for turn in range(TURNS + 1):  # the first is a warm-up
        arms = children[: 2 if turn <= UNTUNED_TURNS else 1]
        made = [ours(), *(reference(child) for child in arms)]
        if len({digest for _, digest in made}) != 1:
            raise AssertionError("the frames differ")
        if turn:
            turns.append([seconds for seconds, _ in made])
    samples = Samples(tuple(turn[0] for turn in turns), tuple(turn[1] for turn in turns))
    medians = statistics.median(samples.ours) / statistics.median(samples.reference)
    note = f"the fastest runs; {threads[0]} threads on both sides; the medians' ratio is {medians:.3f}"
    yield Row("isolation_tax", samples, "s", part(1.03), note, fastest=True)
    turns = turns[:UNTUNED_TURNS]
    samples = Samples(tuple(turn[0] for turn in turns), tuple(turn[2] for turn in turns))
    yield Row("isolation_tax.untuned", samples, "s", part(), fastest=True)


BENCHMARK = Benchmark("isolation_tax", "warm generation in the sandbox against the same pipeline in-process", run)
