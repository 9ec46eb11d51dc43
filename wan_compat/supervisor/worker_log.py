"""What a worker prints: read at a bounded rate, kept as a bounded tail, cleaned before anyone sees it.

A worker that prints faster than RATE_BYTES_PER_S is not read faster: its pipe fills and its own writes block.
"""

from __future__ import annotations

import os
import time
from typing import TextIO

from wan_compat.protocol.errors import OutputNotWritable, clean_text

RATE_BYTES_PER_S = 1 << 20
BURST_BYTES = 256 << 10
TAIL_BYTES = 64 << 10
MAX_FILE_BYTES = 16 << 20
MAX_LINE_CHARS = 4000


def open_log_file(path: str) -> TextIO:
    """Open a file for `BoundedLog.tee`, created 0600 or appended to. Raises OutputNotWritable."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise OutputNotWritable(
            f"the worker's log {path!r} cannot be written: {error.strerror}",
            hint="give --worker-log a file in a folder that you may write to",
        ) from error
    return os.fdopen(descriptor, "w", encoding="utf-8")


class BoundedLog:
    """Owns the reading end (non-blocking) of one process' output pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._tail = bytearray()
        self._partial = b""
        self._allowance = float(BURST_BYTES)
        self._refilled = time.monotonic()
        self.read_bytes = 0  # in all
        self._written = 0
        self._file: TextIO | None = None

    def tee(self, file: TextIO | None) -> None:
        """Copy what follows, cleaned, to `file`, which is closed by the next `tee` or `close`; None ends that."""
        if self._file is not None:
            self._file.close()
        self._file = file

    def fileno(self) -> int:
        """Descriptor to poll, or -1 when the writer is gone or the allowance is used up (do not poll then)."""
        self._refill()
        return self._descriptor if self._allowance >= 4096 else -1

    def collect(self) -> None:
        """Take what is there, within the allowance."""
        self._refill()
        while self._descriptor >= 0 and self._allowance >= 4096:
            try:
                data = os.read(self._descriptor, int(min(65536, self._allowance)))
            except BlockingIOError:
                return
            if not data:
                self._end()
                return
            self._allowance -= len(data)
            self.read_bytes += len(data)
            self._tail += data
            del self._tail[:-TAIL_BYTES]
            self._write(data)

    def tail(self) -> str:
        """Return the last output as clean text."""
        return clean_text(self._tail.decode("utf-8", errors="replace"), TAIL_BYTES)

    def _refill(self) -> None:
        now = time.monotonic()
        self._allowance = min(float(BURST_BYTES), self._allowance + (now - self._refilled) * RATE_BYTES_PER_S)
        self._refilled = now

    def _write(self, data: bytes) -> None:
        if self._file is None or self._written > MAX_FILE_BYTES:
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > MAX_LINE_CHARS:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            text = clean_text(line.decode("utf-8", errors="replace"), MAX_LINE_CHARS)
            self._written += len(text) + 1
            if self._written > MAX_FILE_BYTES:
                text = f"[log cut after {MAX_FILE_BYTES} bytes]"
            self._file.write(text + "\n")
            if self._written > MAX_FILE_BYTES:
                break
        self._file.flush()

    def _end(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def close(self) -> None:
        if self._file is not None:
            if self._partial:
                self._write(b"\n")
            self._file.close()
            self._file = None
        self._end()
