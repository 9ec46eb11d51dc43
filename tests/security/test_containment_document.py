"""docs/containment.md says of every attack of the suite what stops it, and of nothing else."""

from __future__ import annotations

import re

import pytest

from tests.security import rows
from tests.security.ablation import BEGIN, DOCUMENT, END, ROWS, measure_lag
from tests.security.attacks import CASES, why_not


def table() -> list[list[str]]:
    text = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_table_lists_exactly_the_attacks_of_the_suite() -> None:
    listed = [row[0] for row in table() if len(row) == 5 and row[0] != "attack"]
    assert listed == [case.title for row in ROWS for case in CASES if case.row == row]


def test_table_lists_exactly_the_claimed_layers() -> None:
    by_title = {row[0]: row for row in table() if len(row) == 5}
    for case in CASES:
        row = by_title[case.title]
        claimed = [layer.value for layer in case.stopped_by]
        if not why_not(case):
            assert [part.split(":")[0].strip() for part in row[4].split(";") if part] == claimed, case.title


def test_no_cell_contradicts_its_claim() -> None:
    text = DOCUMENT.read_text()
    assert "**WORKS**" not in text and "**FAILS**" not in text


def test_every_row_of_the_threat_model_names_its_tests() -> None:
    assert list(rows.TESTS) == [f"T{number}" for number in range(1, 20)] and all(rows.TESTS.values())
    text = DOCUMENT.read_text()
    assert rows.replace_table(text) == text, "make it anew: python -m tests.security.rows --write"


@pytest.mark.parametrize("test", sorted({test for tests in rows.TESTS.values() for test in tests}))
def test_a_test_that_is_named_exists(test: str) -> None:
    path, _, name = test.partition("::")
    assert re.search(rf"^def {name}\(", (DOCUMENT.parents[1] / path).read_text(), re.MULTILINE), test


def test_the_files_that_it_names_exist() -> None:
    for path in re.findall(r"(?:tests|wan_compat)/[a-z_/]+(?:\.py|/)", DOCUMENT.read_text()):
        assert (DOCUMENT.parents[1] / path).exists(), path


def test_polling_is_late_by_a_bounded_amount() -> None:
    """What a process can take between two looks: an interval's worth of page faults, and the time of the kill."""
    (over,) = measure_lag(128 << 20, 1)
    print(f"\n{over / 1e6:.0f} MB over the cap")
    assert over < 1 << 30
