"""A count of live bytes, for walking through a computation the way an allocator would see it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Arena:
    """`live` bytes now, `peak` the most there ever were. What is taken is given back by name of its size."""

    def __init__(self, live: int = 0) -> None:
        self.live = live
        self.peak = live

    def take(self, size: int) -> int:
        """Count `size` bytes as live; returns it, to be given back later."""
        self.live += size
        self.peak = max(self.peak, self.live)
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
