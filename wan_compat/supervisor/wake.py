"""Waiting for descriptors, and what makes a thread that does so look up: an eventfd that any thread may set."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterable


class Wake:
    """Readable after `set`, until `clear`. Setting a closed one does nothing: its number may be another file's."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()

    def set(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1


def readable(descriptors: Iterable[int], timeout_s: float) -> frozenset[int]:
    """Wait until one of them can be read or has ended; return which. Negative ones are left out.

    By poll: select knows no numbers above 1023, and a program with many connections has them.
    """
    poller = select.poll()
    for descriptor in descriptors:
        if descriptor >= 0:
            poller.register(descriptor, select.POLLIN)
    return frozenset(descriptor for descriptor, _ in poller.poll(max(0.0, timeout_s) * 1000))
