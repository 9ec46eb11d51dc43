"""The worker's end of the frame ring (drawn in protocol/ring.py): from decoded floats straight into a slot.

The rule for a pixel is that of diffusers' `export_to_video` on its default output, byte for byte: the decoder gives
x in [-1, 1], diffusers computes `(x * 0.5 + 0.5) * 255` and truncates. Halving is exact in binary, so this equals
`(x + 1) * 127.5` truncated: both round the same two real numbers. The addition happens in the VAE's own type, as
diffusers does it; the product in fp32. (Its PIL output rounds instead, and differs by one in a third of the bytes.)
"""

from __future__ import annotations

import array
import contextlib
import math
import mmap
import os
import select
import socket

import torch

from wan_compat.protocol.errors import GenerationFailed, ProtocolViolation, UnusableFrames
from wan_compat.protocol.media import MAX_MEDIA
from wan_compat.protocol.ring import (
    DOORBELL_BYTES,
    MEDIA_BYTES,
    SLOTS,
    RingLayout,
    pack_doorbell,
    unpack_doorbell,
    unpack_media,
)
from wan_compat.protocol.values import FrameSpec
from wan_compat.workers.cancellation import Cancellation
from wan_compat.workers.staging import Stage, stage_for

# By how much a picture may leave [0, 1]: what resampling and half precision do, and no other range of values.
PICTURE_TOLERANCE = 0.02
MEDIA_WAIT_MS = 10_000  # they were sent before the message that asks for them


class FrameRing:
    """The mapped memory and the doorbell of one worker. Takes both descriptors over."""

    def __init__(self, ring_fd: int, doorbell_fd: int, cancellation: Cancellation) -> None:
        self._memory = mmap.mmap(ring_fd, os.fstat(ring_fd).st_size)
        os.close(ring_fd)
        self._doorbell = socket.socket(fileno=doorbell_fd)
        self._doorbell.setblocking(True)
        self._cancellation = cancellation
        self._wait = select.poll()
        self._wait.register(self._doorbell, select.POLLIN)
        self._wait.register(cancellation.fileno(), select.POLLIN)

    def writer(self, job: int, frames: FrameSpec, videos: int = 1) -> FrameWriter:
        """Begin the frames of one job, of `videos` videos."""
        self.forget_credits()
        return FrameWriter(self, job, RingLayout(frames), videos)

    def doorbell_fileno(self) -> int:
        return self._doorbell.fileno()

    def slot(self, layout: RingLayout, frame_index: int) -> torch.Tensor:
        """Return the slot of a frame as a tensor (height, width, 3) uint8 that lies in the ring."""
        if layout.ring_bytes > len(self._memory):
            raise GenerationFailed(f"a ring of {len(self._memory)} bytes is too small for {layout.ring_bytes}")
        frame = layout.frame
        flat = torch.frombuffer(
            self._memory, dtype=torch.uint8, count=frame.frame_bytes, offset=layout.offset(frame_index)
        )
        return flat.view(frame.height, frame.width, 3)

    def forget_credits(self) -> None:
        """Read what is left of earlier jobs. Nobody waits for the credits of a job's last frames; over many jobs of few
        frames they would fill the socket, and the supervisor could not give another one."""
        with contextlib.suppress(BlockingIOError):
            while self._doorbell.recv(DOORBELL_BYTES + 1, socket.MSG_DONTWAIT):
                pass

    def receive_media(self, job: int, count: int) -> tuple[int, ...]:
        """Take the descriptors of a job's files, which were sent before its Generate. The caller closes them.

        Raises:
            ProtocolViolation: Another number came than was said, or none.
            JobCancelled: While waiting.
        """
        while count:
            ready = {descriptor for descriptor, _ in self._wait.poll(MEDIA_WAIT_MS)}
            self._cancellation.check()
            if self._doorbell.fileno() not in ready:
                raise ProtocolViolation(f"the files of job {job} did not come")
            space = socket.CMSG_SPACE(MAX_MEDIA * array.array("i").itemsize)
            data, ancillary, flags, _ = self._doorbell.recvmsg(MEDIA_BYTES + 1, space, socket.MSG_CMSG_CLOEXEC)
            descriptors = _descriptors(ancillary)
            if len(data) == DOORBELL_BYTES and not descriptors:
                continue  # a credit that an earlier job did not wait for
            try:
                given_job, given_count = unpack_media(data)
                if (given_job, given_count, len(descriptors)) == (job, count, count) and not flags & socket.MSG_CTRUNC:
                    taken, descriptors = descriptors, ()
                    return taken
                if given_job >= job:
                    raise ProtocolViolation(f"{len(descriptors)} of {count} files came for job {job}")
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        return ()

    def announce(self, job: int, frame_index: int) -> None:
        self._doorbell.send(pack_doorbell(job, frame_index))

    def wait_for_credit(self, job: int) -> int:
        """Wait for the next CREDIT of `job`; return its number of consumed frames. Raises JobCancelled."""
        while True:
            ready = {descriptor for descriptor, _ in self._wait.poll()}
            self._cancellation.check()
            if self._doorbell.fileno() not in ready:
                continue
            data = self._doorbell.recv(DOORBELL_BYTES + 1)
            if not data:
                raise ProtocolViolation("the supervisor closed the doorbell")
            credited_job, consumed = unpack_doorbell(data)
            # A job that was cancelled with frames on their way is credited late; that is not this job's credit.
            if credited_job == job:
                return consumed


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    found = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return tuple(found)


