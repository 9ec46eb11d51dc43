"""What a whole generation costs more because it runs confined, in another process.

    ours        a warm worker in the sandbox: from submit to all frames in the supervisor's memory
    reference   the same pipeline in the plain script's own process: from the call to all frames as uint8
                .untuned: with no settings in its environment, where threads spin while they wait (wait_policy)

A model large enough to keep two cores busy for seconds (20 million parameters, 102 MB), same seed, same threads, conv3d
through oneDNN on both sides. Frames must be equal, or the run does not count.

The bar is a few percent, and runs of one arm differ by ten where others use the machine. So neither the arms' fastest
runs nor their medians are compared, which may stem from different moments, but the two runs of each turn, made one
right after the other; the median of these ratios is the tax, and their quartiles say how much it is worth. The arms
take turns in going first, so that what grows slowly (heat, other load) does not fall on one of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
        made = [ours(), reference(shared.plain)] if turn % 2 else [reference(shared.plain), ours()][::-1]
        if turn <= UNTUNED_TURNS:
            made.append(reference(shared.untuned))
        if len({digest for _, digest in made}) != 1:
            raise AssertionError("the frames differ")
        if turn:
            turns.append([seconds for seconds, _ in made])
    samples = Samples(tuple(turn[0] for turn in turns), tuple(turn[1] for turn in turns))
    row = Row("isolation_tax", samples, "s", part(1.03))
    assert row.spread is not None
    fastest = min(samples.ours) / min(samples.reference)
    note = (
        f"the median of {TURNS} turns' ratios, half of which lie between {row.spread[0]:.3f} and {row.spread[1]:.3f}; "
        f"{threads[0]} threads on both sides; the ratio of the fastest runs is {fastest:.3f}"
    )
    yield dataclasses.replace(row, note=note)
    turns = turns[:UNTUNED_TURNS]
    samples = Samples(tuple(turn[0] for turn in turns), tuple(turn[2] for turn in turns))
    yield Row("isolation_tax.untuned", samples, "s", part())


BENCHMARK = Benchmark("isolation_tax", "warm generation in the sandbox against the same pipeline in-process", run)
