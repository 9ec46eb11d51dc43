"""A scan report as SARIF 2.1.0, which code hosts and editors show beside the files.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import urllib.parse
from typing import Any

from wan_compat._version import __version__
from wan_compat.policies.findings import FINDINGS, Finding, Severity
from wan_compat.policies.scan.report import ScanReport
from wan_compat.policies.scan.rules import RULES

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def to_sarif(report: ScanReport) -> dict[str, Any]:
    """Return the document: one run, its rules (those that were met), its results, each at its file and line."""
    met = sorted({_rule_id(item) for item in report.findings})
    index = {rule: position for position, rule in enumerate(met)}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {"name": "wan-compat", "version": __version__, "rules": [_rule(rule) for rule in met]}
                },
                "columnKind": "unicodeCodePoints",
                "results": [_result(item, index) for item in report.findings],
                "properties": {
                    "is_safe": report.is_safe,
                    "risk_level": report.risk_level,
                    "content_hash": report.content_hash,
                },
            }
        ],
    }


def _rule_id(item: Finding) -> str:
    return item.rule or item.code


def _rule(rule_id: str) -> dict[str, Any]:
    rule = RULES.get(rule_id)
    kind = FINDINGS[rule.code if rule is not None else rule_id]
    meaning = rule.meaning if rule is not None else kind.meaning
    level = rule.level if rule is not None else kind.severity
    return {
        "id": rule_id,
        "shortDescription": {"text": meaning},
        "help": {"text": (rule.fix if rule is not None else None) or kind.fix},
        "defaultConfiguration": {"level": _LEVELS[level]},
    }


def _result(item: Finding, index: dict[str, int]) -> dict[str, Any]:
    rule_id = _rule_id(item)
    result: dict[str, Any] = {
        "ruleId": rule_id,
        "ruleIndex": index[rule_id],
        "level": _LEVELS[item.severity],
        "message": {"text": f"{item.message} ({item.fix})"},
        "properties": {"code": item.code, "component": item.component},
    }
    if item.path is not None:
        location: dict[str, Any] = {
            # A path is no URI: spaces, percent signs and colons have to be written as such.
            "artifactLocation": {"uri": urllib.parse.quote(item.path), "uriBaseId": "MODEL"}
        }
        if item.line is not None:
            location["region"] = {"startLine": item.line}
        result["locations"] = [{"physicalLocation": location}]
    return result
