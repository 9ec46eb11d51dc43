"""The system calls of one worker that its filter holds until the supervisor has looked: only an attacker makes them."""

from __future__ import annotations

import contextlib
import os
import select

from wan_compat.sandbox import seccomp_notify


class HeldCalls:
    """Owns the filter's listener; `descriptor` is -1 where there is none, and becomes readable when a call is held."""

    def __init__(self) -> None:
        self.descriptor = -1

    def waiting(self) -> bool:
        """Whether a call is held now."""
        if self.descriptor < 0:
            return False
        poller = select.poll()
        poller.register(self.descriptor, select.POLLIN)
        # POLLHUP comes too, once the last thread is gone.
        return any(event & select.POLLIN for _, event in poller.poll(0))

    def read(self) -> seccomp_notify.HeldCall | None:
        """Return the call, None if it was withdrawn. Before the worker is killed: a call is gone with its thread."""
        with contextlib.suppress(OSError):
            return seccomp_notify.receive_call(self.descriptor)
        return None

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
