"""Incidents: what a worker did that only an attacker or a grave bug does, with the evidence, and where it is written.

    forbidden_call       a system call of the filter's flagrant list; the kernel held it, and it was never executed
    protocol_violation   a message out of its form, order or state
    corrupt_frame        an impossible frame

Each ends its worker at once, ends the job with an error that carries the incident (`details["incident"]`), is told as
an event, and is appended to a file for people who look later: one JSON document a line, never rewritten, up to
MAX_FILE_BYTES and one older file of that size. Everything in it is a number of ours, a word of ours, or cleaned text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import stat
from pathlib import Path
from typing import Any, Literal

import platformdirs

from wan_compat.protocol.errors import CorruptFrame, ForbiddenCall, ProtocolViolation, WanCompatError, clean_text
from wan_compat.sandbox.seccomp_notify import HeldCall

MAX_FILE_BYTES = 1 << 20
MAX_EVIDENCE_BYTES = 64

Kind = Literal["forbidden_call", "protocol_violation", "corrupt_frame"]


@dataclasses.dataclass(frozen=True)
class Incident:
    """One incident. `what` is a call's name, or what was expected and what came; `arguments` are register values."""

    worker: str
    kind: Kind
    what: str
    at: str  # UTC, ISO 8601
    state: str  # of the worker
    arguments: tuple[int, ...] = ()
    first_bytes: str = ""  # hexadecimal, where there were bytes
    done: str = "worker killed"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def forbidden_call(worker: str, state: str, call: HeldCall | None) -> ForbiddenCall:
    """Return the error for a held call; None is one that was withdrawn before it could be read."""
    name = call.name if call is not None else "unknown (withdrawn)"
    arguments = call.arguments if call is not None else ()
    incident = Incident(worker, "forbidden_call", name, _now(), state, arguments)
    shown = ", ".join(hex(value) for value in arguments)
    return ForbiddenCall(
        f"the worker made the forbidden system call {name}({shown}) while {state}, and was killed; it was not executed",
        hint="do not trust this model: nothing that it is needed for makes this call",
        details={"incident": incident.to_json()},
    )


def violation(worker: str, state: str, error: ProtocolViolation) -> Incident:
    """Return the incident of a broken message or frame, and put it into the error's details. Idempotent."""
    known = error.details.get("incident")
    if known is not None:
        return from_json(known)
    kind: Kind = "corrupt_frame" if isinstance(error, CorruptFrame) else "protocol_violation"
    evidence = str(error.details.get("first_bytes", ""))[: 2 * MAX_EVIDENCE_BYTES]
    incident = Incident(worker, kind, clean_text(error.message, 400), _now(), state, first_bytes=evidence)
    error.details["incident"] = incident.to_json()
    return incident


def of_error(error: WanCompatError) -> Incident | None:
    """Return the incident that an error carries."""
    known = error.details.get("incident")
    return None if known is None else from_json(known)


def from_json(data: dict[str, Any]) -> Incident:
    """Rebuild what `to_json` gave."""
    return Incident(**{**data, "arguments": tuple(data["arguments"])})


def audit_file() -> Path:
    """Return where incidents are written, in this user's state folder."""
    return Path(platformdirs.user_state_dir("wan-compat", appauthor=False)) / "incidents.jsonl"


def record(incident: Incident, path: Path | None = None) -> bool:
    """Append one incident; return whether it was written. Never raises: a full disk must not keep a worker alive."""
    path = path or audit_file()
    line = json.dumps(incident.to_json(), sort_keys=True).encode("ascii") + b"\n"
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The folder is the lock: the file itself may be renamed by another supervisor of this user.
            fcntl.flock(folder, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(path).st_size + len(line) > MAX_FILE_BYTES:
                    os.replace(path, path.with_suffix(".old.jsonl"))
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return False
                os.fchmod(descriptor, 0o600)
                return os.write(descriptor, line) == len(line)
            finally:
                os.close(descriptor)
        finally:
            os.close(folder)
    return False


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
