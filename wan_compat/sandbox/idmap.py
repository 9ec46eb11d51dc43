"""Id-mapped mounts: a file that only its owner may read, shown to the worker as its own, without touching the file.

diffusers writes weights with mode 0600, and root's worker runs as an uid of its own, so it could not read them.
Changing the user's files is out of the question and a copy of 28 GB is no answer. Since Linux 5.12 a *mount* can
translate ids: through it the file belongs to the worker, on disk nothing changes (mount_setattr(2), MOUNT_ATTR_IDMAP).

The translation is given as a user namespace that maps the owner's id to the worker's. A namespace needs a process to be
made in, so one is cloned that shares our memory and does nothing but `pause` in C: no page is copied and no Python runs
in it. It is gone as soon as the namespace has been opened.

Only root can do this (CAP_SYS_ADMIN over the file system), which is also who needs it: an ordinary user's worker keeps
the user's id. Known to work on ext4, xfs, btrfs, f2fs, vfat and tmpfs (6.3); not on overlayfs itself, NFS or most FUSE.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

from wan_compat.sandbox import libc

MOUNT_ATTR_IDMAP = 0x00100000

_CLONE_VM = 0x00000100
_CLONE_NEWUSER = 0x10000000
_STACK_BYTES = 64 << 10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.clone.restype = ctypes.c_int


def translation(owner: tuple[int, int], worker: tuple[int, int]) -> int:
    """Open a user namespace that shows files of `owner` (uid, gid) as files of `worker`. The caller closes it.

    Raises:
        OSError: User namespaces are refused, or the process is not root.
    """
    stack = ctypes.create_string_buffer(_STACK_BYTES)
    top = (ctypes.addressof(stack) + _STACK_BYTES) & ~15
    pause = ctypes.cast(_libc.pause, ctypes.c_void_p)
    pid = int(_libc.clone(pause, ctypes.c_void_p(top), _CLONE_VM | _CLONE_NEWUSER | signal.SIGCHLD, None))
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} (clone of a user namespace)")
    try:
        # First number: the id on disk. Second: the id that it is shown as.
        for name, on_disk, shown in (("uid_map", owner[0], worker[0]), ("gid_map", owner[1], worker[1])):
            descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, f"{on_disk} {shown} 1\n".encode("ascii"))
            finally:
                os.close(descriptor)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        # The stack must live until the process that stands on it is gone.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def apply(mount_fd: int, namespace_fd: int) -> None:
    """Translate the detached mount `mount_fd` (from open_tree, never attached) by `namespace_fd`."""
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_IDMAP, 0, 0, namespace_fd)
    libc.call(
        "mount_setattr",
        mount_fd,
        b"",
        libc.AT_EMPTY_PATH,
        ctypes.create_string_buffer(attributes, len(attributes)),
        len(attributes),
    )
