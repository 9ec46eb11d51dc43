"""The journal of a shard: appended to, one record after the other, each on the disk before the next thing happens.

    lease claimed -> Started -> job -> output has its name -> sidecar -> Done -> lease released

What a process that is killed leaves, wherever it is killed:

    before Started       nothing: the item waits
    before the name      an attempt without an end: the item is begun anew, unfinished files are removed
    before Done          a video without its record. It got its name only when it was whole and on the disk, and
                         Started says that the name was free: it is verified and recorded, not made again
    within a record      a last line that is cut off. Nothing followed from it yet, so it is cut away

A record that is not whole anywhere else, or of a kind that is not known, is no crash, and nothing is guessed about it.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from wan_compat._version import __version__
from wan_compat.policies.batch.progress import Shard
from wan_compat.policies.batch.records import (
    BadLine,
    Header,
    OtherVersion,
    UnknownRecord,
    decode,
    decode_header,
    encode,
)
from wan_compat.protocol.base import Value
from wan_compat.protocol.errors import DiskExceeded, JournalUnusable, OutputNotWritable, clean_text
from wan_compat.supervisor.batch.folder import sync_folder
from wan_compat.supervisor.outputs import NO_SPACE

MAX_JOURNAL_BYTES = 256 << 20


class Journal:
    """One shard's journal, for the process that holds the shard. Use as a context manager.

    Attributes:
        records: What was in it when it was opened.
        cut_bytes: Of a last line that was cut off, and is away now.

    Raises:
        JournalUnusable: It is damaged, or of another version.
        OutputNotWritable, DiskExceeded: The folder cannot take it.
    """

    def __init__(self, path: str, shard: Shard) -> None:
        self.path = path
        if not os.path.lexists(path):
            _create(path, shard)
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise OutputNotWritable(f"{path!r} cannot be opened: {error.strerror}") from error
        try:
            raw = _read(self._descriptor, path)
            self.records, self._size = _parse(raw, path)
            self.cut_bytes = len(raw) - self._size
            if self.cut_bytes:
                os.ftruncate(self._descriptor, self._size)
                os.fsync(self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise

    def append(self, record: Value) -> None:
        """Write a record; when this returns, it is on the disk.

        Raises:
            DiskExceeded: There is no room. Nothing of the record stays.
            OutputNotWritable: The file system refused.
        """
        data = encode(record)
        try:
            _write(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError as error:
            # What stands of it would make the next record unreadable, so it is taken back; should even that fail, the
            # next reader cuts it away.
            os.ftruncate(self._descriptor, self._size)
            message = f"{self.path!r} cannot be written: {error.strerror}"
            if error.errno in NO_SPACE:
                raise DiskExceeded(message, hint="free some space") from error
            raise OutputNotWritable(message) from error
        self._size += len(data)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Follower:
    """Reads journals that other processes write to: each time, what came to them since."""

    def __init__(self) -> None:
        self._offsets: dict[str, int] = {}

    def fresh(self, paths: Iterable[str]) -> Iterator[Any]:
        """Yield the records that were not there before. A last line without its end is left for the next time.

        Raises:
            JournalUnusable: As for `Journal`.
        """
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise JournalUnusable(f"{path!r} cannot be read: {error.strerror}") from error
            try:
                offset = self._offsets.get(path, 0)
                raw = _read(descriptor, path, offset)
            finally:
                os.close(descriptor)
            records, length = _parse(raw, path, header=offset == 0)
            self._offsets[path] = offset + length
            yield from records


def _create(path: str, shard: Shard) -> None:
    """Make a journal with its header: whole under its name, or not there."""
    header = Header(shard=shard.name, created_unix_s=time.time(), program=f"wan-compat {__version__}")
    part = f"{path}.{secrets.token_hex(6)}.part"
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            _write(descriptor, encode(header))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(part, path)
        sync_folder(os.path.dirname(path))
    except OSError as error:
        if os.path.lexists(part):
            os.unlink(part)
        message = f"{path!r} cannot be made: {error.strerror}"
        raise (DiskExceeded if error.errno in NO_SPACE else OutputNotWritable)(message) from error


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it: a disk that gets full takes a part first, and fails the next time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read(descriptor: int, path: str, offset: int = 0) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_JOURNAL_BYTES:
        raise JournalUnusable(f"{path!r} is not a journal: {status.st_size} bytes", hint="move it away")
    parts: list[bytes] = []
    while chunk := os.pread(descriptor, 1 << 20, offset):
        parts.append(chunk)
        offset += len(chunk)
    return b"".join(parts)


def _parse(raw: bytes, path: str, *, header: bool = True) -> tuple[list[Any], int]:
    """Return the records and how many bytes hold them; what comes after is a last line that is not whole."""
    records: list[Any] = []
    good = 0
    lines = re.findall(rb"[^\n]*\n|[^\n]+", raw)
    if header and not lines:
        raise _unusable(path, 1, "is missing")
    for number, line in enumerate(lines, 1):
        try:
            if header and number == 1:
                decode_header(line)
            else:
                records.append(decode(line))
        except OtherVersion as error:
            raise JournalUnusable(
                f"{path!r} is of {error}",
                hint="go on with the version of wan-compat that began this batch, or take a new folder",
            ) from error
        except UnknownRecord as error:
            raise _unusable(path, number, str(error)) from error
        except BadLine as error:
            # Only what a crash leaves is passed over: the last line, not whole. The header was written whole.
            if number == len(lines) and not (header and number == 1):
                break
            raise _unusable(path, number, str(error)) from error
        good += len(line)
    return records, good


def _unusable(path: str, line: int, why: str) -> JournalUnusable:
    name = clean_text(path, 200)
    return JournalUnusable(
        f"{path!r}: line {line} {why}",
        hint=f"move it aside (mv {name} {name}.broken) and run again: videos that stand with their sidecars are found "
        "and not made again",
    )
