"""How soon the first frame of a long clip (long_clip.py) is on its way into the video.

    ours        from the end of denoising until the first frame is wholly in the encoder's pipe
    reference   the whole decode (`vae.decode`) of the plain script, before which it has no frame at all

The encoder looks ahead some forty frames before it writes a packet; that time is not in this row.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.arms import Shared
from benchmarks.harness import Benchmark, Row, Samples, part
from benchmarks.long_clip import measure


def run(shared: Shared) -> Iterator[Row]:
    turns = measure(shared)
    samples = Samples(tuple(turn.first_frame_s for turn in turns), tuple(turn.script_decode_s for turn in turns))
    yield Row("first_frame", samples, "s", part(0.05))


BENCHMARK = Benchmark("first_frame", "first frame in the encoder against a whole decode, 161 frames", run)
