"""The audit log: every decision about trust, refusal, incident and installation, in a chain that shows changes.

    audit.jsonl   one line an entry: {"at", "event", "fields", "hash", "prev", "seq"}, keys sorted, ASCII
                  hash = SHA-256 of prev and of the line without its hash; prev is the hash of the line before
    audit.head    number, hash and end (in bytes) of the last entry, so that a removed last line shows too

    append, under the lock:   check the head against the last line -> write line, fsync -> replace head

A program killed in between leaves either a torn line after the head, which the next append cuts off, or a whole one,
which it adopts: the chain goes on in both cases. Anything else that disagrees is damage; then nothing more is appended,
because entries after it would make it look whole.

What it is good for: finding lines that were removed, changed, added or moved. It holds no secret: whoever can write as
this user can write a new chain from the start. Entries carry codes, names of models as the user gave them, hashes and
numbers; never a prompt and never text that a worker said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wan_compat.protocol.errors import (
    RefusedByPolicy,
    SandboxUnavailable,
    StateCorrupt,
    StateUnsafe,
    TrustRefused,
    WanCompatError,
    clean_text,
)
from wan_compat.supervisor.private_files import PrivateFolder, state_folder

LOG_NAME = "audit.jsonl"
HEAD_NAME = "audit.head"

MAX_LINE_BYTES = 8 << 10
MAX_LOG_BYTES = 64 << 20  # some 200,000 entries
MAX_FIELDS = 16
MAX_TEXT_CHARS = 1000

_GENESIS = "0" * 64
_MAX_HEAD_BYTES = 512


class AuditEvent(enum.StrEnum):
    TRUST_GRANTED = "trust_granted"
    TRUST_REFUSED = "trust_refused"
    TRUST_REMOVED = "trust_removed"
    FIRST_USE = "first_use"
    REFUSED = "refused"  # by policy; the error's code says which
    INCIDENT = "incident"
    INSTALLATION = "installation"
    DOWNGRADE = "downgrade"  # a weaker tier than the machine's usual one, or none


@dataclasses.dataclass(frozen=True)
class AuditEntry:
    """One entry. `hash` covers everything else in it."""

    seq: int
    at: str  # UTC, ISO 8601
    event: str
    fields: dict[str, Any]
    prev: str
    hash: str


@dataclasses.dataclass(frozen=True)
class AuditVerdict:
    """Whether the chain is whole. `problem` says what is not, `line` where (from 1), `remedy` what to do.

    `unfinished_bytes` were being written when their program was killed; they are cut off by the next entry.
    """

    intact: bool
    entries: int
    path: str
    problem: str = ""
    line: int | None = None
    remedy: str = ""
    unfinished_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class _Head:
    seq: int = 0
    hash: str = _GENESIS
    end: int = 0  # bytes of the log up to and with the last entry


class _Broken(Exception):
    """Where and how the chain breaks."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.line = problem, line


