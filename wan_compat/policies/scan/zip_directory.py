"""The directory of a zip file, read from bytes under limits, and what is wrong with it.

Not `zipfile`: it reads a directory of any size into memory, believes sizes, and does not compare the directory with the
headers that stand before the entries, in which another reader may find other names.

    PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (end, zip64)
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Sequence

from wan_compat.policies.scan.rules import Observation

MAX_ENTRIES = 20_000  # the largest Wan checkpoint has about 1,100 tensors, each an entry
MAX_DIRECTORY_BYTES = 8 << 20
MAX_RATIO = 200  # deflate reaches 1,032; weights and configurations are far from it
MAX_UNPACKED_BYTES = 1 << 40
# The end record is 22 bytes and a comment of at most 65,535; the zip64 records before it take 76.
TAIL_BYTES = 22 + 65_535 + 76
LOCAL_HEADER_BYTES = 30

STORED, DEFLATED = 0, 8

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


class BadZip(Exception):
    """It is no zip, or not one that every reader reads alike. The text says why."""


@dataclasses.dataclass(frozen=True)
class DirectoryPlace:
    """Where the directory lies in the file. `shift` is how many bytes stand before the zip."""

    offset: int
    length: int
    entries: int
    shift: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry. `name` is cleaned of nothing; `offset` is that of its local header in the file."""

    name: str
    raw_name: bytes
    method: int
    flags: int
    packed: int
    unpacked: int
    offset: int
    mode: int

    @property
    def is_folder(self) -> bool:
        return self.name.endswith("/")

    @property
    def is_encrypted(self) -> bool:
        return bool(self.flags & 1)

    @property
    def is_link(self) -> bool:
        return self.mode & 0o170000 == 0o120000


def find_directory(tail: bytes, size: int) -> DirectoryPlace | None:
    """Return where the directory is, None where there is none.

    Args:
        tail: The file's last TAIL_BYTES, or all of it.
        size: Of the file.

    Raises:
        BadZip: There is an end record that lies.
    """
    position = len(tail)
    base = size - len(tail)
    # The end record is the last one whose comment ends with the file. One that does not is data, as in any file.
    for _ in range(1000):
        position = tail.rfind(b"PK\x05\x06", 0, position)
        if position < 0:
            return None
        if position + _END.size <= len(tail):
            record = _END.unpack_from(tail, position)
            if position + _END.size + record[7] == len(tail):
                break
    else:
        return None
    _, disk, start_disk, here, entries, length, offset, _ = record
    end = base + position
    # torch writes the zip64 records for small files too; where they are, readers believe them.
    if position >= _LOCATOR64.size:
        mark, _, end64, _ = _LOCATOR64.unpack_from(tail, position - _LOCATOR64.size)
        if mark == b"PK\x06\x07":
            if not 0 <= end64 - base <= position - _LOCATOR64.size - _END64.size:
                raise BadZip(f"its zip64 record is said to be at byte {end64:,}")
            record64 = _END64.unpack_from(tail, end64 - base)
            if record64[0] != b"PK\x06\x06":
                raise BadZip("its zip64 record is none")
            disk, start_disk, here, entries, length, offset = record64[4:]
            end = end64
    if disk or start_disk or here != entries:
        raise BadZip("it is a part of several disks")
    shift = end - length - offset
    if shift < 0:
        raise BadZip(f"its directory is said to be {length:,} bytes at {offset:,}, beyond its end")
    return DirectoryPlace(offset + shift, length, entries, shift)


def read_directory(raw: bytes, place: DirectoryPlace) -> tuple[Entry, ...]:
    """Return the entries of a directory, whose bytes are `raw`.

    Raises:
        BadZip: Malformed, or more entries than any model has.
    """
    if place.entries > MAX_ENTRIES or place.length > MAX_DIRECTORY_BYTES:
        raise BadZip(f"it has {place.entries:,} entries in a directory of {place.length:,} bytes")
    found: list[Entry] = []
    position = 0
    while position < len(raw):
        if position + _CENTRAL.size > len(raw):
            raise BadZip("its directory is cut")
        fields = _CENTRAL.unpack_from(raw, position)
        if fields[0] != b"PK\x01\x02":
            raise BadZip(f"its directory has something else at byte {position:,}")
        _, _, _, flags, method, _, _, _, packed, unpacked, name_length, extra_length, comment_length = fields[:13]
        mode, offset = fields[15] >> 16, fields[16]
        start = position + _CENTRAL.size
        position = start + name_length + extra_length + comment_length
        if position > len(raw) or len(found) >= place.entries:
            raise BadZip("its directory is longer than it says")
        raw_name = raw[start : start + name_length]
        extra = raw[start + name_length : start + name_length + extra_length]
        unpacked, packed, offset = _zip64(extra, unpacked, packed, offset)
        name = raw_name.decode("utf-8" if flags & 0x800 else "cp437", "replace")
        found.append(Entry(name, raw_name, method, flags, packed, unpacked, offset + place.shift, mode))
    if len(found) != place.entries:
        raise BadZip(f"it says {place.entries:,} entries and has {len(found):,}")
    return tuple(found)


