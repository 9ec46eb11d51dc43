"""The folder for sockets of one supervisor: 0700, short enough for a Unix socket, swept when its owner is gone.

    <base>/<random>/lock            held with flock for as long as the supervisor lives
    <base>/<random>/<worker>/c      control socket of one worker
    <base>/<random>/leftover-*      links to unfinished files and folders, named after device and inode

A held lock is the only proof of life that cannot be confused by a reused process id, and the kernel drops it when the
process ends in whatever way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile

from wan_compat.protocol.errors import EnvironmentLacks
from wan_compat.sandbox.spec import Identity

_LOCK = "lock"
_LEFTOVER = "leftover-"


def runtime_base() -> str:
    """Return the user's folder for runtime files, made and checked: ours, 0700, not a link."""
    parent = os.environ.get("XDG_RUNTIME_DIR")
    uid = os.geteuid()
    if parent and os.path.isdir(parent) and os.stat(parent).st_uid == uid and len(os.fsencode(parent)) <= 48:
        base = os.path.join(parent, "wan-compat")
    elif uid == 0 and os.path.isdir("/run"):
        base = "/run/wan-compat"
    else:
        base = os.path.join(tempfile.gettempdir(), f"wan-compat-{uid}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(base, 0o700)
    if not _is_private(base, uid):
        raise EnvironmentLacks(
            f"{base} is not a private folder of this user",
            hint=f"remove {base}, or set XDG_RUNTIME_DIR to a folder that only you can enter",
        )
    return base


def runtime_bases() -> list[str]:
    """Return every folder in which supervisors of this user may be, that of this environment first.

    A login session has XDG_RUNTIME_DIR; cron, `su` and a container's shell have not, and are this user all the same.
    Who set it to a folder of their own wants to be by themselves, and that folder is the only one.

    Raises:
        EnvironmentLacks: As `runtime_base`.
    """
    first, uid = runtime_base(), os.geteuid()
    parent, usual = os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{uid}"
    if parent and parent.rstrip("/") != usual:
        return [first]
    others = [os.path.join(usual, "wan-compat"), os.path.join(tempfile.gettempdir(), f"wan-compat-{uid}")]
    if uid == 0:
        others.append("/run/wan-compat")
    return [first, *(base for base in others if base != first and _is_private(base, uid))]


def _is_private(folder: str, uid: int) -> bool:
    try:
        info = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == uid and not stat.S_IMODE(info.st_mode) & 0o066


def fresh_name() -> str:
    """Return a name for a runtime folder, short and nobody else's."""
    return secrets.token_hex(4)


class RuntimeFolder:
    """One supervisor's folder. Close removes it; a crash leaves it to the next `sweep_stale`."""

    def __init__(self, name: str | None = None) -> None:
        base = runtime_base()
        sweep_stale(base)
        self.path = os.path.join(base, name or fresh_name())
        os.mkdir(self.path, 0o700)
        self._lock = os.open(os.path.join(self.path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def make_worker_folder(self, worker: str, owner: Identity | None) -> str:
        """Make the 0700 folder of one worker's control socket, entered by `owner` when that is another user."""
        path = os.path.join(self.path, worker)
        os.mkdir(path, 0o700)
        if owner is not None:
            os.chown(path, owner.uid, owner.gid)
        return path

    def make_scratch_folder(self, worker: str, owner: Identity | None) -> str:
        """Make the scratch folder of a worker that has no view of its own, inside its folder."""
        path = os.path.join(self.path, worker, "scratch")
        os.mkdir(path, 0o700)
        if owner is not None:
            os.chown(path, owner.uid, owner.gid)
            # Without a view the worker walks to it through folders of root's.
            os.chmod(self.path, 0o711)  # noqa: S103 - to pass, not to list; the name is random
            os.chmod(os.path.dirname(self.path), 0o711)  # noqa: S103
        return path

    def note_leftover(self, path: str) -> str:
        """Note a file or folder of ours that the sweep shall remove if we do not get to it.

        Returns:
            The note, to be unlinked.
        """
        info = os.lstat(path)
        note = os.path.join(self.path, f"{_LEFTOVER}{info.st_dev}-{info.st_ino}")
        os.symlink(path, note)
        return note

    def remove_worker_folder(self, worker: str) -> None:
        shutil.rmtree(os.path.join(self.path, worker), ignore_errors=True)

    def close(self) -> None:
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep_stale(base: str) -> list[str]:
    """Remove folders whose supervisor is gone; return their names."""
    removed = []
    for name in os.listdir(base):
        folder = os.path.join(base, name)
        try:
            lock = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            continue  # being made right now, or not ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            _remove_leftovers(folder)
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(name)
        finally:
            os.close(lock)
    return removed


def _remove_leftovers(folder: str) -> None:
    for name in os.listdir(folder):
        if not name.startswith(_LEFTOVER):
            continue
        with contextlib.suppress(OSError):
            path = os.readlink(os.path.join(folder, name))
            info = os.lstat(path)
            # Only the very file that was noted: its name may mean another one by now.
            if name != f"{_LEFTOVER}{info.st_dev}-{info.st_ino}":
                continue
            if stat.S_ISREG(info.st_mode):
                os.unlink(path)
            elif stat.S_ISDIR(info.st_mode):
                shutil.rmtree(path)
