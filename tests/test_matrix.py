"""docs/matrix.md is in step with the tests' own tables, and some of its cells, run again, are what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import matrix
from wan_compat import Supervisor


@pytest.fixture(scope="module")
def page() -> dict[str, matrix.Table]:
    return matrix.read_page(matrix.DOCUMENT.read_text())


def test_the_page_has_every_case_layout_and_plan_of_the_tests_and_nothing_else(page):
    """If not: python -m tests.matrix --write"""
    assert {table: tuple(rows) for table, rows in page.items()} == dict(matrix.ROWS_OF)
    for table, rows in page.items():
        assert all(tuple(cells) == matrix.COLUMNS[table] for cells in rows.values()), table


def test_every_cell_of_the_page_is_what_it_should_be(page):
    assert matrix.wrong_cells(page) == []


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mapping[str, Any]]:
    folder = tmp_path_factory.mktemp("media")
    kept: dict[str, Mapping[str, Any]] = {}
    for row in matrix.ROWS.values():
        matrix.media_of(row, folder, kept)
    return kept


# One of each table that no other test runs; `python -m tests.matrix` runs them all.
@pytest.mark.parametrize(
    ("row", "columns"),
    [("vace, control", ("weights in files", "tiles")), ("lucy", ("bfloat16",)), ("skyreels", ("first-block cache",))],
)
def test_plans_do_to_tasks_what_the_page_says(
    row: str, columns: tuple[str, ...], page: Any, supervisor: Supervisor, media: Any
) -> None:
    case = matrix.ROWS[row]
    expected = matrix.frames(supervisor, case.request(media[case.test]), {})
    for column in columns:
        cell = matrix.plan_cell(supervisor, case, column, media[case.test], expected)
        assert matrix.is_right("plans", row, column, cell) and cell == page["plans"][row][column]


def test_layouts_do_to_tasks_what_the_page_says(page: Any, supervisor: Supervisor, media: Any, tmp_path: Path) -> None:
    case = matrix.ROWS["i2v, two experts"]
    cell = matrix.layout_cell(supervisor, case, "GGUF Q8_0", media[case.test], tmp_path / "layout")
    assert matrix.is_right("layouts", "i2v, two experts", "GGUF Q8_0", cell)
