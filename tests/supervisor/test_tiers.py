"""A weaker tier is entered only when the policy names it, is recorded, and works; else the refusal says what is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from wan_compat import Supervisor
from wan_compat.policies.policy import Policy
from wan_compat.protocol import errors
from wan_compat.sandbox import bwrap
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor.repository_tree import read_tree
from wan_compat.supervisor.trust_store import TrustStore, make_grant

PROGRAM = Path(__file__).resolve().parent.parent / "programs" / "zygote_without_namespaces.py"


@pytest.fixture
def container(monkeypatch):
    """A supervisor whose zygote is refused namespaces, as by a container's default profile, without a bubblewrap."""
    monkeypatch.setattr(bwrap, "_PLACES", "/nonexistent")
    made: list[Supervisor] = []

    def make(**options: object) -> Supervisor:
        supervisor = Supervisor(**options)  # type: ignore[arg-type]
        supervisor._zygote_program = (str(PROGRAM),)
        made.append(supervisor)
        return supervisor

    yield make
    for supervisor in made:
        supervisor.close()


def closed_to_others() -> str | None:
    """Return the folder on the way to this interpreter that only its owner may enter, if there is one."""
    for name in (sys.base_prefix, sys.prefix, str(PROGRAM)):
        for folder in (Path(name), *Path(name).parents):
            if not folder.stat().st_mode & 0o005:
                return str(folder)
    return None


needs_a_public_interpreter = pytest.mark.skipif(
    os.geteuid() == 0 and closed_to_others() is not None,
    reason=f"root's worker has a uid of its own, and without a view it cannot pass {closed_to_others()}; "
    "the ordinary user's run of this suite tests it",
)


@pytest.mark.parametrize("minimum", ["A", "B"])
def test_machine_without_namespaces_is_refused_with_mechanism_and_remedy(minimum, container, request_for, tmp_path):
    if minimum == "A":
        from wan_compat.sandbox import cgroup

        if not cgroup.detect().available:
            pytest.skip("without a cgroup tier A is refused before namespaces are tried")
    with pytest.raises(errors.SandboxUnavailable, match="namespace") as caught:
        container(min_tier=minimum).generate(request_for())
    assert caught.value.exit_code == 10
    assert len(caught.value.fixes) >= 2
    assert list(tmp_path.iterdir()) == []


@needs_a_public_interpreter
def test_tier_c_works_when_the_policy_names_it_and_is_recorded(container, request_for):
    result = container(min_tier="C").generate(request_for())
    assert result.success and result.output is not None
    assert result.sandbox.tier == "C"
    assert {"landlock", "seccomp"} <= set(result.sandbox.layers)
    assert not {"view", "mount_namespace"} & set(result.sandbox.layers)
    assert any("tier C" in warning and "namespace" in warning for warning in result.warnings)
    assert result.sandbox.self_test["read_host_files"] and result.sandbox.self_test["open_network_socket"]


def test_tier_c_is_not_used_where_a_stronger_one_can_be_entered(misbehaving, request_for):
    result = misbehaving("well", min_tier="C").generate(request_for())
    assert result.sandbox.tier in ("A", "B") and result.warnings == []


def test_trust_mode_needs_tier_b_whatever_the_policy_says(container, request_for):
    with pytest.raises(errors.RefusedByPolicy):
        container(mode="trust", min_tier="C").generate(request_for(mode="trust"))


def test_approved_code_does_not_run_below_tier_b(container, request_for, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    request = request_for(mode="trust", output=None)
    TrustStore().add(make_grant(read_tree(request.model), imports=[], risks=[]))
    with pytest.raises(errors.SandboxUnavailable, match="tier B is required") as caught:
        container(mode="trust", min_tier="C").generate(request)
    assert caught.value.exit_code == 10


@needs_a_public_interpreter
def test_no_sandbox_needs_to_be_allowed_by_name_and_is_shouted(container, misbehaving, request_for):
    with pytest.raises(errors.RefusedByPolicy):
        Supervisor(min_tier="E")
    policy = Policy(min_tier=Tier.E, allow_unsandboxed=True)
    assert container(policy=policy).generate(request_for(output=None)).sandbox.tier == "C"
