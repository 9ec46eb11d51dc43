"""Attacks on the sandbox, made for real: each works without, fails within all layers, and fails with each claimed layer
alone (with the few that it needs to stand on). The attacks and their rows of the threat model are in attacks.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.sandbox.harness import full_layers
from tests.security.attacks import (
    CASES,
    Case,
    Surroundings,
    attempt,
    impossible,
    make_surroundings,
    only,
    was_killed,
    why_not,
    without,
)
from tests.security.rows import INSIDE, TESTS
from wan_compat.sandbox.spec import Layer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these layers are Linux's")

# What is stopped by construction has no layer to try it in: tests/security/test_repository_code.py has it.
LAYERED = [case for case in CASES if not case.construction]


@pytest.fixture(scope="module")
def surroundings() -> Iterator[Surroundings]:
    with make_surroundings() as made:
        yield made


def skip_where_impossible(case: Case, layer: Layer | None = None) -> None:
    if reason := why_not(case, layer):
        pytest.skip(reason)


@pytest.mark.parametrize("case", [case for case in LAYERED if not impossible(case)], ids=str)
def test_attack_works_without_the_sandbox(case: Case, surroundings: Surroundings) -> None:
    skip_where_impossible(case)
    answer = attempt(case, without(case), surroundings)
    assert answer["gained"], answer


@pytest.mark.parametrize("case", LAYERED, ids=str)
def test_attack_fails_in_the_sandbox(case: Case, surroundings: Surroundings) -> None:
    skip_where_impossible(case)
    answer = attempt(case, full_layers(), surroundings)
    assert answer["gained"] is None, answer
    if case.killed_by:
        assert was_killed(answer), answer
    assert not answer["arrived"]


@pytest.mark.parametrize(
    ("case", "layer"),
    [(case, layer) for case in LAYERED for layer in case.stopped_by],
    ids=lambda value: str(value.value) if isinstance(value, Layer) else str(value),
)
def test_attack_fails_with_one_layer_alone(case: Case, layer: Layer, surroundings: Surroundings) -> None:
    skip_where_impossible(case, layer)
    answer = attempt(case, only(case, layer), surroundings)
    assert answer["gained"] is None, answer
    assert was_killed(answer) == (layer in case.killed_by), answer


def test_rows_that_name_the_suite_have_attacks_in_it() -> None:
    assert {case.row for case in CASES} == {row for row, tests in TESTS.items() if INSIDE[0] in tests}
    assert len({str(case) for case in CASES}) == len(CASES)
