"""Where a served supervisor listens: a socket with a known path, and a lock beside it that says who has it.

    <runtime base>/serve          the usual one, so that `connect()` needs no path
    <runtime base>/serve.lock     held with flock while somebody serves; holds the process id

The lock decides, not the socket: a socket that a dead process left is taken over, a living one's is never.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from wan_compat.protocol.errors import AlreadyServing, EnvironmentLacks
from wan_compat.supervisor.control_server import CONTROL, ControlServer
from wan_compat.supervisor.runtime import runtime_base

if TYPE_CHECKING:
    from wan_compat.supervisor.control_requests import Named

_TRIES = 5


def usual_socket() -> str:
    """Return the path where a supervisor serves and `connect` looks when none is named."""
    return os.path.join(runtime_base(), "serve")


def open_served(supervisor: Named, folder: str, path: str) -> ControlServer:
    """Open the sockets of a supervisor that serves, at `path` and in its own `folder`, and start answering.

    Raises:
        AlreadyServing: Another one has `path`.
        EnvironmentLacks: The folder of `path` is not this user's alone to write, or the socket cannot be made.
    """
    path = os.path.abspath(path)
    _require_private(os.path.dirname(path))
    lock = ServedLock(path)
    server = ControlServer(supervisor, id=supervisor.id, serves=True, on_close=lock.close)
    try:
        # Ours by the lock, so whatever socket is there belongs to nobody any more.
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise EnvironmentLacks(f"{path} is there and is no socket", hint="choose another path with --socket")
            os.unlink(path)
        server.listen(path)
        server.listen(os.path.join(folder, CONTROL))
    except BaseException:
        server.close()
        raise
    server.start()
    return server


class ServedLock:
    """The lock beside a served socket; removed with it.

    Raises:
        AlreadyServing: Somebody holds it; names the process.
        EnvironmentLacks: It cannot be made.
    """

    def __init__(self, socket_path: str) -> None:
        self._path = f"{socket_path}.lock"
        for _ in range(_TRIES):
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise EnvironmentLacks(
                    f"{self._path} cannot be made: {error.strerror}", hint="choose another path with --socket"
                ) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
                os.close(descriptor)
                raise AlreadyServing(
                    f"process {pid or '(starting)'} serves on {socket_path} already",
                    hint="connect to it, end it, or choose another path with --socket",
                    details={"socket": socket_path, "pid": int(pid) if pid.isdigit() else None},
                ) from None
            # The one before us may have removed the file between our open and our lock: then this is nobody's lock.
            if self._is_current(descriptor):
                self._descriptor = descriptor
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
                return
            os.close(descriptor)
        raise EnvironmentLacks(f"{self._path} is made and removed again and again", hint="choose another path")

    def close(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_current(self, descriptor: int) -> bool:
        try:
            there, ours = os.lstat(self._path), os.fstat(descriptor)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _require_private(folder: str) -> None:
    try:
        info = os.stat(folder)
    except OSError as error:
        raise EnvironmentLacks(f"{folder} cannot be used: {error.strerror}", hint="choose another --socket") from error
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o022:
        raise EnvironmentLacks(
            f"{folder} is not a folder that only you can write to",
            hint="leave out --socket, or make a folder of mode 0700",
        )
