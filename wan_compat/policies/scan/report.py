"""What a scan found, as values: for the command line, for programs, and for SARIF."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

from wan_compat.policies.findings import Finding
from wan_compat.policies.scan.risk import RiskLevel, SecurityValidation, exit_code, risk_level, validate

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ScannedFile:
    """One regular file. `path` is relative and cleaned, `sha256` None for weights that were not hashed."""

    path: str
    sha256: str | None
    format: str
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "sha256": self.sha256, "format": self.format, "bytes": self.bytes}


@dataclasses.dataclass(frozen=True)
class ScanReport:
    """The verdict on one folder or file, with what it rests on.

    `content_hash` is `content_hash(...)` below over all files, None unless every one was hashed.
    """

    root: str
    findings: tuple[Finding, ...]
    files: tuple[ScannedFile, ...]
    content_hash: str | None

    @property
    def risk_level(self) -> RiskLevel:
        return risk_level(self.findings)

    @property
    def is_safe(self) -> bool:
        """Nothing but remarks was found. Advice: nothing is loaded because of it."""
        return self.risk_level == "low"

    @property
    def exit_code(self) -> int:
        return exit_code(self.findings)

    def validation(self) -> SecurityValidation:
        return validate(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the document of `wan-compat scan --json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "is_safe": self.is_safe,
            "risk_level": self.risk_level,
            "findings": [
                item.to_json() | {"path": item.path, "line": item.line, "rule": item.rule} for item in self.findings
            ],
            "files": [file.to_json() for file in self.files],
            "content_hash": self.content_hash,
        }


def content_hash(files: Iterable[tuple[bytes, int, str]]) -> str:
    """Return one SHA-256 over (path as bytes, size, sha256) of all files, in the order of their paths.

    Lengths stand before what varies, so that no two sets of files give the same bytes. Modes, owners, times and links
    do not count: a Hugging Face snapshot and a plain copy of it have the same hash.
    """
    digest = hashlib.sha256(b"wan-compat content 1\n")
    for path, size, sha256 in sorted(files):
        digest.update(b"%d:%b:%d:%b\n" % (len(path), path, size, sha256.encode()))
    return digest.hexdigest()
