"""A request to stop, set by the control thread and obeyed by the main thread at its next check.

A generation is checked at every block of every model, between decoded chunks, and while it waits for credit. An event
with a descriptor, so that a wait on the doorbell can be a wait on both.
"""

from __future__ import annotations

import os
import threading

from wan_compat.protocol.errors import JobCancelled


class Cancellation:
    """Belongs to one worker; cleared when a job begins."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self) -> None:
        os.close(self._wake)

    def fileno(self) -> int:
        """Descriptor that is readable while a stop is requested."""
        return self._wake

    def request(self) -> None:
        if not self._requested.is_set():
            self._requested.set()
            os.eventfd_write(self._wake, 1)

    def clear(self) -> None:
        if self._requested.is_set():
            self._requested.clear()
            os.eventfd_read(self._wake)

    def check(self) -> None:
        """Raises JobCancelled when a stop was requested."""
        if self._requested.is_set():
            raise JobCancelled("the job was cancelled")
