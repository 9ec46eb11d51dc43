"""The verdict of a scan. It advises a person, and opens no door: loading is decided elsewhere (SECURITY.md, T18).

low      nothing but remarks
medium   warnings, code or pickles that nothing dangerous was seen in, or files that could not be judged
high     code or pickles that do harm or hide what they do; paths that lead out; archives built to harm
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from wan_compat.policies.findings import FINDINGS, Finding, Severity
from wan_compat.protocol.errors import ModelInvalid, RefusedByPolicy

RiskLevel = Literal["low", "medium", "high"]

EXIT_SAFE, EXIT_FINDINGS = 0, 1
MAX_RISKS = 100

# Errors of these codes are meant to harm, although acts that meet them call the model unreadable.
_HARMFUL = frozenset({"path_escape"})


@dataclasses.dataclass(frozen=True)
class SecurityValidation:
    """The contract's answer about code or a model: whether it seems safe, how risky, why, and what helps."""

    is_safe: bool
    risk_level: str  # a RiskLevel
    detected_risks: list[str] = dataclasses.field(default_factory=list)
    mitigation_strategies: list[str] = dataclasses.field(default_factory=list)


def risk_level(findings: Iterable[Finding]) -> RiskLevel:
    """Return the level of the worst finding."""
    level: RiskLevel = "low"
    for item in findings:
        if item.severity is Severity.ERROR and _is_refused(item):
            return "high"
        if item.severity is not Severity.INFO:
            level = "medium"
    return level


def exit_code(findings: Sequence[Finding]) -> int:
    """Return what `wan-compat scan` ends with: refused before invalid before merely noteworthy."""
    serious = [item for item in findings if item.severity is not Severity.INFO]
    if any(_is_refused(item) for item in serious):
        return RefusedByPolicy.exit_code
    if any(item.severity is Severity.ERROR for item in serious):
        return ModelInvalid.exit_code
    return EXIT_FINDINGS if serious else EXIT_SAFE


def validate(findings: Sequence[Finding]) -> SecurityValidation:
    """Return the contract's form of the verdict; remarks are not risks."""
    level = risk_level(findings)
    serious = [item for item in findings if item.severity is not Severity.INFO]
    risks = [f"{item.path}: {item.message}" if item.path else item.message for item in serious]
    fixes = list(dict.fromkeys(item.fix for item in serious))
    return SecurityValidation(level == "low", level, risks[:MAX_RISKS], fixes[:MAX_RISKS])


def _is_refused(item: Finding) -> bool:
    return item.code in _HARMFUL or FINDINGS[item.code].error.exit_code == RefusedByPolicy.exit_code
