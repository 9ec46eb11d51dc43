"""Where bytes come from while a file is looked at, and how much of them, and of work on them, a scan may have."""

from __future__ import annotations

import bz2
import dataclasses
import lzma
import os
import zlib
from typing import Protocol

from wan_compat.policies.scan.formats import Format
from wan_compat.policies.scan.zip_directory import BadZip

# What an xz header may ask of memory while it is unpacked: what `xz -9` needs.
MAX_XZ_MEMORY_BYTES = 72 << 20


@dataclasses.dataclass
class Budget:
    """What one scan may still spend, over all its files: a small archive can hold, or seem to hold, any amount of work.

    Args:
        unpacked_bytes: That come out of archives.
        stored_bytes: Of entries that are stored as they are, which may overlap.
        python_bytes: Of source that is parsed (about a megabyte a second).
        opcodes: Of pickles (about a million a second).
    """

    unpacked_bytes: int = 256 << 20
    stored_bytes: int = 4 << 30
    python_bytes: int = 32 << 20
    opcodes: int = 20_000_000

    def take_python(self, count: int) -> bool:
        """Take bytes of source; False, and nothing taken, where there are not as many left."""
        if count > self.python_bytes:
            return False
        self.python_bytes -= count
        return True


class Contents(Protocol):
    """Bytes that can be read at any place."""

    size: int

    def read(self, offset: int, length: int) -> bytes: ...


class BytesContents:
    """What is in memory."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.size = len(raw)

    def read(self, offset: int, length: int) -> bytes:
        return self.raw[offset : offset + length]


class FileContents:
    """An open regular file. `size` is what it was when it was opened: growth is for the caller to notice."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        raw = os.pread(self._descriptor, length, offset)
        while raw and len(raw) < length:
            more = os.pread(self._descriptor, length - len(raw), offset + len(raw))
            if not more:
                break
            raw += more
        return raw


class Part:
    """A stretch of other contents: an entry that is stored as it is."""

    def __init__(self, whole: Contents, offset: int, size: int) -> None:
        self._whole = whole
        self._offset = offset
        self.size = max(0, min(size, whole.size - offset))

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        return self._whole.read(self._offset + offset, length)


class Machine(Protocol):
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


def machine_for(found: Format) -> Machine:
    if found is Format.BZIP2:
        return bz2.BZ2Decompressor()
    if found is Format.XZ:
        return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=MAX_XZ_MEMORY_BYTES)
    return zlib.decompressobj(zlib.MAX_WBITS | (16 if found is Format.GZIP else 0))


def inflate(contents: Contents, start: int, packed: int, limit: int, machine: Machine) -> tuple[bytes, bool]:
    """Return at most `limit` unpacked bytes, and whether that is not all: the data go on, or are cut.

    Raises:
        BadZip: It is no such data.
    """
    pieces: list[bytes] = []
    total = 0
    position, end = start, start + packed
    data = b""
    try:
        while total <= limit and not machine.eof:
            if not data and position < end and getattr(machine, "needs_input", True):
                data = contents.read(position, min(1 << 20, end - position))
                position += len(data)
                if not data:
                    break
            piece = machine.decompress(data, limit + 1 - total)
            # zlib hands back what it did not take; bz2 and lzma keep it.
            data = getattr(machine, "unconsumed_tail", b"")
            pieces.append(piece)
            total += len(piece)
            if not piece and not data and position >= end:
                break
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError) as error:
        raise BadZip(f"it cannot be unpacked: {error}") from error
    raw = b"".join(pieces)
    whole = machine.eof and position >= end and not machine.unused_data
    return raw[:limit], len(raw) > limit or not whole
