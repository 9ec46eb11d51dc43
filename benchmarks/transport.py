"""81 frames of 1280x720 (224 MB) from a worker to the supervisor.

    ours        a second process copies each frame into the slot of the worker's own FrameRing and rings; the
                supervisor's FrameRing accepts it, every byte is copied out, the slot is given back
    reference   the same bytes copied once, within one process, between two sets of four warm frames

`.touch` reads one byte of each page instead of copying out: the crossing alone, without the reader's own copy.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.child import Child, answer
from benchmarks.harness import Benchmark, Row, Samples, part
from wan_compat.protocol.ring import SLOTS
from wan_compat.protocol.values import FrameSpec
from wan_compat.supervisor.frame_ring import FrameRing

FRAMES = FrameSpec(height=720, width=1280, num_frames=81)
PAGE = 4096
TURNS = 15


def run(_shared: object) -> Iterator[Row]:
    ring = FrameRing()
    try:
        ring_fd, doorbell_fd = ring.worker_descriptors
        arguments = (str(ring_fd), str(doorbell_fd))
        with Child("benchmarks.transport", *arguments, pass_fds=(ring_fd, doorbell_fd)) as writer:
            ring.close_worker_ends()
            yield from _measure(ring, writer)
    finally:
        ring.close()


def _measure(ring: FrameRing, writer: Child) -> Iterator[Row]:
    source = [memoryview(bytes([slot]) * FRAMES.frame_bytes) for slot in range(SLOTS)]
    target = [memoryview(bytearray(FRAMES.frame_bytes)) for _ in range(SLOTS)]
    sink = memoryview(bytearray(FRAMES.frame_bytes))

    def copy_out(frame: memoryview) -> None:
        sink[:] = frame

    def touch(frame: memoryview) -> None:
        bytes(frame[::PAGE])

    def memcpy() -> float:
        started = time.perf_counter()
        for index in range(FRAMES.num_frames):
            target[index % SLOTS][:] = source[index % SLOTS]
        return (time.perf_counter() - started) * 1000

    job = 0
    copied, touched, reference = [], [], []
    for turn in range(TURNS + 2):
        job += 2
        found = receive_ms(ring, writer, job, copy_out), memcpy(), receive_ms(ring, writer, job + 1, touch)
        if turn >= 2:  # the first ones touch the pages for the first time
            copied.append(found[0])
            reference.append(found[1])
            touched.append(found[2])
    yield Row("transport", Samples(tuple(copied), tuple(reference)), "ms", part(4))
    yield Row("transport.touch", Samples(tuple(touched), tuple(reference)), "ms", part())


def receive_ms(ring: FrameRing, writer: Child, job: int, consume: Any) -> float:
    """Return the milliseconds from asking the writer to the last slot given back."""
    ring.begin(job, FRAMES)
    poll = select.poll()
    poll.register(ring.fileno(), select.POLLIN)
    started = time.perf_counter()
    writer.send(do="write", job=job)
    while not ring.complete:
        if not poll.poll(10_000):
            raise TimeoutError("the writer is silent")
        if ring.fileno() < 0:
            raise RuntimeError("the writer is gone")
        while ring.collect():
            with ring.front() as frame:
                consume(frame)
            ring.release()
    milliseconds = (time.perf_counter() - started) * 1000
    ring.end()
    writer.receive()
    return milliseconds


def _be_writer(ring_fd: int, doorbell_fd: int) -> None:
    import torch

    from wan_compat.protocol.ring import RingLayout
    from wan_compat.workers.cancellation import Cancellation
    from wan_compat.workers.frames import FrameRing as WorkerRing

    torch.set_num_threads(1)
    ring = WorkerRing(ring_fd, doorbell_fd, Cancellation())
    layout = RingLayout(FRAMES)
    source = [torch.full((FRAMES.height, FRAMES.width, 3), slot, dtype=torch.uint8) for slot in range(SLOTS)]

    def write(job: int) -> None:
        consumed = 0
        for index in range(FRAMES.num_frames):
            while index - consumed >= SLOTS:
                consumed = ring.wait_for_credit(job)
            ring.slot(layout, index).copy_(source[index % SLOTS])
            ring.announce(job, index)
        while consumed < FRAMES.num_frames:
            consumed = ring.wait_for_credit(job)

    answer(write=write)


BENCHMARK = Benchmark("transport", "224 MB of frames through the ring against one warm memcpy", run)

if __name__ == "__main__":
    import sys

    _be_writer(int(sys.argv[1]), int(sys.argv[2]))
