"""What a whole generation costs more because it runs confined, in another process.

    ours        a warm worker in the sandbox: from submit to all frames in the supervisor's memory
    reference   the same pipeline in the plain script's own process: from the call to all frames as uint8

A model large enough to keep two cores busy for seconds (20 million parameters, 102 MB), same seed, same threads, conv3d
through oneDNN on both sides. Frames must be equal, or the run does not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from benchmarks.arms import Shared
from benchmarks.harness import Benchmark, Row, alternate, part

SIZE: dict[str, Any] = {"height": 128, "width": 224, "num_frames": 33, "num_inference_steps": 6}


def run(shared: Shared) -> Iterator[Row]:
    request = shared.request("t2v_mid", **SIZE)
    shared.plain_load("t2v_mid")
    made = {}

    def ours() -> float:
        job = shared.job("t2v_mid", **SIZE)
        assert job.result.frames is not None
        made["ours"] = hashlib.sha256(job.result.frames.frames).hexdigest()
        return job.seconds

    def reference() -> float:
        moments = shared.plain_generate(request)
        made["reference"] = moments["sha256"]
        if made["ours"] != made["reference"]:
            raise AssertionError("the frames differ")
        return float(moments["frames"])

    yield Row("isolation_tax", alternate(ours, reference, 5, warm_up=1), "s", part(1.03))


BENCHMARK = Benchmark("isolation_tax", "warm generation in the sandbox against the same pipeline in-process", run)
