"""docs/troubleshooting.md has an entry for each code of an error, and none for others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wan_compat.protocol import errors

PAGE = Path(__file__).resolve().parent.parent / "docs" / "troubleshooting.md"


def sections() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return heading and entries, each with its text, of the parts that have entries."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    found = []
    for heading, body in zip(parts[::2], parts[1::2], strict=True):
        pieces = re.split(r"^### `([a-z_]+)`$", body, flags=re.MULTILINE)[1:]
        found.append((heading, list(zip(pieces[::2], pieces[1::2], strict=True))))
    return found


ENTRIES = {code: (heading, text) for heading, entries in sections() for code, text in entries}


def test_every_code_has_its_entry_and_every_entry_is_a_code() -> None:
    # Of the package alone: tests may have registered errors of their own.
    ours = {code for code, cls in errors._by_code.items() if cls.__module__ == errors.__name__}
    assert ENTRIES.keys() == ours
    assert sum(len(entries) for _, entries in sections()) == len(ENTRIES)


@pytest.mark.parametrize("code", ENTRIES)
def test_an_entry_stands_under_its_exit_code_and_says_what_to_do(code: str) -> None:
    heading, text = ENTRIES[code]
    known = errors.error_class(code)
    assert known is not None and str(known.exit_code) in re.findall(r"\d+", heading)
    assert len(text.split()) >= 15 or code == "job_cancelled"
    assert not re.search(r"trust[-_]remote[-_]code", text)
