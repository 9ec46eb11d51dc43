"""docs/findings.md from the table of findings: `python -m tools.findings_page` prints it, `--write` puts it in place.

tests/test_findings_page.py fails when the file is not what this prints.
"""

from __future__ import annotations

import sys
from pathlib import Path

from wan_compat.policies.findings import FINDINGS, FindingKind, Severity

PAGE = Path(__file__).resolve().parents[1] / "docs" / "findings.md"

_HEAD = """\
# Findings

What `wan-compat check` and `wan-compat scan` can say about a model. Codes are stable: scripts may rely on them. Made from
`wan_compat/policies/findings.py` by `python -m tools.findings_page --write`.

- **error**: it cannot be loaded, or not run here, as it is. `exit` is what `check` ends with when this is the most
  fundamental error; `generate` raises the error named beside it.
- **warning**: it can, but something is likely to go wrong, or was not what it claimed.
- **info**: worth knowing, nothing to do.

A finding may be graver or lighter than its usual severity where the message says why. Of several errors the most
fundamental one decides the exit code: 4 invalid or corrupt, then 5 refused by policy, 1 not compatible, 3 the
environment lacks something, 6 not enough memory. Warnings alone end with 0.
"""


def page() -> str:
    """Return the whole page."""
    parts = [_HEAD]
    for severity in Severity:
        rows = [(code, kind) for code, kind in FINDINGS.items() if kind.severity is severity]
        parts.append(f"## {severity.value.capitalize()}\n")
        parts.append("\n".join(_table(rows, errors=severity is Severity.ERROR)) + "\n")
    return "\n".join(parts)


def _table(rows: list[tuple[str, FindingKind]], *, errors: bool) -> list[str]:
    if not errors:
        lines = ["| code | means | what to do |", "|---|---|---|"]
        return lines + [f"| `{code}` | {_cell(kind.meaning)} | {_cell(kind.fix)} |" for code, kind in rows]
    lines = ["| code | means | what to do | exit | error |", "|---|---|---|---|---|"]
    return lines + [
        f"| `{code}` | {_cell(kind.meaning)} | {_cell(kind.fix)} | {kind.error.exit_code} | `{kind.error.code}` |"
        for code, kind in rows
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page())
    else:
        print(page(), end="")
