"""docs/findings.md is the table of findings, and every code that judgement uses is tried by a test."""

from __future__ import annotations

import re
from pathlib import Path

import wan_compat
from tools.findings_page import PAGE, page
from wan_compat.policies.findings import FINDINGS

JUDGEMENT = Path(wan_compat.__file__).parent / "policies" / "judgement"
TESTS = Path(__file__).parent


def test_the_page_is_in_step_with_the_table() -> None:
    assert PAGE.read_text() == page(), "run: python -m tools.findings_page --write"


def test_every_code_of_judgement_is_known_and_tried() -> None:
    used = {
        code
        for path in JUDGEMENT.glob("*.py")
        for code in re.findall(r'"([a-z0-9]+(?:_[a-z0-9]+)+)"', path.read_text())
        if code in FINDINGS
    }
    assert len(used) > 35
    tried = "".join(path.read_text() for path in (TESTS / "policies" / "judgement").glob("test_*.py"))
    assert not {code for code in used if f'"{code}"' not in tried}


def test_every_finding_says_what_to_do_and_never_to_run_foreign_code() -> None:
    for code, kind in FINDINGS.items():
        assert kind.meaning.endswith(".") and kind.fix, code
        assert "trust-remote-code" not in kind.fix and "trust_remote_code" not in kind.fix, code
