"""The attacks of the suite by repository code whose worker runs inside a bubblewrap (docs/adr/0012).

One of each kind, with the targets of the other tests; and, since there they exist for it, on the processes around it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.attacks import CASES, SECRET, Case, make_surroundings, why_not
from tests.security.repository import Repository, repository
from tests.supervisor.bubblewrap import why_not as why_no_bwrap

if reason := why_no_bwrap():
    pytest.skip(reason, allow_module_level=True)

ROWS = ("T1", "T2", "T3", "T4", "T5", "T6", "T8", "T9", "T11")
# One of each kind, and of the kernel's surface one call that is refused and two that kill: the filter is the same.
KINDS = list({case.attack: case for case in CASES if case.row in ROWS}.values())
KINDS += [case for case in CASES if str(case) in ("make_x32_call", "make_call-keyctl", "make_call-personality")]

# bwrap is the first process of the namespace; the worker's parent is the zygote.
NEIGHBOURS = [
    Case("T5", case.attack, case.stopped_by, {"pid": pid}, killed_by=case.killed_by)
    for case in CASES
    if "pid" in case.arguments and case.attack not in ("pin_process",)
    for pid in (("parent", 1) if case.attack == "signal_process" else ("parent",))
]


@pytest.fixture(scope="module")
def hostile() -> Iterator[Repository]:
    with make_surroundings() as around, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_TEST_TOKEN", SECRET)
        with repository(around, in_bwrap=True) as made:
            yield made


@pytest.mark.parametrize("case", [*KINDS, *NEIGHBOURS], ids=str)
def test_attack_fails_in_a_bubblewrap(case: Case, hostile: Repository) -> None:
    if reason := why_not(case):
        pytest.skip(reason)
    answer = hostile.attempt(case)
    assert answer["gained"] is None, answer
    assert not answer["arrived"]
    assert bool(case.killed_by) <= bool(answer["killed"]), answer


def test_repository_code_does_run_there(hostile: Repository) -> None:
    inside = Case("T1", "read_file", (), {"path": "/model/pipeline.py"})
    assert hostile.attempt(inside)["gained"] == "read 64 bytes"


def test_nothing_at_all_can_be_written_there(hostile: Repository) -> None:
    for folder in ("/scratch", "/tmp", "/model", "/ctl", "/dev", "/"):
        assert hostile.attempt(Case("T2", "create_file", (), {"folder": folder}))["gained"] is None


def test_the_processors_of_the_processes_around_it_are_all_that_it_can_choose(hostile: Repository) -> None:
    """What docs/adr/0012 admits; should a kernel or a filter close it, the record is out of date."""
    assert hostile.attempt(Case("T5", "pin_process", (), {"pid": "parent"}))["gained"] == "set its processors"
