"""Reads a batch file, within limits: JSON Lines, CSV, YAML or plain text. Everything that is wrong with it, at once.

jsonl   one object per line; the first one may be {"defaults": {...}}
csv     a row of names, then one video per row; an empty cell says nothing (.tsv: tabs)
yaml    a list, or `defaults:` and `items:`
txt     one prompt per line; a line that begins with # is a remark
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wan_compat.policies.batch.fields import settle_names
from wan_compat.policies.batch.items import MAX_FIELDS, MAX_ITEMS, MAX_PROBLEMS, Line, Problem
from wan_compat.protocol.errors import BatchInvalid, InvalidRequest, clean_text
from wan_compat.supervisor.inspection.json_document import decode
from wan_compat.supervisor.inspection.problems import Defect

MAX_FILE_BYTES = 32 << 20
MAX_LINE_BYTES = 256 << 10  # two prompts of the greatest length, in characters of four bytes
MAX_LINE_VALUES = 2000

FORMATS = ("jsonl", "csv", "tsv", "yaml", "txt")
_BY_SUFFIX = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".yaml": "yaml", ".yml": "yaml",
    ".txt": "txt", ".text": "txt",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class BatchFile:
    """What a file says. `name` is how messages call it; `folder` is what relative paths in it start from."""

    name: str
    path: str
    folder: str
    defaults: Line
    lines: tuple[Line, ...]
    problems: tuple[Problem, ...]


def read_batch(path: str | os.PathLike[str], format_name: str | None = None) -> BatchFile:
    """Read a batch file.

    Args:
        format_name: One of FORMATS; None goes by the name's ending.

    Raises:
        InvalidRequest: It cannot be read, is too large, or its format is not known.
    """
    asked = os.fspath(path)
    raw = _read(asked)  # first: of a file that is not there, its format is no matter
    form = format_name or _BY_SUFFIX.get(os.path.splitext(asked)[1].lower())
    if form not in FORMATS:
        raise InvalidRequest(
            f"{asked!r} does not say in which format it is", hint=f"name it with --format-in: {', '.join(FORMATS)}"
        )
    assert form is not None
    return parse_batch(raw, asked, form)


def parse_batch(raw: bytes, asked: str, form: str) -> BatchFile:
    """Return what the content of a file says; `asked` is its name, `form` one of FORMATS.

    Raises:
        BatchInvalid: It is no text.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BatchInvalid.of([Problem(line, "", "is not UTF-8").describe(asked)]) from error
    reader: Callable[[str, _Found], None]
    if form == "yaml":
        from wan_compat.supervisor.batch.reading_yaml import read_yaml as reader
    else:
        reader = {"jsonl": _jsonl, "csv": _csv, "tsv": _tsv, "txt": _plain}[form]
    found = _Found()
    reader(text, found)
    return BatchFile(
        name=asked,
        path=os.path.abspath(asked),
        folder=os.path.dirname(os.path.realpath(asked)),
        defaults=found.defaults,
        lines=tuple(found.lines),
        problems=tuple(found.problems),
    )


class _Found:
    """What a reader has found so far."""

    def __init__(self) -> None:
        self.defaults = Line(0, {})
        self.lines: list[Line] = []
        self.problems: list[Problem] = []

    @property
    def full(self) -> bool:
        """There is no sense in reading on."""
        return len(self.problems) > MAX_PROBLEMS or len(self.lines) > MAX_ITEMS

    def wrong(self, line: int, why: str, field: str = "") -> None:
        self.problems.append(Problem(line, field, why))

    def add(self, line: int, fields: Mapping[str, Any]) -> None:
        if len(fields) > MAX_FIELDS:
            self.wrong(line, f"has {len(fields)} fields; {MAX_FIELDS} are more than there are")
        elif len(self.lines) >= MAX_ITEMS:
            self.wrong(line, f"is one more than {MAX_ITEMS} lines")
            self.lines.append(Line(line, {}))  # for `full`
        else:
            self.lines.append(Line(line, fields))


def _read(path: str) -> bytes:
    try:
        # Not blocking: a pipe's other end is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it has a NUL in its name"
        raise InvalidRequest(f"{path!r} cannot be read: {reason}", hint="check the path") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidRequest(f"{path!r} is not a regular file")
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidRequest(f"{path!r} is larger than {MAX_FILE_BYTES >> 20} MiB", hint="part it into several batches")
    return raw


def _numbered(text: str, found: _Found) -> Iterator[tuple[int, str]]:
    # Not splitlines: a prompt may have U+2028 or a form feed in it, and editors count otherwise.
    for number, line in enumerate(text.split("\n"), 1):
        if found.full:
            return
        line = line.removesuffix("\r")
        if len(line) > MAX_LINE_BYTES or len(line.encode("utf-8", "surrogatepass")) > MAX_LINE_BYTES:
            found.wrong(number, f"is longer than {MAX_LINE_BYTES} bytes")
        elif line.strip():
            yield number, line


def _plain(text: str, found: _Found) -> None:
    for number, line in _numbered(text, found):
        if not line.lstrip().startswith("#"):
            found.add(number, {"prompt": line.strip()})


def _jsonl(text: str, found: _Found) -> None:
    for number, line in _numbered(text, found):
        try:
            fields = decode(line.encode(), "the line", MAX_LINE_VALUES).document
        except Defect as defect:
            found.wrong(number, defect.finding.message.removeprefix("the line "))
            continue
        if set(fields) == {"defaults"}:
            take_defaults(found, number, fields["defaults"])
        else:
            found.add(number, fields)


def take_defaults(found: _Found, number: int, defaults: object) -> None:
    """Take an object as defaults, if it comes first."""
    if not isinstance(defaults, dict) or len(defaults) > MAX_FIELDS:
        found.wrong(number, f"must be an object of at most {MAX_FIELDS} fields", "defaults")
    elif found.lines or found.defaults.number:
        found.wrong(number, "must come once, before all others", "defaults")
    else:
        found.defaults = Line(number, defaults)


def _csv(text: str, found: _Found) -> None:
    head = text.lstrip().split("\n", 1)[0]
    # What spreadsheets write where the comma is the decimal sign.
    _table(text, found, ";" if ";" in head and "," not in head else ",")


def _tsv(text: str, found: _Found) -> None:
    _table(text, found, "\t")


def _table(text: str, found: _Found, delimiter: str) -> None:
    # newline="": line breaks within quoted cells are the reader's to understand.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    begins = 1
    while not found.full:
        begins = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found.wrong(begins, f"is not a row of a table: {clean_text(str(error), 200)}")
            return  # where the next row begins is not known
        if not any(cell.strip() for cell in row):
            continue
        if not names:
            names = [cell.strip() for cell in row]
            if len(names) > MAX_FIELDS or len(set(names)) != len(names) or not all(names):
                found.wrong(begins, f"must have 1 to {MAX_FIELDS} different names of columns")
                return
            # Here once, and not for each row.
            _, wrong = settle_names(Line(begins, dict.fromkeys(names)))
            if wrong:
                found.problems += wrong
                found.wrong(begins, "must name the columns")
                return
        elif len(row) > len(names):
            found.wrong(begins, f"has {len(row)} cells, and there are {len(names)} columns")
        else:
            found.add(begins, {name: cell for name, cell in zip(names, row, strict=False) if cell.strip()})
