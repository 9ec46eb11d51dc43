"""T18: restricted code has no right that the sandbox would not give to any code, whatever becomes of its policy.

The attacks are those of the other suites. Here they stand where restricted code stands, with policy and guards switched
off: an escape that nobody knows yet gains no more than these.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator

import pytest

from tests.sandbox.harness import PROGRAMS
from tests.security.attacks import CASES, SECRET, Case, Surroundings, make_surroundings, why_not
from tests.security.repository import Repository, repository
from wan_compat.policies import confinement
from wan_compat.protocol.values import RestrictedSpec
from wan_compat.sandbox.spec import ConfinementSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these layers are Linux's")

PER_ROW = 4
ROWS = ("T1", "T2", "T3", "T4", "T5", "T6", "T7")
CHOSEN = [case for row in ROWS for case in [case for case in CASES if case.row == row][:PER_ROW]]


@pytest.fixture(scope="module")
def surroundings() -> Iterator[Surroundings]:
    with make_surroundings() as made:
        yield made


@pytest.fixture(scope="module")
def escaped(surroundings: Surroundings) -> Iterator[Repository]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_TEST_TOKEN", SECRET)
        with repository(surroundings, program=str(PROGRAMS / "sandbox_restricted_code.py")) as made:
            yield made


@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_attack_by_restricted_code_without_its_policy_fails(case: Case, escaped: Repository) -> None:
    if reason := why_not(case):
        pytest.skip(reason)
    answer = escaped.attempt(case)
    assert answer["gained"] is None, answer
    assert not answer["arrived"]
    assert bool(answer["killed"]) == bool(case.killed_by), answer


def test_without_its_policy_restricted_code_does_run(escaped: Repository) -> None:
    allowed = Case("T2", "create_file", (), {"folder": "/scratch"})
    assert escaped.attempt(allowed)["gained"] == "created a file"


def test_a_worker_for_restricted_code_is_confined_as_any_other(escaped: Repository) -> None:
    case = Case("T2", "create_file", (), {"folder": "/scratch"})
    with escaped.worker(case) as worker:
        plain = worker._own.spec
        code = RestrictedSpec(module="pipeline.py", function="generate", files={"pipeline.py": "0" * 64})
        pipeline = worker.order.pipeline.model_copy(update={"restricted": code, "streaming": "never"})
        order = dataclasses.replace(worker.order, pipeline=pipeline)
        restricted = type(worker)(worker.name + "r", order, worker._ordered_layers, worker._runtime)
        try:
            assert _without_names(restricted._own.spec) == _without_names(plain)
        finally:
            restricted.close()


def test_confinement_is_planned_without_knowing_about_restricted_code() -> None:
    assert "restricted" not in inspect.getsource(confinement)


def _without_names(spec: ConfinementSpec) -> ConfinementSpec:
    """The spec without the worker's own folders and user, which no two workers share."""
    files = tuple(file for file in spec.view.files if file.target != "/etc/passwd")
    view = dataclasses.replace(spec.view, files=files, control_dir=None, host_scratch_dir=None)
    return dataclasses.replace(spec, view=view, identity=None, cgroup_dirs=())
