"""What is left to do after the last frame was decoded (long_clip.py).

    ours        from the last frame's publication until the file stands: what is still in the encoder, reading the file
                back, sync and rename
    reference   export_to_video, which can start only then

A tail is what a user waits for in vain: nothing is computed any more.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.arms import Shared
from benchmarks.harness import Benchmark, Row, Samples, part
from benchmarks.long_clip import measure


def run(shared: Shared) -> Iterator[Row]:
    turns = measure(shared)
    ours = tuple(turn.file_s - turn.last_frame_s for turn in turns)
    yield Row("encode_tail", Samples(ours, tuple(turn.script_export_s for turn in turns)), "s", part(0.3))


BENCHMARK = Benchmark("encode_tail", "after the last decoded frame, against export_to_video, 161 frames", run)