def data_offset(entry: Entry, local: bytes) -> int:
    """Return where an entry's data begin, from the LOCAL_HEADER_BYTES and name that stand before them.

    Raises:
        BadZip: The header is none, or names another file or method than the directory does.
    """
    if len(local) < _LOCAL.size:
        raise BadZip(f"no header stands before {entry.name!r}")
    mark, _, _, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack_from(local)
    if mark != b"PK\x03\x04":
        raise BadZip(f"no header stands before {entry.name!r}")
    name = local[_LOCAL.size : _LOCAL.size + name_length]
    if name != entry.raw_name:
        raise BadZip(f"{entry.name!r} of its directory is {name.decode('utf-8', 'replace')!r} in the file")
    if method != entry.method:
        raise BadZip(f"{entry.name!r} is packed in two ways, by directory {entry.method} and by header {method}")
    return entry.offset + _LOCAL.size + int(name_length) + int(extra_length)


def judge_entries(entries: Sequence[Entry], place: DirectoryPlace) -> Iterator[Observation]:
    """Yield what is wrong with entries: names that lead out, bombs, overlaps, names twice, links."""
    seen: set[str] = set()
    spans: list[tuple[int, int, str]] = []
    packed_total = unpacked_total = 0
    for entry in entries:
        name = entry.name.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":" or "\0" in name:
            yield Observation("archive-escape", f"entry {entry.name!r} leads out of the folder")
        if entry.is_link:
            yield Observation("archive-escape", f"entry {entry.name!r} is a link")
        key = name.lower()
        if key in seen:
            yield Observation("archive-lies", f"entry {entry.name!r} is there twice: readers take different ones")
        seen.add(key)
        if entry.is_encrypted:
            yield Observation("archive-unread", f"entry {entry.name!r} is encrypted")
        elif entry.method not in (STORED, DEFLATED):
            yield Observation("archive-unread", f"entry {entry.name!r} is packed by method {entry.method}")
        if entry.method == STORED and entry.packed != entry.unpacked and not entry.is_encrypted:
            yield Observation("archive-lies", f"entry {entry.name!r} is stored with two sizes")
        packed_total += entry.packed
        unpacked_total += entry.unpacked
        spans.append((entry.offset, entry.offset + LOCAL_HEADER_BYTES + len(entry.raw_name) + entry.packed, entry.name))
    # Entries that share bytes are how a small file unpacks to petabytes (https://www.bamsoftware.com/hacks/zipbomb/).
    end = 0
    for start, stop, shown in sorted(spans):
        if start < end:
            yield Observation("archive-bomb", f"entry {shown!r} overlaps another one")
            break
        end = stop
    if end > place.offset:
        yield Observation("archive-lies", "entries reach into the directory")
    if unpacked_total > MAX_UNPACKED_BYTES or unpacked_total > MAX_RATIO * max(packed_total, 1 << 16):
        yield Observation("archive-bomb", f"{packed_total:,} bytes unpack to {unpacked_total:,}")


def _zip64(extra: bytes, unpacked: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Return the three numbers, from the zip64 extra field where they say 0xffffffff."""
    values = [unpacked, packed, offset]
    if 0xFFFFFFFF not in values:
        return unpacked, packed, offset
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        field = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if kind != 1:
            continue
        for index, value in enumerate(values):
            if value == 0xFFFFFFFF:
                if len(field) < 8:
                    raise BadZip("a zip64 field is cut")
                (values[index],) = struct.unpack_from("<Q", field)
                field = field[8:]
        break
    return values[0], values[1], values[2]
