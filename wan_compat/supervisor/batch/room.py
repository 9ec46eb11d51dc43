"""Room on the disk of a batch: looked for by writing, since a quota or a limit shows nowhere else."""

from __future__ import annotations

import contextlib
import os
import secrets
import time

from wan_compat.supervisor.outputs import MIN_FREE_BYTES

_PROBE_BYTES = 1 << 20

# How long between two looks. A person who frees some room waits no longer than that.
LOOK_AGAIN_S = 2.0


def free_bytes(folder: str) -> int:
    """Return what an ordinary user may still write to the folder's file system, 0 where that cannot be told."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def has_room(folder: str, wanted_bytes: int = MIN_FREE_BYTES) -> bool:
    """Whether there is room for a video to begin with."""
    if free_bytes(folder) < wanted_bytes:
        return False
    path = os.path.join(folder, f".room.{secrets.token_hex(6)}.part")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        return os.write(descriptor, bytes(_PROBE_BYTES)) == _PROBE_BYTES
    except OSError:
        return False
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(path)


class Pause:
    """Whether a run waits for room, and since when."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._since: float | None = None
        self._looked_at = 0.0

    @property
    def is_on(self) -> bool:
        return self._since is not None

    def begin(self) -> bool:
        """The disk is full; return whether that is news."""
        if self._since is not None:
            return False
        self._since = self._looked_at = time.monotonic()
        return True

    def end_if_over(self) -> float | None:
        """Look for room, once in a while; return how many seconds the pause was if there is some now."""
        if self._since is None or time.monotonic() - self._looked_at < LOOK_AGAIN_S:
            return None
        self._looked_at = time.monotonic()
        if not has_room(self._folder):
            return None
        waited, self._since = time.monotonic() - self._since, None
        return waited
