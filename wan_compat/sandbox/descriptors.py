"""Which files are open: stdin from nowhere, both outputs to the log, what was handed over, nothing else.

A forked process has every descriptor of its parent: listening sockets, other workers' rings, the user's terminal.
Closing by range needs no list of what is open, so nothing can be forgotten, and it works without /proc.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable

from wan_compat.sandbox import libc
from wan_compat.sandbox.failure import entering, failed
from wan_compat.sandbox.spec import Layer

_LAST = 0xFFFFFFFF  # close_range takes unsigned ints; this is its "to the end"


def replace_standard(output_fd: int) -> None:
    """Point stdin at /dev/null and stdout and stderr at `output_fd`. Needs the host's /dev, so before the view."""
    with entering(Layer.DESCRIPTORS, "replacing the standard descriptors"):
        nowhere = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(nowhere, 0)
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        if nowhere > 2:
            os.close(nowhere)


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor that is neither standard nor in `keep`; those keep their numbers.

    Raises:
        SandboxEntryFailed: A descriptor to keep is not open, or is one of the standard three.
    """
    kept = sorted(set(keep))
    with entering(Layer.DESCRIPTORS, "closing inherited descriptors"):
        for descriptor in kept:
            if descriptor <= 2:
                raise failed(Layer.DESCRIPTORS, f"descriptor {descriptor} cannot be kept", "hand over a higher number")
            fcntl.fcntl(descriptor, fcntl.F_GETFD)
        start = 3
        for descriptor in kept:
            if descriptor > start:
                libc.call("close_range", start, descriptor - 1, 0)
            start = descriptor + 1
        libc.call("close_range", start, _LAST, 0)


def open_descriptors(limit: int) -> frozenset[int]:
    """Return the open descriptors below `limit`, by asking for each: inside the view there is no /proc to list."""
    found = set()
    for descriptor in range(limit):
        try:
            fcntl.fcntl(descriptor, fcntl.F_GETFD)
        except OSError:
            continue
        found.add(descriptor)
    return frozenset(found)
