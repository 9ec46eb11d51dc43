"""Frames on their way from a GPU: the same bytes, in order, with the next piece begun before the last one is waited for.

No GPU is needed: the buffers are ordinary memory, and events that are written down stand in for the driver's.
"""

from __future__ import annotations

from typing import Any

from tests.workers.inside import in_torch_process
from tests.workers.test_frames import Reader, as_plain_script, raises
from wan_compat.protocol.errors import JobCancelled, UnusableFrames
from wan_compat.protocol.ring import pack_doorbell
from wan_compat.protocol.values import FrameSpec

SPEC = FrameSpec(height=32, width=48, num_frames=9)


class Event:
    """A copy's end, noted in `log` when it is waited for."""

    log: list[str] = []  # noqa: RUF012 - of one test's process
    made = 0

    def __init__(self) -> None:
        self._name = f"copy {Event.made}"
        Event.made += 1

    def record(self) -> None:
        Event.log.append(f"{self._name} queued")

    def synchronize(self) -> None:
        Event.log.append(f"{self._name} waited for")


def staged() -> Reader:
    from wan_compat.workers import frames, staging

    Event.log, Event.made = [], 0
    frames.stage_for = lambda device, shape: staging.Stage(shape, pin=False, event=Event)  # type: ignore[assignment]
    return Reader(SPEC)


def read_all(reader: Reader, first: int, last: int, into: list[Any]) -> None:
    for index in range(first, last):
        into.append(reader.frame(index).copy())
        reader.doorbell.send(pack_doorbell(1, index + 1))


def clip(frames: int) -> Any:
    import torch

    return torch.randn(3, frames, 32, 48, generator=torch.Generator().manual_seed(5)).mul(1.5).to(torch.bfloat16)


@in_torch_process
def test_bytes_are_those_of_frames_that_were_in_memory_and_a_piece_goes_out_with_the_next_one() -> None:
    import numpy as np

    reader, pixels = staged(), clip(9)
    frames: list[Any] = []
    reader.writer.publish(pixels[:, :1])
    assert Event.log == ["copy 0 queued"] and reader.writer.published == 1
    reader.writer.publish(pixels[:, 1:5])  # the first is announced before its own are queued
    assert Event.log[:2] == ["copy 0 queued", "copy 0 waited for"]
    assert Event.log[2:] == [f"copy {index} queued" for index in range(1, 5)]
    read_all(reader, 0, 1, frames)
    reader.writer.publish(pixels[:, 5:])
    read_all(reader, 1, 5, frames)
    reader.writer.finish()
    read_all(reader, 5, 9, frames)
    assert np.array_equal(np.stack(frames), as_plain_script(pixels.clamp(-1, 1)))


@in_torch_process
def test_a_piece_of_more_frames_than_buffers_goes_out_while_it_is_taken() -> None:
    import threading

    import numpy as np

    reader, pixels = staged(), clip(9)
    frames: list[Any] = []
    thread = threading.Thread(target=read_all, args=(reader, 0, 9, frames))
    thread.start()
    reader.writer.publish(pixels)
    reader.writer.finish()
    thread.join(10)
    assert np.array_equal(np.stack(frames), as_plain_script(pixels.clamp(-1, 1)))
    assert Event.log.index("copy 0 waited for") < Event.log.index("copy 4 queued")


@in_torch_process
def test_broken_values_and_a_cancel_leave_what_is_on_its_way_unread() -> None:
    reader, pixels = staged(), clip(9)
    reader.writer.publish(pixels[:, :1])
    pixels[0, 3, 0, 0] = float("nan")
    raises(UnusableFrames, lambda: reader.writer.publish(pixels[:, 1:5]))
    assert not any("copy 1" in line for line in Event.log)

    reader = staged()
    reader.writer.publish(clip(4))
    reader.writer.publish(clip(4))  # the ring is full of the first four, and nobody reads
    reader.cancellation.request()
    raises(JobCancelled, lambda: reader.writer.publish(clip(1)))


@in_torch_process
def test_frames_in_memory_have_no_stage_and_buffers_that_cannot_be_locked_are_ordinary_ones() -> None:
    import torch

    from wan_compat.workers import staging

    assert staging.stage_for(torch.device("cpu"), (2, 2, 3)) is None
    stage = staging.Stage((2, 2, 3), event=Event)  # torch without CUDA locks no page, and says so by a RuntimeError
    assert not stage.pinned and not stage.is_full
