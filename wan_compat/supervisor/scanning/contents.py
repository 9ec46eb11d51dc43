"""One file's bytes, or those of an archive's entry: their format, and what the readers of policies/scan say of them.

Reads as little as the format permits: the head and tail of weights, configurations and code whole. What comes out of an
archive is bounded in bytes and depth, and never written anywhere.
"""

from __future__ import annotations

import bz2
import dataclasses
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from typing import Protocol

from wan_compat.policies.scan import configs, notebook, pickle_opcodes, python_source, zip_directory
from wan_compat.policies.scan.formats import (
    COMPRESSED,
    HEAD_BYTES,
    NATIVE,
    TEXTUAL,
    ZIPPED,
    Format,
    detect,
    looks_like_python,
    promised,
    zip_format,
)
from wan_compat.policies.scan.restricted import read_restricted
from wan_compat.policies.scan.rules import Observation
from wan_compat.policies.scan.zip_directory import BadZip, Entry

MAX_TEXT_BYTES = 64 << 20  # the tokenizer.json of UMT5 has 17 MB
MAX_PICKLE_BYTES = 64 << 20  # of opcodes: torch's zips keep the tensors beside the pickle
MAX_ARCHIVE_DEPTH = 3
MAX_UNPACKED_BYTES = 256 << 20  # of one file, all its entries together
MAX_ENTRY_BYTES = 32 << 20
# What an xz header may ask of memory while it is unpacked: what `xz -9` needs.
MAX_XZ_MEMORY_BYTES = 72 << 20

