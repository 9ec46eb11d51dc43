"""Files of this user's state that decisions rest on: opened without following links, and only while nobody else can
have written them.

    <state>/wan-compat/            0700, owned by this user
    <state>/wan-compat/NAME        0600, a regular file, owned by this user; replaced whole, or appended to and synced
    <state>/wan-compat/NAME.lock   held while NAME is read and written again

Everything is opened relative to the folder's descriptor, so that what was checked is what is used. A file that fails
a check is an error with its remedy, never an absent one: an unreadable trust store is not an empty one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import platformdirs

from wan_compat.protocol.errors import StateCorrupt, StateUnsafe

LOCK_TIMEOUT_S = 10.0
_LOCK_POLL_S = 0.01


def state_folder() -> Path:
    """Return where this user's state lies; XDG_STATE_HOME moves it. Nothing is made."""
    return Path(platformdirs.user_state_dir("wan-compat", appauthor=False))


class PrivateFolder:
    """The state folder, opened and checked. Use as a context manager.

    Args:
        path: None is this user's state folder.
        create: Make it where it is absent; otherwise `exists` is false and every file reads as absent.
        close: Take other users' right to read it away. Not for a folder that the user named for something else.

    Raises:
        StateUnsafe: It is a link or no folder, belongs to somebody else, or others can write into it.
    """

    def __init__(self, path: Path | None = None, *, create: bool = False, close: bool = True) -> None:
        self.path = path or state_folder()
        self._close_to_others = close
        self._fd = -1
        if create:
            self._make()
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateUnsafe(
                f"{self.path} cannot be opened as a folder: {error.strerror}",
                hint=f"see what it is with `ls -ld {self.path}`, and move it away if it is not yours",
            ) from error
        try:
            self._check_folder()
        except BaseException:
            self.close()
            raise

    @property
    def exists(self) -> bool:
        return self._fd >= 0

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """Return a file's content, None where there is none.

        Raises:
            StateUnsafe: The file is not one that only this user can have written.
            StateCorrupt: It has more than `max_bytes`.
        """
        descriptor = self.open(name, os.O_RDONLY)
        if descriptor is None:
            return None
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise StateCorrupt(
                f"{self.path / name} is larger than {max_bytes} bytes",
                hint=f"move it aside: mv {self.path / name} {self.path / name}.broken",
            )
        return content

    def replace(self, name: str, content: bytes) -> None:
        """Write a file anew: whole and durable, or not at all. Hold its lock. Raises OSError for a full disk."""
        part = f".{name}.{secrets.token_hex(4)}.part"
        descriptor = os.open(
            part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._fd
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.rename(part, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part, dir_fd=self._fd)
            raise
        os.fsync(self._fd)

    def open(self, name: str, flags: int) -> int | None:
        """Open one file and check it; return its descriptor, which is the caller's, or None where there is none.

        Raises:
            StateUnsafe: It is a link, a device or a FIFO, belongs to somebody else, or others can write it.
        """
        if not self.exists:
            return None
        path = self.path / name
        try:
            # O_NONBLOCK: a FIFO in its place is refused, not waited for.
            descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateUnsafe(
                f"{path} cannot be opened: {error.strerror}", hint=f"see what it is with `ls -l {path}`"
            ) from error
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise StateUnsafe(f"{path} is not a regular file", hint=f"move it away: mv {path} {path}.strange")
            self._check_owner(path, info, 0o022)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @contextlib.contextmanager
    def lock(self, name: str, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold the lock of a file, alone among processes and threads. The kernel drops it when its holder dies.

        flock and not filelock's classes: the lock file has to be opened as carefully as the file that it guards.

        Raises:
            StateUnsafe: The lock file is not ours alone, or another process held it for `timeout_s`.
        """
        descriptor = self.open(f"{name}.lock", os.O_RDWR | os.O_CREAT)
        assert descriptor is not None, "only a folder that exists can be locked"
        try:
            deadline = time.monotonic() + timeout_s
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise StateUnsafe(
                            f"another process has held {self.path / name}.lock for {timeout_s:g} s",
                            hint="wait for the other wan-compat of this user, or end it",
                        ) from error
                    time.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path, 0o700)
        except OSError as error:
            raise StateUnsafe(
                f"{self.path} cannot be made: {error.strerror}",
                hint="set XDG_STATE_HOME to a folder that you can write to",
            ) from error

    def _check_folder(self) -> None:
        info = os.fstat(self._fd)
        self._check_owner(self.path, info, 0o022)
        if self._close_to_others and stat.S_IMODE(info.st_mode) & 0o077:
            # Readable by others is not unsafe, only indiscreet; it is our own folder, so it is simply closed.
            with contextlib.suppress(OSError):
                os.fchmod(self._fd, 0o700)

    def _check_owner(self, path: Path, info: os.stat_result, forbidden: int) -> None:
        if info.st_uid != os.geteuid():
            raise StateUnsafe(
                f"{path} belongs to user {info.st_uid}, not to {os.geteuid()}",
                hint=f"if it is yours: chown -R {os.geteuid()} {self.path}; if not, move it away",
            )
        if stat.S_IMODE(info.st_mode) & forbidden:
            raise StateUnsafe(
                f"{path} can be written by others (mode {stat.S_IMODE(info.st_mode):o})",
                hint=f"look into it, then: chmod go-w {path}",
            )
