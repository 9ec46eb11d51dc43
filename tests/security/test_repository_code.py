"""The same attacks, made by code that lies in the model's folder and runs in a worker of a real supervisor."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator

import pytest

from tests.sandbox.harness import run_program
from tests.security.attacks import CASES, SECRET, Case, Surroundings, make_surroundings, why_not
from tests.security.repository import CONTROL_BEGINS, Repository, repository
from wan_compat.policies.confinement import plan_candidates
from wan_compat.policies.facts import HostFacts
from wan_compat.policies.policy import Policy
from wan_compat.protocol.values import Mode
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor import incidents
from wan_compat.supervisor.host import read_host

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these layers are Linux's")


@pytest.fixture(scope="module")
def surroundings() -> Iterator[Surroundings]:
    with make_surroundings() as made:
        yield made


@pytest.fixture(scope="module")
def hostile(surroundings: Surroundings) -> Iterator[Repository]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_TEST_TOKEN", SECRET)  # a secret of the supervisor's user
        with repository(surroundings) as made:
            yield made


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attack_by_repository_code_fails(case: Case, hostile: Repository) -> None:
    if reason := why_not(case):
        pytest.skip(reason)
    answer = hostile.attempt(case)
    assert answer["gained"] is None, answer
    assert not answer["arrived"]
    if case.killed_by:
        # Another ABI has no names to tell, so that its calls are killed without a listener.
        expected = {"SIGSYS"} if "_x32_" in case.attack or "_32_bit_" in case.attack else None
        assert answer["killed"] and (expected is None or answer["killed"] in expected), answer
        if "name" in case.arguments:
            assert answer["killed"] == case.arguments["name"]


def test_repository_code_does_run(hostile: Repository) -> None:
    """What is permitted works, so that a failed attack is not the failure to run at all."""
    allowed = Case("T2", "create_file", (), {"folder": "/scratch"})
    assert hostile.attempt(allowed)["gained"] == "created a file"
    inside = Case("T1", "read_file", (), {"path": "/model/pipeline.py"})
    assert hostile.attempt(inside)["gained"] == "read 64 bytes"


def test_what_a_worker_wrote_does_not_outlive_it(hostile: Repository) -> None:
    create = Case("T2", "create_file", (), {"folder": "/scratch"})
    for _ in range(2):  # exclusively: the second would fail if the first one's file were still there
        assert hostile.attempt(create)["gained"] == "created a file"


def test_call_of_a_worker_that_nobody_waits_for_ends_it_all_the_same(hostile: Repository) -> None:
    """Warm between two jobs: it is not alive for the next one, and what it did is recorded when it is cleared away."""
    late = Case("T7", "wait_and_call", (), {"seconds": 0.3, "name": "ptrace"})
    with hostile.worker(late) as worker:
        hostile.start(worker)
        assert worker.alive
        deadline = time.monotonic() + 10
        while worker.alive and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not worker.alive
        pid = worker.pid
    last = json.loads(incidents.audit_file().read_text().splitlines()[-1])
    assert (last["worker"], last["what"], last["state"]) == (worker.name, "ptrace", "ready")
    assert not os.path.exists(f"/proc/{pid}")


def test_search_of_memory_finds_what_is_there(hostile: Repository) -> None:
    control = Case("T4", "search_memory", (), {"beginning": CONTROL_BEGINS})
    assert hostile.attempt(control)["gained"] == "found the secret"


def test_memory_without_seals_can_be_resized() -> None:
    descriptor = os.memfd_create("ring", 0)
    os.ftruncate(descriptor, 8192)
    os.ftruncate(descriptor, 4096)
    assert os.fstat(descriptor).st_size == 4096
    os.close(descriptor)


def test_secret_is_found_where_the_zygote_is_not_between() -> None:
    """The search itself works: a process that was forked from one with the secret has it."""
    order = {"attack": "search_memory", "layers": ["credentials"], "arguments": {"beginning": SECRET[:-16]}}
    os.environ["WAN_TEST_TOKEN"] = SECRET
    try:
        found = run_program("sandbox_attack", {**order, "a_prompt": SECRET})
    finally:
        del os.environ["WAN_TEST_TOKEN"]
    assert found["gained"] == "found the secret"


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("has_cgroup", [True, False])
def test_modes_differ_in_nothing_of_the_confinement(root: bool, has_cgroup: bool) -> None:
    import dataclasses

    host: HostFacts = dataclasses.replace(read_host(), is_root=root)
    plans = [plan_candidates(host, Policy(), mode, has_cgroup=has_cgroup) for mode in (Mode.SAFE, Mode.TRUST)]
    assert plans[0] == plans[1]
    # And where a policy would let safe mode go lower, trust does not follow.
    weak = plan_candidates(host, Policy(min_tier=Tier.C), Mode.TRUST, has_cgroup=has_cgroup)
    assert weak == plans[0]


def test_attack_in_trust_mode_meets_the_same_sandbox(hostile: Repository) -> None:
    secret = next(case for case in CASES if case.attack == "read_file" and case.arguments["path"] == "{secret}")
    traced = next(case for case in CASES if case.attack == "trace_process")
    assert hostile.attempt(secret, Mode.TRUST)["gained"] is None
    assert hostile.attempt(traced, Mode.TRUST)["killed"] == "ptrace"
