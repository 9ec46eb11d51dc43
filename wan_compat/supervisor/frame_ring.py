"""The supervisor's side of the frame ring: creates it sealed, maps it read-only, accepts only the next frame.

Layout and order of use: `protocol/ring.py`. Nothing that a worker writes, here or on the doorbell, can move an offset:
they all follow from the job.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
from collections.abc import Sequence

from wan_compat.protocol.errors import CorruptFrame
from wan_compat.protocol.ring import DOORBELL_BYTES, RING_BYTES, RingLayout, pack_doorbell, pack_media, unpack_doorbell
from wan_compat.protocol.values import FrameSpec

# Numbers of <linux/fcntl.h>; the fcntl module has them since Python 3.9 where the platform headers do.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class FrameRing:
    """One worker's ring. Owns the memfd, its mapping and the supervisor's end of the doorbell.

    `worker_descriptors` are for the worker; close them with `close_worker_ends` once they were sent.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("wan-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # Sparse: pages exist once touched. Sealed first of all against shrinking, because reading a page that a
            # worker truncated away would end the supervisor with SIGBUS.
            os.ftruncate(self._descriptor, RING_BYTES)
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._memory = mmap.mmap(self._descriptor, RING_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
            self._doorbell, self._worker_doorbell = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._doorbell.setblocking(False)
        self._view = memoryview(self._memory)
        self._layout: RingLayout | None = None
        self._job = 0
        self._hung_up = False
        self.expected = 0  # frames of the job that runs
        self.published = 0
        self.consumed = 0

    @property
    def worker_descriptors(self) -> tuple[int, int]:
        """(ring, doorbell), to be sent to the worker."""
        return self._descriptor, self._worker_doorbell.fileno()

    def close_worker_ends(self) -> None:
        self._worker_doorbell.close()

    def fileno(self) -> int:
        """Descriptor to poll, or -1 once the worker has closed its end (which alone is not yet a death)."""
        return -1 if self._hung_up else self._doorbell.fileno()

    def begin(self, job: int, frame: FrameSpec, videos: int = 1) -> None:
        """Start a job: frames are counted from 0 again, all slots are free. Call before sending Generate.

        Args:
            videos: How many of `frame.num_frames` each will come, one after the other.
        """
        self._layout, self._job = RingLayout(frame), job
        self.expected = frame.num_frames * videos
        self.published = self.consumed = 0

    def send_media(self, job: int, descriptors: Sequence[int]) -> None:
        """Hand the files of a job over, just before its Generate. The caller keeps, and closes, its own copies.

        Raises:
            CorruptFrame: The worker lets its doorbell overflow.
        """
        if not descriptors:
            return
        try:
            socket.send_fds(self._doorbell, [pack_media(job, len(descriptors))], list(descriptors))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the worker is gone; its pidfd says so
        except BlockingIOError as error:
            raise CorruptFrame("the worker does not read its doorbell") from error

    def end(self) -> None:
        """No frame is expected any more; a doorbell outside a job is a violation."""
        self._layout = None

    @property
    def complete(self) -> bool:
        return self._layout is not None and self.consumed == self.expected

    def collect(self) -> int:
        """Read what is waiting at the doorbell; return how many frames are ready to be read.

        Raises:
            CorruptFrame: Another job, a repeated or skipped frame, more frames than the job has or slots there are.
        """
        while True:
            try:
                # One byte more than a packet, so that a longer one shows. Descriptors that a hostile worker attaches
                # are closed by the kernel, since no room for them is given.
                packet = self._doorbell.recv(DOORBELL_BYTES + 1)
            except BlockingIOError:
                break
            except ConnectionResetError:
                packet = b""
            if not packet:
                # A zero-length packet looks the same; a worker that sends one has rung off.
                self._hung_up = True
                break
            try:
                self._publish(*unpack_doorbell(packet))
            except CorruptFrame as error:
                error.details["first_bytes"] = packet.hex()
                raise
        return self.published - self.consumed

    def _publish(self, job: int, index: int) -> None:
        if self._layout is None or job != self._job:
            raise CorruptFrame(f"frame {index} of job {job}, but that job is not running")
        if index != self.published or index >= self.expected:
            raise CorruptFrame(f"frame {self.published} expected, {index} published")
        if self.published - self.consumed >= self._layout.slots:
            raise CorruptFrame(f"frame {index} published without a free slot")
        self.published += 1

    def front(self) -> memoryview:
        """Return the oldest ready frame, read-only, valid until `release`. The worker may still change its bytes."""
        assert self._layout is not None and self.published > self.consumed
        start = self._layout.offset(self.consumed)
        return self._view[start : start + self._layout.frame.frame_bytes]

    def release(self) -> None:
        """Give the oldest ready frame's slot back to the worker."""
        self.consumed += 1
        try:
            self._doorbell.send(pack_doorbell(self._job, self.consumed))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the worker is gone; its pidfd says so
        except BlockingIOError as error:
            raise CorruptFrame("the worker does not read its credits") from error

    def close(self) -> None:
        self._doorbell.close()
        self._worker_doorbell.close()
        os.close(self._descriptor)
        self._view.release()
        # An error that rose while a frame was being moved still holds that frame's view; the mapping then goes with it.
        with contextlib.suppress(BufferError):
            self._memory.close()
