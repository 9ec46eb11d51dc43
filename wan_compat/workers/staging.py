"""Between a GPU and the ring: page-locked buffers, so that a frame crosses the bus while the next piece is decoded.

    GPU    convert to bytes -> copy k --------> next piece is decoded ...
    bus                        copy k ======>
    here                       (decoding goes on)     wait for copy k -> memcpy into the slot -> announce

A copy to ordinary memory makes the caller wait, and the driver copy twice; one to page-locked memory is done by the
GPU's own engine while this thread launches what comes next (CUDA C++ Best Practices Guide, 10.1). Three bytes a pixel
cross instead of twelve. The ring itself is not page-locked: it belongs to the supervisor, and a driver that holds pages
of it would keep them after it was unmapped.

Copies are queued on the stream that decodes, behind the frame that they are of, so that no other order is needed than
the stream's. Not tried on a GPU yet; what is tried is order, bytes and waiting, with events that stand in.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch

from wan_compat.protocol.ring import SLOTS

# As many as a VAE gives at once after its first frame, and as the ring has slots.
BUFFERS = SLOTS


class Stage:
    """Frames on their way, oldest first.

    Args:
        shape: (height, width, 3) of a frame.
        pin: Page-lock the buffers. Where the driver refuses that, copies wait instead.
        event: Makes what is recorded behind a copy and can be waited for.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, pin: bool = True, event: Callable[[], Any] | None = None
    ) -> None:
        self._event = event or torch.cuda.Event
        self._free: collections.deque[torch.Tensor] = collections.deque()
        self._on_the_way: collections.deque[tuple[torch.Tensor, Any]] = collections.deque()
        self.pinned = pin
        for _ in range(BUFFERS):
            self._free.append(self._buffer(shape))

    def __len__(self) -> int:
        return len(self._on_the_way)

    @property
    def is_full(self) -> bool:
        return not self._free

    def put(self, scaled: torch.Tensor) -> None:
        """Queue a frame's conversion and copy. Not when `is_full`.

        Args:
            scaled: (3, height, width) on the device, 0 to 255; floats are truncated.
        """
        buffer, event = self._free.popleft(), self._event()
        buffer.copy_(scaled.to(torch.uint8).permute(1, 2, 0).contiguous(), non_blocking=self.pinned)
        event.record()
        self._on_the_way.append((buffer, event))

    def take_into(self, slot: torch.Tensor) -> None:
        """Wait for the oldest frame and copy it to `slot`, (height, width, 3) uint8."""
        buffer, event = self._on_the_way.popleft()
        event.synchronize()
        slot.copy_(buffer)
        self._free.append(buffer)

    def _buffer(self, shape: tuple[int, int, int]) -> torch.Tensor:
        if self.pinned:
            try:
                return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
            except RuntimeError:  # no room that could be locked; slower is better than not at all
                self.pinned = False
        return torch.empty(shape, dtype=torch.uint8)


def stage_for(device: torch.device, shape: tuple[int, int, int]) -> Stage | None:
    """Return a stage for frames of a device; None where they are in memory already."""
    return Stage(shape) if device.type == "cuda" else None
