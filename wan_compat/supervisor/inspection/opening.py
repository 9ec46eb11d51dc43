"""Opening and reading files of a model: only the regular file that was listed, and no more of it than asked for."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from wan_compat.policies.facts import FileFact
from wan_compat.supervisor.inspection.problems import Defect, problem

LFS_START = b"version https://git-lfs.github.com/spec/"


@contextlib.contextmanager
def opened(fact: FileFact) -> Iterator[int]:
    """Give a descriptor of the very file that was listed. Raises Defect, also for what fails while it is read.

    The listing only has regular files, so that devices and FIFOs are never opened; O_NONBLOCK, O_NOFOLLOW and the
    comparison are for a folder that is changed in between.
    """
    try:
        descriptor = os.open(fact.real_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            info = os.fstat(descriptor)
            same = (info.st_dev, info.st_ino, info.st_size) == (fact.device, fact.inode, fact.size)
            if not stat.S_ISREG(info.st_mode) or not same:
                raise changed(fact)
            yield descriptor
        finally:
            os.close(descriptor)
    except PermissionError as error:
        raise Defect(
            problem("file_unreadable", fact.path, f"{fact.real_path!r} may not be read by this user")
        ) from error
    except OSError as error:
        raise Defect(
            problem("file_unreadable", fact.path, f"{fact.real_path!r} cannot be read: {error.strerror}")
        ) from error


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Return up to `length` bytes; fewer only at the end of the file. Never mapped: a file that shrinks kills us."""
    raw = os.pread(descriptor, length, offset)
    while raw and len(raw) < length:
        more = os.pread(descriptor, length - len(raw), offset + len(raw))
        if not more:
            break
        raw += more
    return raw


def changed(fact: FileFact) -> Defect:
    return Defect(problem("file_changed", fact.path, f"{fact.path} changed while it was read"))


def lfs_pointer(path: str, what: str) -> Defect:
    """Return the defect of a file that `git clone` without LFS left behind (https://git-lfs.com, "spec")."""
    return Defect(problem("lfs_pointer", path, f"{path} is a Git LFS pointer, not the {what}"))
