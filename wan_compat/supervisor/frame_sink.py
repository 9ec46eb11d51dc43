"""Where the frames of a job go: the protocol of it, and the simplest one, memory."""

from __future__ import annotations

from typing import Protocol

from wan_compat.policies.requests import ResolvedRequest
from wan_compat.protocol.results import ProcessedFrames


class FrameSink(Protocol):
    """Takes the frames of a job in order."""

    def write_some(self, view: memoryview) -> int:
        """Take as many bytes as possible without blocking; 0 when full."""

    def fileno(self) -> int:
        """Descriptor to poll for writing, -1 when there is nothing to wait for."""

    def raise_if_ended(self) -> None:
        """Raise the error that ended the sink before its time."""

    def idle(self) -> None:
        """Learn that no frame is waiting, so that the time until the next one is not the sink's."""


class FramesInMemory:
    """Collects frames into one buffer, for `output=None`."""

    def __init__(self, size: int) -> None:
        self._buffer = bytearray(size)
        self._filled = 0

    def write_some(self, view: memoryview) -> int:
        self._buffer[self._filled : self._filled + len(view)] = view
        self._filled += len(view)
        return len(view)

    def fileno(self) -> int:
        return -1

    def raise_if_ended(self) -> None:
        """Memory does not end."""

    def idle(self) -> None:
        """Memory is never late."""

    def frames(self, resolved: ResolvedRequest) -> ProcessedFrames:
        import numpy as np

        spec = resolved.params.frames
        pixels = np.frombuffer(self._buffer, dtype=np.uint8).reshape(spec.num_frames, spec.height, spec.width, 3)
        return ProcessedFrames(frames=pixels, fps=resolved.fps, duration=spec.num_frames / resolved.fps)
