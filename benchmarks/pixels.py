"""From decoded floats to uint8 pixels where the supervisor can read them: 33 frames of 1280x720.

    ours        the worker's FrameWriter, four frames at a time, as a streaming decode gives them: range and NaN check,
                clamp, conversion into a slot of the ring, doorbell, credit; the reader gives slots back at once
    reference   what diffusers does: VideoProcessor to a numpy video, then for each frame `(frame * 255).astype(uint8)`
                in the byte order of pixels

One process does both in turn, with one thread, since most of the reference's time is numpy's, which has no more. The
reference's clip stays in its own process, ours has crossed to another one. Some values lie outside [-1, 1], as a
decoder's do.
"""

from __future__ import annotations

import select
from collections.abc import Iterator

from benchmarks.child import Child, answer
from benchmarks.harness import Benchmark, Row, alternate, faster
from wan_compat.protocol.values import FrameSpec
from wan_compat.supervisor.frame_ring import FrameRing

FRAMES = FrameSpec(height=720, width=1280, num_frames=33)
PIECE = 4


def run(_shared: object) -> Iterator[Row]:
    ring = FrameRing()
    try:
        ring_fd, doorbell_fd = ring.worker_descriptors
        with Child("benchmarks.pixels", str(ring_fd), str(doorbell_fd), pass_fds=(ring_fd, doorbell_fd)) as child:
            ring.close_worker_ends()
            jobs = iter(range(1, 1000))
            samples = alternate(
                lambda: _receive(ring, child, next(jobs)), lambda: float(child.ask(do="numpy")) * 1000, warm_up=1
            )
    finally:
        ring.close()
    yield Row("pixels", samples, "ms", faster(2))


def _receive(ring: FrameRing, child: Child, job: int) -> float:
    ring.begin(job, FRAMES)
    poll = select.poll()
    poll.register(ring.fileno(), select.POLLIN)
    child.send(do="publish", job=job)
    while not ring.complete:
        if not poll.poll(60_000) or ring.fileno() < 0:
            raise RuntimeError("the writer is gone")
        while ring.collect():
            ring.release()
    ring.end()
    return float(child.receive()) * 1000


def _be_child(ring_fd: int, doorbell_fd: int) -> None:
    import numpy as np
    import torch
    from diffusers.video_processor import VideoProcessor

    from benchmarks.harness import timed
    from wan_compat.workers.cancellation import Cancellation
    from wan_compat.workers.frames import FrameRing as WorkerRing

    shape = (1, 3, FRAMES.num_frames, FRAMES.height, FRAMES.width)
    torch.set_num_threads(1)
    video = torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul_(2.1).sub_(1.05)
    clamped = video.clamp(-1, 1)  # diffusers' decode has clamped
    pieces = [piece.contiguous() for piece in video[0].split(PIECE, dim=1)]  # as a decoder makes them
    processor = VideoProcessor(vae_scale_factor=8)
    ring = WorkerRing(ring_fd, doorbell_fd, Cancellation())

    def publish(job: int) -> float:
        writer = ring.writer(job, FRAMES)

        def all_pieces() -> None:
            for piece in pieces:
                writer.publish(piece)
            writer.finish()

        return timed(all_pieces)

    def numpy() -> float:
        def convert() -> object:
            frames = processor.postprocess_video(clamped, output_type="np")[0]
            # The last is imageio's, which export_to_video writes with: diffusers' frames lie planar in memory.
            return [np.ascontiguousarray((frame * 255).astype(np.uint8)) for frame in frames]

        return timed(convert)

    answer(publish=publish, numpy=numpy)


BENCHMARK = Benchmark("pixels", "float to uint8 into the ring against diffusers' way through numpy", run)

if __name__ == "__main__":
    import sys

    _be_child(int(sys.argv[1]), int(sys.argv[2]))
