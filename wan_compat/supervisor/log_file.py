"""The log file: one JSON document a line, in a file of this user alone, rotated by size.

    write    hands a document over and returns at once; beyond MAX_WAITING it is counted and dropped
    thread   redacts, encodes and writes; a file that cannot be written is tried again with the next line
    FILE     0600, appended to; at `max_bytes` it becomes FILE.1, FILE.1 becomes FILE.2, and so on, the last one goes

Several programs may write one file: whole lines only, and a rotation under a lock on the folder, which leaves no file
behind. Lines that were lost are told in the first one that is written again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import logging
import logging.handlers
import os
import queue
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wan_compat.protocol.errors import OutputNotWritable

MAX_BYTES = 10 << 20
BACKUPS = 5
MAX_WAITING = 10_000  # documents; a few megabytes
CLOSE_TIMEOUT_S = 5.0

Document = Mapping[str, Any]


class LogFile:
    """One open log file. Thread-safe.

    Args:
        path: The file; its folder is made where only that is missing.
        encode: Turns a document into what is written, in the writer's thread: redaction belongs here.
        max_bytes: Size beyond which it is rotated.
        backups: How many older files are kept.

    Raises:
        OutputNotWritable: It cannot be opened, is no regular file, or others own it or can write it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        encode: Callable[[Document], Document],
        *,
        max_bytes: int = MAX_BYTES,
        backups: int = BACKUPS,
    ) -> None:
        self.path = os.path.abspath(path)
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            self._handler = _Handler(self.path, max_bytes=max_bytes, backups=backups)
        except OSError as error:
            raise OutputNotWritable(
                f"the log {self.path!r} cannot be written: {error.strerror or error}",
                hint="name a file in a folder of your own with --log-file",
            ) from error
        self._encode = encode
        self._waiting: queue.Queue[Document | None] = queue.Queue(MAX_WAITING)
        self._lost = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="wan-compat-log", daemon=True)
        self._thread.start()

    def write(self, document: Document) -> None:
        """Hand over one document; never waits."""
        try:
            self._waiting.put_nowait(document)
        except queue.Full:
            self._count_lost(1)

    def close(self) -> None:
        """Write what waits, for CLOSE_TIMEOUT_S at most."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSE_TIMEOUT_S)
            self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (document := self._waiting.get()) is not None:
            if lost := self._lost:
                told = {"time": document.get("time"), "level": "warning", "event": "lines_lost", "count": lost}
                if self._write(told):
                    self._count_lost(-lost)
            if not self._write(document):
                self._count_lost(1)
        self._handler.close()

    def _count_lost(self, more: int) -> None:
        with self._lock:
            self._lost += more

    def _write(self, document: Document) -> bool:
        try:
            line = json.dumps(self._encode(document), ensure_ascii=True, separators=(", ", ": "), default=str)
            self._handler.write_line(line)
        except (OSError, ValueError):  # a full disk; a file that somebody else put there
            return False
        return True


class _Handler(logging.handlers.RotatingFileHandler):
    """The standard library's rotation, over a file that is opened carefully and may be rotated by others too.

    Raises:
        OSError: The file or its folder cannot be opened.
    """

    def __init__(self, path: str, **rotation: int) -> None:
        super().__init__(path, maxBytes=rotation["max_bytes"], backupCount=rotation["backups"], encoding="ascii")
        with self._folder():
            pass

    def write_line(self, line: str) -> None:
        """Write one line. Raises OSError; a part of it that stands nevertheless is ended before the next one."""
        record = logging.LogRecord("wan_compat", logging.INFO, "", 0, line, None, None)
        with self._folder() as folder:
            fcntl.flock(folder, fcntl.LOCK_EX)
            self._follow()
            try:
                if self.shouldRollover(record):
                    self.doRollover()
                if self.stream is None:
                    self.stream = self._open()
                # In one call and past the stream's buffer: what failed must not come out later.
                data = line.encode("ascii") + b"\n"
                if os.write(self.stream.fileno(), data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._drop()
                raise

    def _open(self) -> io.TextIOWrapper:
        stream = open(self.baseFilename, "a", encoding="ascii", opener=_open_private)  # noqa: SIM115 - kept open
        size = os.fstat(stream.fileno()).st_size
        if size and os.pread(stream.fileno(), 1, size - 1) != b"\n":  # its writer was killed, or the disk was full
            os.write(stream.fileno(), b"\n")
        return stream

    def _follow(self) -> None:
        """Let go of a file that another program rotated, or somebody removed."""
        if self.stream is None:
            return
        ours = os.fstat(self.stream.fileno())
        try:
            named = os.lstat(self.baseFilename)
        except FileNotFoundError:
            named = None
        if named is None or (ours.st_dev, ours.st_ino) != (named.st_dev, named.st_ino):
            self._drop()

    def _drop(self) -> None:
        stream: io.TextIOWrapper | None = self.stream
        self.stream = None
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()

    @contextlib.contextmanager
    def _folder(self) -> Iterator[int]:
        """Open the folder, which is the lock of its logs."""
        folder = os.open(os.path.dirname(self.baseFilename), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield folder
        finally:
            os.close(folder)


def _open_private(path: str, flags: int) -> int:
    """Open a log for appending: a regular file of this user that nobody else can write. No link is followed."""
    # O_NONBLOCK: a FIFO in its place is refused, not waited for.
    flags = (flags & ~os.O_ACCMODE) | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    info = os.fstat(descriptor)
    why = None
    if not stat.S_ISREG(info.st_mode):
        why = "not a regular file"
    elif info.st_uid != os.geteuid():
        why = f"belongs to user {info.st_uid}"
    elif stat.S_IMODE(info.st_mode) & 0o022:
        why = f"can be written by others (mode {stat.S_IMODE(info.st_mode):o})"
    if why is not None:
        os.close(descriptor)
        raise OSError(0, why, path)
    return descriptor
