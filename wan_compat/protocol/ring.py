"""Frame ring: the shared memory through which a worker hands frames to the supervisor, and its doorbell.

    worker:      FREE -> WRITING -> READY
    supervisor:                     READY -> READING -> FREE

One writer, one reader, `slots` slots. The supervisor creates the memory (a memfd sealed against growing, shrinking and
further seals), maps it read-only, and gives the descriptor to the worker, which maps it writable. Nothing in the ring
describes itself: there are no headers. Frame `i` of a job lies in slot `i % slots` at `slot * stride`, where the
stride follows from the FrameSpec agreed at Generate. A frame is (height, width, 3) uint8 RGB without padding. Frames of
several videos are counted on: frame `i` is of video `i // num_frames`, and each video is whole before the next begins.

The doorbell is a SEQPACKET socket pair, because ZeroMQ costs four times a socket's round trip (docs/protocol.md):

    worker -> supervisor   READY   (job, frame_index)       the frame is written
    supervisor -> worker   CREDIT  (job, frames_consumed)   total number of this job's frames that were copied out

    supervisor -> worker   MEDIA   (mark, job, count)       with `count` descriptors, just before Generate

The worker may have at most `slots` frames unconsumed; having no credit is the back-pressure. The supervisor accepts
only the next frame index of the running job. It copies the bytes out once and never interprets them, so a worker that
writes into a slot after publishing it spoils its own picture and nothing else.

Memory: the memfd is as long as the largest allowed job needs, but pages exist only once touched, so a small job uses
only the start. Pages are charged to the worker, who touches them first.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct

from wan_compat.protocol.errors import CorruptFrame, ProtocolViolation
from wan_compat.protocol.values import MAX_SIDE, FrameSpec

SLOTS = 4  # measured: 4 slots of 720p stay in the last-level cache, 8 fall out and cost 1.6x
RING_BYTES = SLOTS * (MAX_SIDE * MAX_SIDE * 3)

_DOORBELL = struct.Struct("<II")
DOORBELL_BYTES = _DOORBELL.size
_MEDIA = struct.Struct("<4sII")  # longer than the others, so that no credit is taken for it
_MEDIA_MARK = b"WCMD"
MEDIA_BYTES = _MEDIA.size


@dataclasses.dataclass(frozen=True)
class RingLayout:
    """Where the frames of one job lie. Both sides compute it from the same FrameSpec."""

    frame: FrameSpec
    slots: int = SLOTS

    @property
    def stride(self) -> int:
        """Bytes from slot to slot: a frame rounded up to whole pages."""
        return -(-self.frame.frame_bytes // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def ring_bytes(self) -> int:
        return self.stride * self.slots

    def offset(self, frame_index: int) -> int:
        return (frame_index % self.slots) * self.stride


def pack_doorbell(job: int, number: int) -> bytes:
    return _DOORBELL.pack(job, number)


def unpack_doorbell(data: bytes) -> tuple[int, int]:
    """Return (job, number). Raises CorruptFrame when the packet has any other size than DOORBELL_BYTES."""
    if len(data) != DOORBELL_BYTES:
        raise CorruptFrame(f"doorbell packet of {len(data)} bytes instead of {DOORBELL_BYTES}")
    job, number = _DOORBELL.unpack(data)
    return job, number


def pack_media(job: int, count: int) -> bytes:
    return _MEDIA.pack(_MEDIA_MARK, job, count)


def unpack_media(data: bytes) -> tuple[int, int]:
    """Return (job, count). Raises ProtocolViolation when it is no MEDIA packet."""
    if len(data) != MEDIA_BYTES or not data.startswith(_MEDIA_MARK):
        raise ProtocolViolation(f"a packet of {len(data)} bytes came where media were expected")
    _, job, count = _MEDIA.unpack(data)
    return job, count
