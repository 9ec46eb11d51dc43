"""From latents to a file (long_clip.py): wall time.

    ours        streaming decode, frames through the ring, x264 beside it; then reading the file back, sync and rename
    reference   vae.decode, diffusers' post-processing, export_to_video

The encoders' settings differ (ours: faster, larger files, see docs/benchmarks.md); the row is about the promise that
going through another process never costs time.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.arms import Shared
from benchmarks.harness import Benchmark, Row, Samples, part
from benchmarks.long_clip import measure


def run(shared: Shared) -> Iterator[Row]:
    turns = measure(shared)
    samples = Samples(tuple(turn.file_s for turn in turns), tuple(turn.script_file_s for turn in turns))
    yield Row("decode_encode", samples, "s", part(1.0))


BENCHMARK = Benchmark("decode_encode", "latents to file against decode + export_to_video, 161 frames", run)
