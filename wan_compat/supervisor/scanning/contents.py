"""One file's bytes, or those of an archive's entry: their format, and what the readers of policies/scan say of them.

Reads as little as the format permits: the head and tail of weights, configurations and code whole. What comes out of an
archive is bounded in bytes and depth, and never written anywhere.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections import Counter
from collections.abc import Iterator

from wan_compat.policies.scan import configs, notebook, numpy_header, pickle_opcodes, python_source, zip_directory
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
from wan_compat.supervisor.scanning.sources import Budget, BytesContents, Contents, Part, inflate, machine_for

MAX_TEXT_BYTES = 64 << 20  # the tokenizer.json of UMT5 has 17 MB
MAX_PICKLE_BYTES = 64 << 20  # of opcodes: torch's zips keep the tensors beside the pickle
MAX_ARCHIVE_DEPTH = 3
MAX_PER_RULE = 10  # of what is wrong with an archive's directory
MAX_ENTRY_BYTES = 32 << 20

_OTHER_ARCHIVES = {Format.TAR, Format.SEVEN_ZIP, Format.RAR, Format.ZSTD, Format.LZ4}
_MAY_RUN_CODE = {Format.HDF5, Format.ONNX, Format.TFLITE, Format.KERAS}
_RUN_CODE = {Format.TORCHSCRIPT, Format.TORCH_EXPORT}
_TORCH_ZIPS = (Format.TORCH_ZIP, Format.TORCHSCRIPT, Format.TORCH_EXPORT)
# Entries of torch's zips that are no program: tensors as raw numbers, and words about them.
_STORAGE = re.compile(
    r"(?:[^/]+/)?(?:data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)


@dataclasses.dataclass
class Inspection:
    """What was found in one file. `whole` is its content where all of it was read, for who wants the hash too."""

    format: Format
    observations: list[Observation]
    whole: bytes | None = None


def inspect_contents(contents: Contents, path: str, budget: Budget | None = None) -> Inspection:
    """Say what a file is and does.

    Args:
        path: Relative to the repository; its last part is the name.
        budget: What the whole scan may spend; what this file spends is taken from it.

    Raises:
        OSError: The disk fails.
    """
    return _inspect(contents, path, 0, budget or Budget())


def _inspect(contents: Contents, path: str, depth: int, budget: Budget) -> Inspection:
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
        _pickle(contents, found, say, budget)
    elif found not in ZIPPED and found is not Format.EMPTY and _works_as_pickle(head, say, budget):
        if found in (Format.TEXT, Format.UNKNOWN):
            result.format = found = Format.PICKLE
        else:
            say.append(Observation("pickle-polyglot", f"it is a {found} file, and works as a pickle"))
        _pickle(contents, found, say, budget)
    if found in TEXTUAL:
        result.format = _text(contents, path, head, found, result, budget)
    elif found in COMPRESSED:
        _compressed(contents, path, depth, budget, result)
    else:
        say += _by_format(contents, head, found, budget)
    if not promised(name, result.format):
        say.append(Observation("format-lies", f"{name} is {_shown(result.format)}"))
    return result


def _by_format(contents: Contents, head: bytes, found: Format, budget: Budget) -> Iterator[Observation]:
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
        yield from _numpy(contents, head, budget)
    elif found is Format.UNKNOWN:
        yield Observation("format-unknown", f"begins with {head[:8].hex(' ')}")


# -- pickles -----------------------------------------------------------------------------------------------------------


def _works_as_pickle(head: bytes, say: list[Observation], budget: Budget) -> bool:
    if budget.opcodes <= 0:
        say.append(Observation("scan-limit", "not tried as a pickle: too many opcodes stood before it"))
        return False
    trial = pickle_opcodes.walk(head, max_opcodes=min(pickle_opcodes.TRIAL_OPCODES, budget.opcodes))
    budget.opcodes -= trial.opcodes
    return pickle_opcodes.reads_as_pickle(trial, len(head))


def _pickle(contents: Contents, found: Format, say: list[Observation], budget: Budget, start: int = 0) -> None:
    raw = contents.read(0, MAX_PICKLE_BYTES)
    # torch's old format: magic, version, system, object, names of storages; then tensors, which are no opcodes.
    reports, end = pickle_opcodes.walk_stream(
        raw,
        start,
        limit=5 if found is Format.TORCH_LEGACY else pickle_opcodes.MAX_PICKLES,
        max_opcodes=max(0, min(pickle_opcodes.MAX_OPCODES, budget.opcodes)),
    )
    budget.opcodes -= sum(report.opcodes for report in reports)
    if found in (Format.PICKLE, Format.TORCH_LEGACY, Format.NPY):
        names = sum(len(report.names) for report in reports)
        say.append(Observation("pickle-present", f"a pickle, protocol {reports[0].protocol}, {names} imports"))
    say.extend(pickle_opcodes.observations(reports))
    if not reports[-1].stopped and len(raw) < contents.size:
        say.append(Observation("pickle-limit", f"only its first {len(raw):,} bytes were read"))
    if found is Format.PICKLE and reports[-1].stopped and end < contents.size:
        say.append(Observation("pickle-trailing", f"{contents.size - end:,} bytes stand after its end at byte {end:,}"))


def _numpy(contents: Contents, head: bytes, budget: Budget) -> Iterator[Observation]:
    """An array of objects is a pickle after the header (numpy.lib.format)."""
    start = numpy_header.data_start(head)
    plain = numpy_header.is_plain(head[:start]) if start <= len(head) else None
    if plain is None:
        yield Observation("format-corrupt", "a numpy header that does not say what the array is of")
    elif not plain:
        yield Observation("numpy-objects", "an array of Python objects")
    if not plain and start < contents.size:
        found: list[Observation] = []
        _pickle(contents, Format.NPY, found, budget, start)
        yield from found


# -- text --------------------------------------------------------------------------------------------------------------


def _text(contents: Contents, path: str, head: bytes, found: Format, result: Inspection, budget: Budget) -> Format:
    say = result.observations
    raw = contents.read(0, MAX_TEXT_BYTES)
    if contents.size > MAX_TEXT_BYTES:
        say.append(Observation("scan-limit", f"only its first {MAX_TEXT_BYTES:,} bytes were read"))
    else:
        result.whole = raw
    name = path.rpartition("/")[2]
    if found is Format.PYTHON or (found in (Format.TEXT, Format.YAML) and looks_like_python(head)):
        found = _python(raw, name, found, say, budget)
    if found is Format.PYTHON:
        return found
    if found is Format.NOTEBOOK and not budget.take_python(len(raw)):
        say.append(Observation("scan-limit", "a notebook that is not read: more source than one scan reads"))
        return found
    if found is Format.NOTEBOOK:
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


def _python(raw: bytes, name: str, found: Format, say: list[Observation], budget: Budget) -> Format:
    """Read source; or text that may be source, which it is when it parses. Returns its format."""
    if not budget.take_python(len(raw)):
        say.append(Observation("code-present", "Python source, or text that may be"))
        say.append(Observation("scan-limit", "not read: more source stood before it than one scan reads"))
        return found
    tree, problem = python_source.parse(raw)
    if tree is None and found is not Format.PYTHON:
        return found
    say.append(Observation("code-present", "Python source"))
    say += python_source.read_parsed(raw, name, tree, problem)
    if tree is not None and (advice := read_restricted(tree)) is not None:
        say.append(advice)
    return Format.PYTHON


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
    budget: Budget,
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
    counts: Counter[str] = Counter()
    for item in zip_directory.judge_entries(entries, place):
        counts[item.rule] += 1
        if counts[item.rule] <= MAX_PER_RULE:
            say.append(item)
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
    contents: Contents, entry: Entry, kind: Format, path: str, depth: int, budget: Budget
) -> Iterator[Observation]:
    length = zip_directory.LOCAL_HEADER_BYTES + len(entry.raw_name)
    start = zip_directory.data_offset(entry, contents.read(entry.offset, length))
    if entry.is_encrypted or (kind in _TORCH_ZIPS and _STORAGE.fullmatch(entry.name)):
        return
    inside: Contents
    if entry.method == zip_directory.STORED:
        inside = Part(contents, start, entry.packed)
        budget.stored_bytes -= min(inside.size, MAX_TEXT_BYTES)
        if budget.stored_bytes < 0:
            yield Observation(
                "scan-limit", f"{entry.name}: not looked at, more was stored before it than one scan reads"
            )
            return
    elif entry.method == zip_directory.DEFLATED:
        limit = min(MAX_ENTRY_BYTES, budget.unpacked_bytes)
        raw, more = inflate(contents, start, entry.packed, limit, zlib.decompressobj(-zlib.MAX_WBITS))
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
        if kind in (*_TORCH_ZIPS, Format.NPZ) and item.rule in ("format-unknown", "format-lies"):
            continue  # raw tensors
        where = f"{name}, line {item.line}" if item.line is not None else name
        yield Observation(item.rule, f"{where}: {item.message}")


def _compressed(contents: Contents, path: str, depth: int, budget: Budget, result: Inspection) -> None:
    say = result.observations
    if result.format is Format.ZLIB and ".git/objects/" in path:
        result.format = Format.GIT
        return
    if depth >= MAX_ARCHIVE_DEPTH:
        say.append(Observation("archive-unread", f"archives within archives, more than {MAX_ARCHIVE_DEPTH} deep"))
        return
    limit = min(MAX_ENTRY_BYTES, budget.unpacked_bytes)
    try:
        raw, more = inflate(contents, 0, contents.size, limit, machine_for(result.format))
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


def _shown(found: Format) -> str:
    if found is Format.UNKNOWN:
        return "of no known format"
    return f"{'an' if found[:1] in 'aeiou' else 'a'} {found.replace('_', ' ')} file"
