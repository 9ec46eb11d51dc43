"""The lines of a batch's journal: one record each, with a checksum, so that a line that was cut off is known for one.

    CRC32 RECORD\n        eight hex digits, a space, one JSON object

The first record is the header. A record that is about an item carries its key and `n`, which is one more than that of
the record about this item before it, in whichever journal of the folder that is. Whoever writes one holds the item's
lease, so `n` orders them, and no clock has to.
"""

from __future__ import annotations

import zlib
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from wan_compat.protocol.base import Count, Seconds, Value

JOURNAL_VERSION = 1
JOURNAL_KIND = "wan-compat batch journal"
MAX_RECORD_BYTES = 64 << 10

Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{24}$")]
Text = Annotated[str, Field(max_length=4000)]
ShortText = Annotated[str, Field(max_length=200)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Step = Annotated[dict[str, Annotated[str, Field(max_length=1000)]], Field(max_length=4)]


class Header(Value):
    """Who may read the rest. Checked before anything else of the journal is looked at."""

    kind: Literal["wan-compat batch journal"] = "wan-compat batch journal"
    version: Count = JOURNAL_VERSION
    shard: ShortText
    created_unix_s: Seconds
    program: ShortText


class RunStarted(Value):
    type: Literal["run"] = "run"
    run: ShortText
    pid: Count
    host: ShortText
    at: Seconds
    batch: Text
    items: Count


class RunEnded(Value):
    type: Literal["end"] = "end"
    run: ShortText
    at: Seconds
    why: ShortText


class Started(Value):
    """An attempt begins. The output did not exist at this moment: what has its name later is this item's.

    `replaces`: something else had it, which was to be overwritten. What stands there later tells by its sidecar alone
    whose it is.
    """

    type: Literal["started"] = "started"
    key: Key
    n: Count
    run: ShortText
    at: Seconds
    output: ShortText
    attempt: Count = 1
    replaces: bool = False


class Done(Value):
    """The output stands, whole and durable. `found`: it stood there without a record, after a crash."""

    type: Literal["done"] = "done"
    key: Key
    n: Count
    run: ShortText
    at: Seconds
    output: ShortText
    sha256: Sha256
    bytes: Count
    found: bool = False
    seconds: Seconds = 0.0
    width: Count = 0
    height: Count = 0
    num_frames: Count = 0
    fps: Seconds = 0.0
    tier: ShortText = ""
    timings: dict[ShortText, Seconds] = Field(default_factory=dict, max_length=32)
    recovery: tuple[Step, ...] = Field(default=(), max_length=16)
    warnings: Count = 0


class Failed(Value):
    type: Literal["failed"] = "failed"
    key: Key
    n: Count
    run: ShortText
    at: Seconds
    code: ShortText
    message: Text
    attempt: Count = 1
    seconds: Seconds = 0.0
    kept: Text | None = None


class Released(Value):
    """An item is waiting again: its attempt was interrupted, or its video is gone."""

    type: Literal["released"] = "released"
    key: Key
    n: Count
    run: ShortText
    at: Seconds
    why: ShortText


class Paused(Value):
    """The disk is full (`room` false), or has room again."""

    type: Literal["disk"] = "disk"
    run: ShortText
    at: Seconds
    room: bool


class Learned(Value):
    """A recovery that helped: the following items of the model start with these fields."""

    type: Literal["learned"] = "learned"
    run: ShortText
    at: Seconds
    model: Text
    fields: dict[ShortText, bool | ShortText] = Field(max_length=8)
    key: Key


OfItem = Started | Done | Failed | Released
Record = Annotated[
    RunStarted | RunEnded | Started | Done | Failed | Released | Paused | Learned, Field(discriminator="type")
]
_record: TypeAdapter[Any] = TypeAdapter(Record)


class BadLine(ValueError):
    """A line that is not a whole record."""


class UnknownRecord(ValueError):
    """A whole line with something in it that this version does not know."""


class OtherVersion(ValueError):
    """A whole journal, of a version that this program does not read."""


def encode(record: Value) -> bytes:
    """Return the line of a record, with its end."""
    text = record.model_dump_json(exclude_defaults=False).encode("utf-8", "backslashreplace")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode_header(line: bytes) -> Header:
    """Return the header in a line.

    Raises:
        BadLine: It is none.
        OtherVersion: It is one, of another version.
    """
    text = _checked(line)
    try:
        # Only what every version has, so that another one is known as that and not as damage.
        found = TypeAdapter(dict[str, Any]).validate_json(text)
        if found.get("kind") != JOURNAL_KIND or type(found.get("version")) is not int:
            raise BadLine("is not the header of a journal")
        if found["version"] != JOURNAL_VERSION:
            raise OtherVersion(f"version {found['version']}; this program reads version {JOURNAL_VERSION}")
        return Header.model_validate_json(text)
    except ValidationError as error:
        raise BadLine("is not the header of a journal") from error


def decode(line: bytes) -> Any:
    """Return the record in a line, its end included. Raises BadLine, UnknownRecord."""
    text = _checked(line)
    try:
        return _record.validate_json(text)
    except ValidationError as error:
        raise UnknownRecord("holds a record that this version does not know") from error


def _checked(line: bytes) -> bytes:
    if not line.endswith(b"\n") or line[8:9] != b" " or len(line) > MAX_RECORD_BYTES:
        raise BadLine("is cut off")
    text = line[9:-1]
    if line[:8] != b"%08x" % zlib.crc32(text):
        raise BadLine("does not agree with its checksum")
    return text