_OTHER_ARCHIVES = {Format.TAR, Format.SEVEN_ZIP, Format.RAR, Format.ZSTD, Format.LZ4}
_MAY_RUN_CODE = {Format.HDF5, Format.ONNX, Format.TFLITE, Format.KERAS}
_RUN_CODE = {Format.TORCHSCRIPT, Format.TORCH_EXPORT}
# Entries of torch's zips that are no program: tensors as raw numbers, and words about them.
_STORAGE = re.compile(
    r"(?:[^/]+/)?(?:data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
_NPY_HEADER = re.compile(rb"'descr':\s*(.{0,4000}?),\s*'fortran_order'", re.DOTALL)


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


@dataclasses.dataclass
class Inspection:
    """What was found in one file. `whole` is its content where all of it was read, for who wants the hash too."""

    format: Format
    observations: list[Observation]
    whole: bytes | None = None


@dataclasses.dataclass
class _Budget:
    """What may still come out of one file's archives."""

    unpacked_bytes: int


def inspect_contents(contents: Contents, path: str) -> Inspection:
    """Say what a file is and does. `path` is relative to the repository; its last part is the name.

    Raises:
        OSError: The disk fails.
    """
    return _inspect(contents, path, 0, _Budget(MAX_UNPACKED_BYTES))


def _inspect(contents: Contents, path: str, depth: int, budget: _Budget) -> Inspection:
    name = path.rpartition("/")[2]
    head = contents.read(0, HEAD_BYTES)
    found = detect(head, name, contents.size)
    result = Inspection(found, [])
    say = result.observations
    place = None
    if found not in TEXTUAL and found is not Format.EMPTY:
        place = _directory(contents, say)
    if found is Format.ZIP or (place is not None and place.entries):
        if place is not None and found is not Format.ZIP:
            say.append(Observation("archive-hidden", f"a zip of {place.entries:,} entries lies in a {found} file"))
        result.format = _zip(contents, place, path, depth, budget, say, found)
        found = result.format
    if found in (Format.PICKLE, Format.TORCH_LEGACY):
        _pickle(contents, found, say)
    elif found not in ZIPPED and pickle_opcodes.is_pickle(head):
        if found in (Format.TEXT, Format.UNKNOWN):
            result.format = found = Format.PICKLE
            _pickle(contents, found, say)
        else:
            say.append(Observation("pickle-polyglot", f"it is a {found} file, and works as a pickle"))
            _pickle(contents, found, say)
    if found in TEXTUAL:
        result.format = _text(contents, path, head, found, result)
    elif found in COMPRESSED:
        _compressed(contents, path, depth, budget, result)
    else:
        say += _by_format(contents, head, found)
    if not promised(name, result.format):
        say.append(Observation("format-lies", f"{name} is {_shown(result.format)}"))
    return result


def _by_format(contents: Contents, head: bytes, found: Format) -> Iterator[Observation]:
    if found in NATIVE:
        yield Observation("code-native", f"compiled code ({found})")
    elif found in _RUN_CODE:
        yield Observation("format-runs-code", f"{found} carries a program beside its weights")
    elif found in _MAY_RUN_CODE:
        yield Observation("format-may-run-code", f"{found} can carry code or refer to other files")
    elif found in _OTHER_ARCHIVES:
        yield Observation("archive-unread", f"{found} is not looked into")
    elif found is Format.ZIP:
        yield Observation("archive-present", "a zip archive")
    elif found is Format.NPY:
        yield from _numpy(contents, head)
    elif found is Format.UNKNOWN:
        yield Observation("format-unknown", f"begins with {head[:8].hex(' ')}")


# -- pickles -----------------------------------------------------------------------------------------------------------


def _pickle(contents: Contents, found: Format, say: list[Observation], start: int = 0) -> None:
    raw = contents.read(0, MAX_PICKLE_BYTES)
    # torch's old format: magic, version, system, object, names of storages; then tensors, which are no opcodes.
    reports, end = pickle_opcodes.walk_stream(
        raw, start, limit=5 if found is Format.TORCH_LEGACY else pickle_opcodes.MAX_PICKLES
    )
    if found in (Format.PICKLE, Format.TORCH_LEGACY, Format.NPY):
        names = sum(len(report.names) for report in reports)
        say.append(Observation("pickle-present", f"a pickle, protocol {reports[0].protocol}, {names} imports"))
    say.extend(pickle_opcodes.observations(reports))
    if not reports[-1].stopped and len(raw) < contents.size:
        say.append(Observation("pickle-limit", f"only its first {len(raw):,} bytes were read"))
    if found is Format.PICKLE and reports[-1].stopped and end < contents.size:
        say.append(Observation("pickle-trailing", f"{contents.size - end:,} bytes stand after its end at byte {end:,}"))


def _numpy(contents: Contents, head: bytes) -> Iterator[Observation]:
    """An array of objects is a pickle after the header (numpy.lib.format)."""
    wide = head[6:7] in (b"\x02", b"\x03")
    start = (12 if wide else 10) + int.from_bytes(head[8 : 12 if wide else 10], "little")
    header = head[:start]
    described = _NPY_HEADER.search(header)
    if described is None or start > HEAD_BYTES:
        yield Observation("format-corrupt", "a numpy header that does not say what the array is of")
    elif b"O" in described[1]:
        yield Observation("numpy-objects", "an array of Python objects")
        found: list[Observation] = []
        _pickle(contents, Format.NPY, found, start)
        yield from found


# -- text --------------------------------------------------------------------------------------------------------------


def _text(contents: Contents, path: str, head: bytes, found: Format, result: Inspection) -> Format:
    say = result.observations
    raw = contents.read(0, MAX_TEXT_BYTES)
    if contents.size > MAX_TEXT_BYTES:
        say.append(Observation("scan-limit", f"only its first {MAX_TEXT_BYTES:,} bytes were read"))
    else:
        result.whole = raw
    name = path.rpartition("/")[2]
    if found in (Format.TEXT, Format.YAML) and looks_like_python(head) and python_source.parse(raw)[0] is not None:
        found = Format.PYTHON
    if found is Format.PYTHON:
        say.append(Observation("code-present", "Python source"))
        say += python_source.read_python(raw, name)
        tree, _ = python_source.parse(raw)
        if tree is not None and (advice := read_restricted(tree)) is not None:
            say.append(advice)
    elif found is Format.NOTEBOOK:
        say.append(Observation("code-present", "a notebook"))
        say += notebook.read_notebook(raw)
    elif found in (Format.SCRIPT, Format.SOURCE):
        if ".git/hooks/" in path and name.endswith(".sample"):
            say.append(Observation("code-sample-hook", "one of git's own samples"))
        else:
            say.append(Observation("code-present", "a script" if found is Format.SCRIPT else "source code"))
            if ".git/hooks/" in path:
                say.append(Observation("code-runs-by-name", "git runs it"))
    elif found is Format.JSON:
        say += configs.read_json(raw, path)
    elif found is Format.YAML:
        say += configs.read_yaml(raw)
    elif found is Format.TEMPLATE:
        say += configs.read_template(raw.decode("utf-8", "replace"))
    elif found is Format.LFS_POINTER:
        say.append(Observation("lfs-pointer", "a Git LFS pointer instead of the file"))
    return found


# -- archives ----------------------------------------------------------------------------------------------------------


def _directory(contents: Contents, say: list[Observation]) -> zip_directory.DirectoryPlace | None:
    length = min(contents.size, zip_directory.TAIL_BYTES)
    try:
        place = zip_directory.find_directory(contents.read(contents.size - length, length), contents.size)
        # Tensors may hold an end record by chance; a directory in front of it they do not.
        if place is not None and place.entries and contents.read(place.offset, 4) != b"PK\x01\x02":
            return None
        return place
    except BadZip as error:
        if contents.read(0, 2) == b"PK":
            say.append(Observation("archive-lies", str(error)))
        return None


def _zip(
    contents: Contents,
    place: zip_directory.DirectoryPlace | None,
    path: str,
    depth: int,
    budget: _Budget,
    say: list[Observation],
    found: Format,
) -> Format:
    if place is None:
        say.append(Observation("archive-unread", "a zip without a directory that can be read"))
        return found
    try:
        entries = zip_directory.read_directory(
            contents.read(place.offset, min(place.length, zip_directory.MAX_DIRECTORY_BYTES)), place
        )
    except BadZip as error:
        say.append(Observation("archive-lies", str(error)))
        return found
    if found is Format.ZIP and place.shift:
        say.append(Observation("archive-hidden", f"{place.shift:,} bytes stand before the archive"))
    kind = zip_format(frozenset(entry.name for entry in entries)) if found is Format.ZIP else found
    say.extend(list(zip_directory.judge_entries(entries, place))[:50])
    if depth >= MAX_ARCHIVE_DEPTH:
        say.append(Observation("archive-unread", f"archives within archives, more than {MAX_ARCHIVE_DEPTH} deep"))
        return kind
    for entry in entries:
        if entry.is_folder and not entry.unpacked:
            continue
        try:
            say.extend(_entry(contents, entry, kind, path, depth, budget))
        except BadZip as error:
            say.append(Observation("archive-lies", str(error)))
    return kind


def _entry(
    contents: Contents, entry: Entry, kind: Format, path: str, depth: int, budget: _Budget
) -> Iterator[Observation]:
    length = zip_directory.LOCAL_HEADER_BYTES + len(entry.raw_name)
    start = zip_directory.data_offset(entry, contents.read(entry.offset, length))
    if entry.is_encrypted or (kind is Format.TORCH_ZIP and _STORAGE.fullmatch(entry.name)):
        return
    inside: Contents
    if entry.method == zip_directory.STORED:
        inside = Part(contents, start, entry.packed)
    elif entry.method == zip_directory.DEFLATED:
        limit = min(MAX_ENTRY_BYTES, budget.unpacked_bytes)
        raw, more = _inflate(contents, start, entry.packed, limit, zlib.decompressobj(-zlib.MAX_WBITS))
        budget.unpacked_bytes -= len(raw)
        if more:
            yield Observation("scan-limit", f"{entry.name}: only its first {len(raw):,} bytes were looked at")
        elif len(raw) != entry.unpacked:
            yield Observation(
                "archive-lies", f"{entry.name}: {len(raw):,} bytes come out, {entry.unpacked:,} were said"
            )
        inside = BytesContents(raw)
    else:
        return
    yield from _within(_inspect(inside, f"{path}!/{entry.name}", depth + 1, budget), entry.name, kind)


def _within(inner: Inspection, name: str, kind: Format) -> Iterator[Observation]:
    """What was found in an entry, told with its name. Lines are those of the entry, not of the archive."""
    for item in inner.observations:
        if kind in (Format.TORCH_ZIP, Format.NPZ) and item.rule in ("format-unknown", "format-lies"):
            continue  # raw tensors
        where = f"{name}, line {item.line}" if item.line is not None else name
        yield Observation(item.rule, f"{where}: {item.message}")


def _compressed(contents: Contents, path: str, depth: int, budget: _Budget, result: Inspection) -> None:
    say = result.observations
    if result.format is Format.ZLIB and ".git/objects/" in path:
        result.format = Format.GIT
        return
    if depth >= MAX_ARCHIVE_DEPTH:
        say.append(Observation("archive-unread", f"archives within archives, more than {MAX_ARCHIVE_DEPTH} deep"))
        return
    limit = min(MAX_ENTRY_BYTES, budget.unpacked_bytes)
    try:
        raw, more = _inflate(contents, 0, contents.size, limit, _machine(result.format))
    except BadZip as error:
        say.append(Observation("archive-unread", str(error)))
        return
    budget.unpacked_bytes -= len(raw)
    say.append(Observation("archive-present", f"{result.format} of {len(raw):,} bytes{' or more' if more else ''}"))
    if more:
        say.append(Observation("scan-limit", f"only the first {len(raw):,} unpacked bytes were looked at"))
        if len(raw) > zip_directory.MAX_RATIO * contents.size:
            say.append(Observation("archive-bomb", f"{contents.size:,} bytes unpack to more than {len(raw):,}"))
    name = path.rpartition("/")[2].rpartition(".")[0] or "content"
    say.extend(_within(_inspect(BytesContents(raw), f"{path}!/{name}", depth + 1, budget), name, result.format))


class _Machine(Protocol):
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


def _machine(found: Format) -> _Machine:
    if found is Format.BZIP2:
        return bz2.BZ2Decompressor()
    if found is Format.XZ:
        return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=MAX_XZ_MEMORY_BYTES)
    return zlib.decompressobj(zlib.MAX_WBITS | (16 if found is Format.GZIP else 0))


def _inflate(contents: Contents, start: int, packed: int, limit: int, machine: _Machine) -> tuple[bytes, bool]:
    """Return at most `limit` unpacked bytes, and whether there is more, behind them or behind the end of the stream.

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
    behind = machine.eof and (position < end or bool(machine.unused_data))
    return raw[:limit], len(raw) > limit or behind


def _shown(found: Format) -> str:
    if found is Format.UNKNOWN:
        return "of no known format"
    return f"{'an' if found[:1] in 'aeiou' else 'a'} {found.replace('_', ' ')} file"
