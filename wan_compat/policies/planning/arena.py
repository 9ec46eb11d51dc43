"""A count of live bytes, for walking through a computation the way an allocator would see it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Peak:
    """The most bytes that are live at once: `allocated` with what kernels take for themselves, `tensors` without."""

    allocated: int
    tensors: int

    def __add__(self, size: int) -> Peak:
        """Return the peak with something else live all the time."""
        return Peak(self.allocated + size, self.tensors + size)

    def __mul__(self, count: int) -> Peak:
        """Return the peak of the same computation on `count` times the samples."""
        return Peak(self.allocated * count, self.tensors * count)


def higher(*peaks: Peak) -> Peak:
    """Return the peak of computations that follow each other."""
    return Peak(max(item.allocated for item in peaks), max(item.tensors for item in peaks))


class Arena:
    """`live` bytes now, and the most there ever were. What is taken is given back by name of its size."""

    def __init__(self) -> None:
        self.live = 0
        self._peak = self._tensors = 0

    @property
    def peak(self) -> Peak:
        return Peak(self._peak, self._tensors)

    def take(self, size: int) -> int:
        """Count `size` bytes as live; returns it, to be given back later."""
        self.live += size
        self._peak = max(self._peak, self.live)
        self._tensors = max(self._tensors, self.live)
        return size

    def give(self, *sizes: int) -> None:
        """Count bytes as free again."""
        self.live -= sum(sizes)

    @contextlib.contextmanager
    def holding(self, *sizes: int) -> Iterator[None]:
        """Take for the time of a block."""
        for size in sizes:
            self.take(size)
        try:
            yield
        finally:
            self.give(*sizes)

    def kernel(self, result: int, workspace: int) -> int:
        """Take a result whose kernel has `workspace` bytes of its own meanwhile; they are no tensor."""
        self._peak = max(self._peak, self.live + result + workspace)
        return self.take(result)
