"""Hearing of a flagrant call: the supervisor's end of the listener that a worker's filter was installed with.

    worker                          kernel                          supervisor
      | ptrace(...) -----------------> | filter says NOTIFY             |
      | (held, never executed)         | ------- readable ------------> | poll
      |                                | <------ receive_call --------- |
      | <------------------------------------------- SIGKILL by pidfd - |

No answer is ever sent: a held call ends with its process. If the supervisor dies, the kernel answers ENOSYS to calls
that are held and to later ones (seccomp_unotify(2)), so nothing is let through.

A worker can take a held call back by a signal to the thread that made it, before it was read. It has then achieved an
EINTR, which is as little as the EPERM of other forbidden calls; a call that was withdrawn between the supervisor's poll
and its read still counts as an incident.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import fcntl
import struct

from wan_compat.sandbox import libc
from wan_compat.sandbox.syscalls import architecture

_GET_NOTIF_SIZES = 3
_NOTIF_RECV = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV: _IOWR('!', 0, struct seccomp_notif)
# struct seccomp_notif: id, thread id, flags; then struct seccomp_data: number, architecture, address, six arguments.
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_MAX_NOTIFICATION_BYTES = 4096  # the kernel may know a longer struct than we do; not this long


@dataclasses.dataclass(frozen=True)
class HeldCall:
    """One forbidden call as the kernel saw it. Arguments are register values; pointers are not followed."""

    name: str
    number: int
    arguments: tuple[int, ...]


def receive_call(listener: int) -> HeldCall | None:
    """Read the call that made `listener` readable. Call only then: reading waits for one otherwise.

    Returns:
        The call; None when it was withdrawn, because its thread was interrupted or is dead.

    Raises:
        OSError: The listener is none.
    """
    buffer = bytearray(_size())
    try:
        fcntl.ioctl(listener, _NOTIF_RECV, buffer, True)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTCONN, errno.EINTR):
            return None
        raise
    _, _, _, number, _, _, *arguments = _NOTIFICATION.unpack_from(buffer)
    return HeldCall(architecture().name_of(number), number, tuple(arguments))


def _size() -> int:
    sizes = ctypes.create_string_buffer(6)  # struct seccomp_notif_sizes: three 16-bit numbers
    libc.call("seccomp", _GET_NOTIF_SIZES, 0, sizes)
    size = int.from_bytes(sizes.raw[:2], "little")
    return min(max(size, _NOTIFICATION.size), _MAX_NOTIFICATION_BYTES)
