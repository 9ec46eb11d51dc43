"""The few doors to the kernel that Python's `os` does not have, through ctypes.

Every function here raises OSError with the kernel's errno and the name of the call; the layers above translate that
into a SandboxEntryFailed that names the layer and the remedy. Calls that glibc wraps late or not at all (Landlock, the
mount calls of 5.2 and later) go by number, from `syscalls.py`.

`ctypes.CDLL(None)` looks up symbols in what is already loaded, so nothing is opened at run time: it works inside the
view.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from wan_compat.sandbox import syscalls

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47

_CLONE_THREAD = 0x00010000  # linux/sched.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.restype = ctypes.c_int
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.mount.restype = ctypes.c_int
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.restype = ctypes.c_int
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def _raise(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{os.strerror(number)} ({what})")


def call(name: str, *arguments: Any) -> int:
    """Make the system call `name`. Integers, bytes (as char pointers), ctypes buffers and None may be passed.

    Raises:
        OSError: The kernel refused, or this architecture has no such call (ENOSYS).
    """
    number = syscalls.architecture().numbers.get(name)
    if number is None:
        raise OSError(38, f"{os.strerror(38)} ({name} does not exist on this architecture)")
    # Every integer as a long: with variadic syscall() an int would leave the upper half of the register undefined.
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *wide))
    if result < 0:
        _raise(name)
    return result


def prctl(option: int, *arguments: int) -> int:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    result = int(_libc.prctl(option, *padded))
    if result < 0:
        _raise(f"prctl {option}")
    return result


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    if _libc.mount(encoded[0], encoded[1], encoded[2], flags, encoded[3]) != 0:
        _raise(f"mount {kind or ''} at {target}")


def umount(target: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(target), flags) != 0:
        _raise(f"umount {target}")


def unshare(flags: int) -> None:
    call("unshare", flags)


def sethostname(name: str) -> None:
    encoded = os.fsencode(name)
    call("sethostname", encoded, len(encoded))


def count_threads() -> int:
    """Return how many threads this process has, those of libraries too; 2 without /proc, if there are more than one.

    "Unsharing" its threads changes nothing for a process that has one, and is refused to any other (unshare(2),
    CLONE_THREAD): that works without /proc too.
    """
    try:
        return len(os.listdir("/proc/self/task"))
    except FileNotFoundError:
        pass
    try:
        unshare(_CLONE_THREAD)
    except OSError:
        return 2
    return 1


def become_subreaper() -> None:
    """Make this process the parent of orphaned descendants, so that a worker whose middle parent left is our child."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def is_subreaper() -> bool:
    value = ctypes.c_int(0)
    prctl(PR_GET_CHILD_SUBREAPER, ctypes.addressof(value))
    return value.value == 1