class FrameWriter:
    """Publishes the frames of one job, in order, each exactly once; of several videos, one video after the other.

    Attributes:
        videos: How many there will be.
        published: Frames so far, of all of them. From a GPU, the last ones may still be on their way (staging.py).
    """

    def __init__(self, ring: FrameRing, job: int, layout: RingLayout, videos: int = 1) -> None:
        self._ring, self._job, self._layout = ring, job, layout
        self.videos = videos
        self.published = 0
        self._finished = 0  # videos before the one that is written
        self._announced = 0
        self._consumed = 0
        self._stage: Stage | None = None
        self._darkest, self._brightest = 255.0, 0.0  # of all values of this video so far, as they are published

    def publish(self, pixels: torch.Tensor) -> None:
        """Convert and publish a run of frames.

        Args:
            pixels: (3, frames, height, width), floating point, nominally in [-1, 1]; clamped here.

        Raises:
            UnusableFrames: NaN or infinite values, before any frame of this run is published.
            GenerationFailed: Another shape, or more frames, than agreed at Generate.
            JobCancelled: While waiting for credit.
        """
        self._announce_all()  # of the piece before; this one is being decoded meanwhile
        frame = self._layout.frame
        channels, count, height, width = pixels.shape
        if (channels, height, width) != (3, frame.height, frame.width):
            raise GenerationFailed(
                f"the model decoded frames of {width}x{height} with {channels} channels"
                f" instead of {frame.width}x{frame.height} RGB"
            )
        if count > self._room:
            raise GenerationFailed(f"the model decoded more than the agreed {frame.num_frames} frames")
        lowest, highest = check_finite(pixels)
        self._note_range((lowest + 1.0) * 127.5, (highest + 1.0) * 127.5)
        for index in range(count):
            image = pixels[:, index]
            if lowest < -1.0 or highest > 1.0:
                image = image.clamp(-1.0, 1.0)
            self._publish_frame(image.add(1.0).float().mul_(127.5))

    def publish_picture(self, picture: torch.Tensor) -> None:
        """Convert and publish one finished picture, as a pipeline returns it.

        Args:
            picture: (3, height, width); uint8, or floating point in [0, 1], truncated as above.

        Raises:
            UnusableFrames: NaN, infinite values, or values that are far from [0, 1].
            GenerationFailed: Another shape, or more frames, than agreed at Generate.
            JobCancelled: While waiting for credit.
        """
        frame = self._layout.frame
        if tuple(picture.shape) != (3, frame.height, frame.width):
            raise GenerationFailed(
                f"the pipeline returned pictures of shape {tuple(picture.shape)}"
                f" instead of (3, {frame.height}, {frame.width})"
            )
        if self._room < 1:
            raise GenerationFailed(f"the pipeline returned more than the agreed {frame.num_frames} frames")
        if picture.dtype == torch.uint8:
            self._note_range(*(float(bound) for bound in torch.aminmax(picture)))
            self._publish_frame(picture)
            return
        lowest, highest = check_finite(picture)
        if lowest < -PICTURE_TOLERANCE or highest > 1 + PICTURE_TOLERANCE:
            raise UnusableFrames(
                f"the pipeline returned pictures with values from {lowest:.3g} to {highest:.3g}, instead of 0 to 1"
            )
        self._note_range(lowest * 255.0, highest * 255.0)
        self._publish_frame(picture.float().clamp(0.0, 1.0).mul(255.0))

    def finish(self, *, may_be_constant: bool = False) -> None:
        """Check that every agreed frame was published, and that there is something in them. Raises UnusableFrames.

        Args:
            may_be_constant: A function of the repository made the frames, and may well have meant a single colour.
        """
        self._check_video(may_be_constant)
        if self._finished + 1 != self.videos:
            raise UnusableFrames(f"the model decoded {self._finished + 1} videos instead of {self.videos}")

    def next_video(self) -> None:
        """Check the video that was written as `finish` does, before any frame of the next one; go on to that.

        The supervisor takes the first frame of the next video for the word that this one is good.
        """
        self._check_video(may_be_constant=False)
        if self._finished + 1 >= self.videos:
            raise GenerationFailed(f"the model decoded more than the agreed {self.videos} videos")
        self._finished += 1
        self._darkest, self._brightest = 255.0, 0.0

    @property
    def _room(self) -> int:
        """How many frames of this video are still to come."""
        return (self._finished + 1) * self._layout.frame.num_frames - self.published

    def _check_video(self, may_be_constant: bool) -> None:
        self._announce_all()
        frames = self._layout.frame.num_frames
        if self._room:
            raise UnusableFrames(f"the model decoded {frames - self._room} frames instead of {frames}")
        if not may_be_constant and int(self._darkest) == int(self._brightest):
            # No prompt makes a video without a single differing value: it is what overflow and broken kernels make.
            raise UnusableFrames(
                f"all {frames} frames are one and the same value ({int(self._darkest)} of 255)",
                fixes=("try another seed", "check the model's files: broken or wrongly converted weights do this"),
            )

    def _note_range(self, lowest: float, highest: float) -> None:
        self._darkest = min(self._darkest, max(0.0, min(255.0, lowest)))
        self._brightest = max(self._brightest, max(0.0, min(255.0, highest)))

    def _publish_frame(self, scaled: torch.Tensor) -> None:
        stage = self._stage_of(scaled.device)
        if stage is not None:
            if stage.is_full:
                self._announce_oldest(stage)
            stage.put(scaled)
            self.published += 1
            return
        slot = self._free_slot()
        # Float to uint8 truncates. One channel at a time: a permuted copy of all three takes two to three times longer.
        for channel in range(3):
            slot[..., channel].copy_(scaled[channel])
        self._announce()
        self.published += 1

    def _stage_of(self, device: torch.device) -> Stage | None:
        if self._stage is None:
            frame = self._layout.frame
            self._stage = stage_for(device, (frame.height, frame.width, 3))
        return self._stage

    def _announce_all(self) -> None:
        """Bring what is on its way from a GPU into the ring."""
        while self._stage is not None and len(self._stage):
            self._announce_oldest(self._stage)

    def _announce_oldest(self, stage: Stage) -> None:
        stage.take_into(self._free_slot())
        self._announce()

    def _free_slot(self) -> torch.Tensor:
        while self._announced - self._consumed >= SLOTS:
            consumed = self._ring.wait_for_credit(self._job)
            if not self._consumed <= consumed <= self._announced:
                raise ProtocolViolation(f"credit for {consumed} frames, of {self._announced} published")
            self._consumed = consumed
        return self._ring.slot(self._layout, self._announced)

    def _announce(self) -> None:
        self._ring.announce(self._job, self._announced)
        self._announced += 1


def check_finite(pixels: torch.Tensor) -> tuple[float, float]:
    """Return the lowest and the highest value, in one pass. Raises UnusableFrames when any is NaN or infinite."""
    lowest, highest = (float(bound) for bound in torch.aminmax(pixels))
    # aminmax passes NaN on, and NaN is not finite either.
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise UnusableFrames(
            "the decoded frames contain NaN or infinite values",
            fixes=("decode in float32 instead of half precision", "try another seed or fewer steps"),
        )
    return lowest, highest
