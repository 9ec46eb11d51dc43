"""What the operating system refuses because a limit is reached, in our errors: no bug, and no riddle for a person.

For the two places where an exception that nobody foresaw ends: a job's runner and the command line. Where a refusal is
foreseen (an output, a copy of frames), it is told in the words of that place.
"""

from __future__ import annotations

import errno
import os
import resource

from wan_compat.protocol.errors import (
    DiskExceeded,
    InvalidRequest,
    MemoryExceeded,
    ResourceExceeded,
    WanCompatError,
)


def limit_reached(error: Exception) -> WanCompatError | None:
    """Return the error that says which limit was reached; None where `error` is about something else."""
    if isinstance(error, MemoryError):
        return MemoryExceeded("this program could get no more memory", hint="free memory, or raise `ulimit -v`")
    if not isinstance(error, OSError):
        return None
    match error.errno:
        case errno.EMFILE:
            files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return ResourceExceeded(
                f"this program may have {files} files open, and needs more", hint="raise it: ulimit -n 4096"
            )
        case errno.ENFILE:
            return ResourceExceeded("this machine has as many files open as it may (fs.file-max)")
        case errno.EFBIG:
            size = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            return ResourceExceeded(
                f"this program may write no file larger than {size} bytes", hint="raise it: ulimit -f unlimited"
            )
        case errno.ENOSPC | errno.EDQUOT:
            where = repr(error.filename) if error.filename is not None else "a disk"
            return DiskExceeded(f"{where} is full: {error.strerror}", hint="free some space")
        case errno.ENOMEM:
            return MemoryExceeded(f"the machine gives no more memory: {error.strerror}", hint="free some memory")
        case errno.ENOENT if not _has_working_folder():
            return InvalidRequest("the folder you are in was removed", hint="change to one that exists")
    return None


def _has_working_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True