class AuditLog:
    """The log in one folder; None is this user's state folder. Safe among processes and threads."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or state_folder()

    def append(self, event: AuditEvent, **fields: Any) -> AuditEntry:
        """Write one entry durably and return it.

        Args:
            fields: Plain values or lists of text; text is cleaned and bounded.

        Raises:
            StateUnsafe: A file is not ours alone, cannot be written, or the log is full.
            StateCorrupt: The log is damaged; nothing was added to it.
        """
        with PrivateFolder(self._folder, create=True) as folder, folder.lock(LOG_NAME):
            try:
                return self._append(folder, event, fields)
            except _Broken as broken:
                raise StateCorrupt(
                    f"the audit log {self._folder / LOG_NAME} is damaged: {broken.problem}", hint=self._remedy()
                ) from broken
            except OSError as error:
                raise StateUnsafe(
                    f"the audit log {self._folder / LOG_NAME} cannot be written: {error.strerror}",
                    hint="free some space, or set XDG_STATE_HOME to a folder that you can write to",
                ) from error

    def verify(self) -> AuditVerdict:
        """Read the whole chain and say whether it is whole. Raises nothing for what it finds."""
        path, count = str(self._folder / LOG_NAME), 0
        try:
            with PrivateFolder(self._folder) as folder:
                if not folder.exists:
                    return AuditVerdict(True, 0, path)
                with folder.lock(LOG_NAME):
                    unfinished = 0
                    for entry in self._checked(folder):
                        if isinstance(entry, int):
                            unfinished = entry
                        else:
                            count += 1
                    return AuditVerdict(True, count, path, unfinished_bytes=unfinished)
        except _Broken as broken:
            return AuditVerdict(False, count, path, broken.problem, broken.line, self._remedy())
        except WanCompatError as error:
            return AuditVerdict(False, count, path, error.message, None, error.hint or "")
        except OSError as error:
            return AuditVerdict(False, count, path, f"it cannot be read: {error.strerror}", None, self._remedy())

    def entries(self) -> tuple[AuditEntry, ...]:
        """Return the entries up to the end or to the first break; `verify` tells which."""
        found: list[AuditEntry] = []
        with contextlib.suppress(_Broken, WanCompatError, OSError), PrivateFolder(self._folder) as folder:
            if folder.exists:
                with folder.lock(LOG_NAME):
                    found.extend(entry for entry in self._checked(folder) if isinstance(entry, AuditEntry))
        return tuple(found)

    # -- writing -------------------------------------------------------------------------------------------------

    def _append(self, folder: PrivateFolder, event: AuditEvent, fields: dict[str, Any]) -> AuditEntry:
        head = _read_head(folder)
        if head is None:
            # Before the first line, so that a log without a head is always one whose head was removed.
            existing = folder.open(LOG_NAME, os.O_RDONLY)
            if existing is not None:
                size = os.fstat(existing).st_size
                os.close(existing)
                if size:
                    raise _Broken(f"{HEAD_NAME} is missing, so that nobody can tell whether lines were removed")
            head = _Head()
            _write_head(folder, head)
        descriptor = folder.open(LOG_NAME, os.O_RDWR | os.O_APPEND | (0 if head.seq else os.O_CREAT))
        if descriptor is None:
            raise _Broken(f"it is missing; its head says {head.seq} entries")
        try:
            head = _continue_from(descriptor, head)
            entry, line = _make_entry(head, event, fields)
            if head.end + len(line) > MAX_LOG_BYTES:
                raise StateUnsafe(
                    f"the audit log {self._folder / LOG_NAME} has reached {MAX_LOG_BYTES >> 20} MiB",
                    hint=f"keep it elsewhere: move {LOG_NAME} and {HEAD_NAME} away together",
                )
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _write_head(folder, _Head(entry.seq, entry.hash, head.end + len(line)))
        return entry

    def _remedy(self) -> str:
        log, head = self._folder / LOG_NAME, self._folder / HEAD_NAME
        return f"find out who changed it; then start a new one: mv {log} {log}.broken; mv {head} {head}.broken"

    # -- reading -------------------------------------------------------------------------------------------------

    def _checked(self, folder: PrivateFolder) -> Iterator[AuditEntry | int]:
        """Yield the entries as far as the chain holds, and the bytes of an unfinished one. Raises _Broken."""
        head = _read_head(folder)
        descriptor = folder.open(LOG_NAME, os.O_RDONLY)
        if descriptor is None:
            if head is not None and head.seq:
                raise _Broken(f"it is missing; its head says {head.seq} entries")
            return
        with os.fdopen(descriptor, "rb") as file:
            if head is None:
                if file.read(1):
                    raise _Broken(f"{HEAD_NAME} is missing, so that nobody can tell whether lines were removed")
                return
            last = _Head()
            while line := file.readline(MAX_LINE_BYTES + 1):
                beyond = last.end >= head.end
                if beyond and not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
                    yield len(line)
                    return
                if last.seq > head.seq:
                    raise _Broken("lines follow that its head does not know", last.seq + 1)
                entry = _parse_line(line, last)
                last = _Head(entry.seq, entry.hash, last.end + len(line))
                if last.seq == head.seq and last != head:
                    raise _Broken("the head does not belong to this log", last.seq)
                yield entry
            if last.seq < head.seq:
                raise _Broken(f"{head.seq - last.seq} of {head.seq} entries are missing at the end", last.seq + 1)


def note(event: AuditEvent, *, folder: Path | None = None, **fields: Any) -> bool:
    """Append to a log (None: this user's) as well as possible; return whether it was written.

    For what has already happened, or opens no door: a job is not stopped because its refusal cannot be written down.
    """
    try:
        AuditLog(folder).append(event, **fields)
    except (WanCompatError, OSError):
        return False
    return True


def note_error(error: WanCompatError, *, model: str | None, mode: str) -> None:
    """Note how a job ended, if that is an incident, a refusal by policy or a sandbox too weak; by code, not by text.

    `incidents.jsonl` has an incident's evidence. A refusal of trust was noted where it was decided.
    """
    incident = error.details.get("incident")
    if incident is not None:
        what = incident["what"] if incident["kind"] == "forbidden_call" else None
        note(
            AuditEvent.INCIDENT,
            model=model,
            mode=mode,
            kind=incident["kind"],
            call=what,
            state=incident["state"],
            incident_at=incident["at"],
        )
    elif isinstance(error, RefusedByPolicy | SandboxUnavailable) and not isinstance(error, TrustRefused):
        note(AuditEvent.REFUSED, model=model, mode=mode, code=error.code, finding=error.details.get("finding"))


def _make_entry(head: _Head, event: AuditEvent, fields: dict[str, Any]) -> tuple[AuditEntry, bytes]:
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    limit = MAX_TEXT_CHARS
    while True:
        plain = {str(key)[:40]: _plain(value, limit) for key, value in list(fields.items())[:MAX_FIELDS]}
        body: dict[str, Any] = {
            "at": at,
            "event": str(event.value),
            "fields": plain,
            "prev": head.hash,
            "seq": head.seq + 1,
        }
        line = _canonical({**body, "hash": _hash(body)}) + b"\n"
        if len(line) <= MAX_LINE_BYTES:
            return AuditEntry(**{**body, "hash": _hash(body)}), line
        limit //= 2  # an escaped character takes up to twelve bytes, so the bound on characters is not one on bytes


def _plain(value: Any, limit: int) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, list | tuple):
        return [clean_text(str(item), limit).replace("\n", "\\n") for item in value[: min(50, limit)]]
    return clean_text(str(value), limit).replace("\n", "\\n")


def _parse_line(line: bytes, before: _Head) -> AuditEntry:
    """Check one line against the one before it. Raises _Broken."""
    number = before.seq + 1
    if not line.endswith(b"\n"):
        raise _Broken("it is cut off or too long", number)
    try:
        data = json.loads(line)
        entry = AuditEntry(**data)
    except (ValueError, TypeError, RecursionError) as error:
        raise _Broken("it is no entry", number) from error
    # The very bytes: a space more is a change too.
    if _canonical(data) + b"\n" != line:
        raise _Broken("it was changed", number)
    if (entry.seq, entry.prev) != (number, before.hash):
        raise _Broken(f"entry {number} should stand here, this is {entry.seq}: removed, moved or foreign lines", number)
    body = {key: value for key, value in data.items() if key != "hash"}
    if entry.hash != _hash(body):
        raise _Broken("it was changed", number)
    return entry


def _continue_from(descriptor: int, head: _Head) -> _Head:
    """Return the head to append to, after an unfinished entry was cut off or a finished one adopted. Raises _Broken."""
    size = os.fstat(descriptor).st_size
    if size < head.end:
        raise _Broken(f"{head.end - size} bytes are missing at its end")
    if head.seq:
        start = max(0, head.end - MAX_LINE_BYTES)
        tail = os.pread(descriptor, head.end - start, start)
        line = tail[tail.rfind(b"\n", 0, -1) + 1 :]
        try:
            last = json.loads(line)
            if last["seq"] != head.seq or last.pop("hash") != head.hash or _hash(last) != head.hash:
                raise ValueError("another entry")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _Broken("its last line is not the one that its head names", head.seq) from error
    rest = os.pread(descriptor, MAX_LINE_BYTES + 1, head.end)
    if not rest:
        return head
    if rest.endswith(b"\n") and rest.count(b"\n") == 1 and size == head.end + len(rest):
        entry = _parse_line(rest, head)  # written and synced; its program ended before the head was
        return _Head(entry.seq, entry.hash, size)
    if b"\n" in rest or len(rest) > MAX_LINE_BYTES:
        raise _Broken("lines follow that its head does not know", head.seq + 1)
    os.ftruncate(descriptor, head.end)
    os.fsync(descriptor)
    return head


def _read_head(folder: PrivateFolder) -> _Head | None:
    raw = folder.read(HEAD_NAME, _MAX_HEAD_BYTES)
    if raw is None:
        return None
    try:
        data = json.loads(raw)
        head = _Head(**data)
        if not (type(head.seq) is int and type(head.end) is int and type(head.hash) is str):
            raise ValueError("wrong types")
        if head.seq < 0 or head.end < 0 or (head.seq == 0) != (head == _Head()):
            raise ValueError("impossible numbers")
    except (ValueError, TypeError, RecursionError) as error:
        raise _Broken(f"{HEAD_NAME} is no head of a log") from error
    return head


def _write_head(folder: PrivateFolder, head: _Head) -> None:
    folder.replace(HEAD_NAME, _canonical(dataclasses.asdict(head)))


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def _hash(body: dict[str, Any]) -> str:
    # `prev` stands in the body, so that each hash covers the whole chain before it.
    return hashlib.sha256(_canonical(body)).hexdigest()
