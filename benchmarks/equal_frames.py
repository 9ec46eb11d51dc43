"""Do the frames equal a plain script's, byte for byte?

    ours        one job each of a model with one expert, with two experts, and in 5B layout
    reference   the plain script with the same seed, its frames as export_to_video makes them

Both send the VAE's conv3d to oneDNN; with torch's own choice on one side, values would differ by 3e-6.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.arms import Shared
from benchmarks.harness import Benchmark, Row, Samples, at_most

KINDS = ("t2v", "a14b", "ti2v")


def run(shared: Shared) -> Iterator[Row]:
    import numpy as np

    different = compared = 0
    for kind in KINDS:
        job = shared.job(kind, num_frames=17)
        raw = shared.folder / f"{kind}.rgb"
        shared.plain_load(kind)
        shared.plain_generate(job.request, raw=str(raw))
        assert job.result.frames is not None
        ours, reference = job.result.frames.frames.reshape(-1), np.fromfile(raw, np.uint8)
        if ours.shape != reference.shape:
            raise AssertionError(f"{kind}: {ours.size} bytes against {reference.size}")
        different += int((ours != reference).sum())
        compared += ours.size
    note = f"{compared} bytes compared: {', '.join(KINDS)}"
    yield Row("equal_frames", Samples((float(different),)), "bytes", at_most(0), note)


BENCHMARK = Benchmark("equal_frames", "bytes in which frames differ from a plain script's; absolute", run)
