"""From floats to the bytes in a slot: diffusers' own rule, in order, with credit, and never a broken value."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from tests.workers.inside import in_torch_process
from wan_compat.protocol.errors import GenerationFailed, ProtocolViolation, UnusableFrames, WanCompatError
from wan_compat.protocol.ring import SLOTS, RingLayout, pack_doorbell, pack_media, unpack_doorbell
from wan_compat.protocol.values import FrameSpec

SPEC = FrameSpec(height=32, width=48, num_frames=4)


class Reader:
    """The other end of a ring, in one process with it."""

    def __init__(self, spec: FrameSpec = SPEC, job: int = 1) -> None:
        from wan_compat.workers.cancellation import Cancellation
        from wan_compat.workers.frames import FrameRing

        self.layout, self.job = RingLayout(spec), job
        self.memory = os.memfd_create("ring")
        os.ftruncate(self.memory, self.layout.ring_bytes)
        self.doorbell, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.doorbell.settimeout(10)
        self.cancellation = Cancellation()
        self.ring = FrameRing(os.dup(self.memory), theirs.detach(), self.cancellation)
        self.writer = self.ring.writer(job, spec)

    def frame(self, index: int) -> Any:
        import numpy as np

        assert unpack_doorbell(self.doorbell.recv(64)) == (self.job, index)
        data = os.pread(self.memory, self.layout.frame.frame_bytes, self.layout.offset(index))
        return np.frombuffer(data, np.uint8).reshape(self.layout.frame.height, self.layout.frame.width, 3)


def random_clip(frames: int, dtype: Any, spec: FrameSpec = SPEC) -> Any:
    import torch

    clip = torch.randn(3, frames, spec.height, spec.width, generator=torch.Generator().manual_seed(5))
    return clip.clamp(-1, 1).to(dtype)


def as_plain_script(clip: Any) -> Any:
    import numpy as np
    from diffusers.video_processor import VideoProcessor

    frames = VideoProcessor().postprocess_video(clip[None], output_type="np")[0]
    return np.stack([(frame * 255).astype(np.uint8) for frame in frames])


def raises(kind: type[WanCompatError], act: Any) -> WanCompatError:
    try:
        act()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def check_bytes(dtype: str) -> None:
    import numpy as np
    import torch

    reader, clip = Reader(), random_clip(4, getattr(torch, dtype))
    reader.writer.publish(clip.clone())
    reader.writer.finish()
    assert np.array_equal(np.stack([reader.frame(index) for index in range(4)]), as_plain_script(clip))


@in_torch_process
def test_float32_pixels_are_those_of_export_to_video() -> None:
    check_bytes("float32")


@in_torch_process
def test_bfloat16_pixels_are_those_of_export_to_video() -> None:
    check_bytes("bfloat16")


@in_torch_process
def test_every_float_between_two_pixel_values_truncates_as_diffusers_does() -> None:
    """All sixteen million values of one binade are too many; every neighbour of a boundary is not."""
    import numpy as np
    import torch

    edges = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).float()
    near = [edges]
    for _ in range(30):
        near.append(torch.nextafter(near[-1], torch.tensor(2.0)))
    near += [edges]
    for _ in range(30):
        near.append(torch.nextafter(near[-1], torch.tensor(-2.0)))
    values = torch.cat(near).clamp(-1, 1)
    spec = FrameSpec(height=16, width=-(-values.numel() // 48), num_frames=1)
    clip = torch.zeros(spec.frame_bytes)
    clip[: values.numel()] = values
    clip = clip.view(3, 1, spec.height, spec.width)
    reader = Reader(spec)
    reader.writer.publish(clip.clone())
    assert np.array_equal(reader.frame(0), as_plain_script(clip)[0])


@in_torch_process
def test_values_outside_are_clamped_not_wrapped() -> None:
    import torch

    reader = Reader()
    clip = torch.zeros(3, 1, 32, 48)
    clip[:, :, :16], clip[:, :, 16:] = -7.0, 7.0
    reader.writer.publish(clip)
    frame = reader.frame(0)
    assert frame[:16].max() == 0 and frame[16:].min() == 255


@in_torch_process
def test_one_broken_value_keeps_the_whole_run_from_being_published() -> None:
    import torch

    for value in (float("nan"), float("inf"), -float("inf")):
        reader, clip = Reader(), random_clip(4, torch.float32)
        clip[1, 3, 20, 20] = value
        raises(UnusableFrames, lambda reader=reader, clip=clip: reader.writer.publish(clip))
        assert reader.writer.published == 0


@in_torch_process
def test_another_shape_than_agreed_is_refused() -> None:
    import torch

    reader = Reader()
    assert "16x16" in str(raises(GenerationFailed, lambda: reader.writer.publish(torch.zeros(3, 1, 16, 16))))
    raises(GenerationFailed, lambda: reader.writer.publish(torch.zeros(4, 1, 32, 48)))


@in_torch_process
def test_more_frames_than_agreed_are_refused_and_fewer_are_noticed() -> None:
    import torch

    reader = Reader()
    raises(GenerationFailed, lambda: reader.writer.publish(random_clip(5, torch.float32)))
    reader.writer.publish(random_clip(3, torch.float32))
    assert "3 frames instead of 4" in str(raises(UnusableFrames, reader.writer.finish))


@in_torch_process
def test_the_writer_waits_when_all_slots_are_unread() -> None:
    import torch

    spec = FrameSpec(height=32, width=48, num_frames=SLOTS + 2)
    reader = Reader(spec)
    clip = random_clip(SLOTS + 2, torch.float32, spec)
    thread = threading.Thread(target=reader.writer.publish, args=(clip,))
    thread.start()
    frames = [reader.frame(index) for index in range(SLOTS)]
    thread.join(0.2)
    assert thread.is_alive() and reader.writer.published == SLOTS
    reader.doorbell.send(pack_doorbell(9, 1))  # of another job: no credit
    thread.join(0.2)
    assert thread.is_alive()
    for consumed in (1, 2):
        reader.doorbell.send(pack_doorbell(1, consumed))
        frames.append(reader.frame(SLOTS - 1 + consumed))
    thread.join(5)
    assert not thread.is_alive()
    assert all((frames[i] == as_plain_script(clip)[i]).all() for i in range(SLOTS + 2))


@in_torch_process
def test_credit_for_frames_that_were_never_published_is_a_violation() -> None:
    import torch

    spec = FrameSpec(height=32, width=48, num_frames=SLOTS + 1)
    reader = Reader(spec)
    reader.doorbell.send(pack_doorbell(1, SLOTS + 1))
    raises(ProtocolViolation, lambda: reader.writer.publish(random_clip(SLOTS + 1, torch.float32, spec)))


@in_torch_process
def test_a_ring_that_is_too_small_is_refused() -> None:
    import torch

    reader = Reader()
    big = FrameSpec(height=64, width=64, num_frames=1)
    writer = reader.ring.writer(2, big)
    raises(GenerationFailed, lambda: writer.publish(torch.zeros(3, 1, 64, 64)))


@in_torch_process
def test_files_of_a_job_are_taken_exactly_and_others_are_closed() -> None:
    reader = Reader()
    files = [os.memfd_create("file") for _ in range(3)]
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(reader.doorbell, [pack_media(1, 2)], files[:2])  # of a job that was never begun
    reader.doorbell.send(pack_doorbell(1, 4))  # a credit that nobody waited for
    socket.send_fds(reader.doorbell, [pack_media(2, 3)], files)
    taken = reader.ring.receive_media(2, 3)
    assert len(taken) == 3 and len(os.listdir("/proc/self/fd")) == before + 3
    for descriptor in taken:
        os.close(descriptor)
    for packet, sent, expected in (
        (pack_media(3, 2), 1, 2),
        (pack_media(3, 1), 2, 1),
        (pack_media(9, 1), 1, 1),
        (b"nonsense", 1, 1),
    ):
        socket.send_fds(reader.doorbell, [packet], files[:sent])
        raises(ProtocolViolation, lambda expected=expected: reader.ring.receive_media(3, expected))
        assert len(os.listdir("/proc/self/fd")) == before
    assert reader.ring.receive_media(4, 0) == ()


@in_torch_process
def test_frames_of_several_videos_are_counted_on_and_each_video_is_whole_before_the_next() -> None:
    import torch

    reader = Reader()
    writer = reader.ring.writer(1, SPEC, videos=2)
    assert "0 frames instead of 4" in raises(UnusableFrames, writer.next_video).message
    writer.publish(random_clip(3, torch.float32))
    assert (
        "more than the agreed 4 frames"
        in raises(GenerationFailed, lambda: writer.publish(random_clip(2, torch.float32))).message
    )
    writer.publish(random_clip(1, torch.float32))
    assert "1 videos instead of 2" in raises(UnusableFrames, writer.finish).message
    writer.next_video()
    for index in range(4):
        reader.frame(index)
    reader.doorbell.send(pack_doorbell(1, 4))
    writer.publish(random_clip(4, torch.float32))
    assert reader.frame(4).shape == (32, 48, 3)
    assert "more than the agreed 2 videos" in raises(GenerationFailed, writer.next_video).message
    writer.finish()


@in_torch_process
def test_a_video_of_one_single_value_is_refused_before_a_frame_of_the_next() -> None:
    import torch

    reader = Reader()
    writer = reader.ring.writer(1, SPEC, videos=2)
    writer.publish(torch.zeros(3, 4, SPEC.height, SPEC.width))
    assert "one and the same value" in raises(UnusableFrames, writer.next_video).message
