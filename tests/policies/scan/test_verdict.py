"""Verdict, exit code, SARIF and the one content hash."""

from __future__ import annotations

import json

import pytest

from wan_compat.policies.findings import FINDINGS
from wan_compat.policies.scan.report import ScannedFile, ScanReport, content_hash
from wan_compat.policies.scan.risk import exit_code, risk_level, validate
from wan_compat.policies.scan.rules import RULES, Observation, rule_finding
from wan_compat.policies.scan.sarif import to_sarif


def finding(rule, path="a b/c%.py", line=None):
    return rule_finding(Observation(rule, f"what {rule} saw", line), path=path)


@pytest.mark.parametrize(
    ("rules", "level", "code"),
    [
        ([], "low", 0),
        (["link-inside", "file-hidden", "config-url", "python-restricted"], "low", 0),
        (["format-unknown"], "medium", 1),
        (["scan-limit"], "medium", 1),
        (["lfs-pointer"], "medium", 4),
        (["config-corrupt", "format-unknown"], "medium", 4),
        (["scan-changed"], "medium", 4),
        (["code-present"], "medium", 5),
        (["pickle-present"], "medium", 5),
        (["pickle-dangerous-global"], "high", 5),
        (["python-exec"], "high", 5),
        (["link-escape"], "high", 5),
        (["archive-bomb"], "high", 5),
        (["config-auto-map"], "high", 5),
        (["lfs-pointer", "pickle-present"], "medium", 5),
    ],
)
def test_the_worst_finding_decides(rules, level, code):
    findings = [finding(rule) for rule in rules]
    assert (risk_level(findings), exit_code(findings)) == (level, code)
    assert validate(findings).is_safe == (level == "low") == (code == 0)


def test_the_contracts_form_names_risks_and_what_helps():
    answer = validate([finding("python-exec"), finding("link-inside")])
    assert (answer.is_safe, answer.risk_level, len(answer.detected_risks)) == (False, "high", 1)
    assert answer.mitigation_strategies == [FINDINGS["scan_code_danger"].fix]


def test_every_rule_belongs_to_a_known_code():
    assert {rule.code for rule in RULES.values()} <= set(FINDINGS)


def report(*findings):
    return ScanReport("m", findings, (ScannedFile("a", "0" * 64, "text", 1),), None)


def test_the_document_has_the_fields_of_the_interface():
    document = report(finding("python-exec", line=3), finding("scan-limit", path=None)).to_json()
    assert set(document) == {"schema_version", "is_safe", "risk_level", "findings", "files", "content_hash"}
    for item in document["findings"]:
        assert set(item) == {"code", "severity", "component", "message", "fix", "path", "line", "rule"}
    assert document["files"] == [{"path": "a", "sha256": "0" * 64, "format": "text", "bytes": 1}]
    json.dumps(document)


def test_sarif_has_the_shape_that_its_schema_demands():
    findings = (finding("python-exec", line=3), finding("python-exec", line=9), finding("scan-limit", path=None))
    document = to_sarif(report(*findings))
    assert document["version"] == "2.1.0" and document["$schema"].endswith("sarif-2.1.0.json")
    (run,) = document["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "wan-compat" and driver["version"]
    assert [rule["id"] for rule in driver["rules"]] == ["python-exec", "scan-limit"]
    for rule in driver["rules"]:
        assert rule["shortDescription"]["text"] and rule["help"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note", "none")
    assert len(run["results"]) == 3
    for result in run["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note", "none") and result["message"]["text"]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "a%20b/c%25.py", "uriBaseId": "MODEL"}
    assert place["region"] == {"startLine": 3}
    assert "locations" not in run["results"][2]
    json.dumps(document)


def test_the_content_hash_is_of_the_set_of_files():
    a, b = (b"a", 1, "0" * 64), (b"b", 2, "1" * 64)
    assert content_hash([a, b]) == content_hash([b, a])
    others = [
        [a],
        [a, (b"b", 2, "2" * 64)],
        [a, (b"b", 3, "1" * 64)],
        [a, (b"c", 2, "1" * 64)],
        [(b"a\n1:b", 1, "0" * 64)],
    ]
    assert len({content_hash(files) for files in [[a, b], *others]}) == 6


def test_the_page_has_every_rule_as_it_is(repository):
    page = (repository / "docs" / "scan.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{name}` | {rule.level} | `{rule.code}` | {rule.meaning} |" for name, rule in RULES.items()]
