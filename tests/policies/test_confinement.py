"""Which tier a set of layers is, and what the self-test must show before a model byte is read."""

import pytest

from wan_compat.policies.confinement import (
    accept_self_test,
    decide_tier,
    plan_candidates,
    plan_confinement,
    plan_limits,
)
from wan_compat.policies.facts import FileFact, HostFacts
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import RefusedByPolicy, SandboxUnavailable
from wan_compat.protocol.values import Mode
from wan_compat.sandbox.spec import ALL_LAYERS, NAMESPACE_LAYERS, Layer, Tier, from_wire, to_wire

HOST = HostFacts(memory_total_bytes=16 << 30, memory_available_bytes=8 << 30, cpu_count=2, is_root=True)


def names(layers):
    return {layer.value for layer in layers}


@pytest.mark.parametrize(
    ("layers", "tier"),
    [
        (ALL_LAYERS, Tier.A),
        (ALL_LAYERS - {Layer.USER_NAMESPACE}, Tier.A),
        (ALL_LAYERS - {Layer.CGROUP}, Tier.B),
        (ALL_LAYERS - {Layer.CGROUP, Layer.USER_NAMESPACE}, Tier.B),
        (ALL_LAYERS - {Layer.NET_NAMESPACE}, Tier.C),
        (ALL_LAYERS - {Layer.VIEW}, Tier.C),
        (ALL_LAYERS - NAMESPACE_LAYERS - {Layer.VIEW, Layer.CGROUP}, Tier.C),
        (ALL_LAYERS - {Layer.LANDLOCK}, Tier.E),
        (ALL_LAYERS - {Layer.SECCOMP}, Tier.E),
        (ALL_LAYERS - {Layer.NO_NEW_PRIVS}, Tier.E),
        (frozenset(), Tier.E),
    ],
)
def test_tier_is_that_of_the_layers_in_force(layers, tier):
    assert decide_tier(names(layers)).tier is tier


def test_names_that_are_no_layers_do_not_count():
    assert decide_tier({"everything", "cgroup"}).tier is Tier.E


def test_self_test_with_one_open_door_is_refused_and_named():
    with pytest.raises(SandboxUnavailable, match="mount"):
        accept_self_test({"mount": False, "fork": True}, {"mount", "fork"}, names(ALL_LAYERS), Tier.B)


def test_probe_that_was_not_run_counts_as_an_open_door():
    with pytest.raises(SandboxUnavailable, match="fork"):
        accept_self_test({"mount": True}, {"mount", "fork"}, names(ALL_LAYERS), Tier.B)


@pytest.mark.parametrize("minimum", [Tier.A, Tier.B])
def test_tier_below_the_minimum_is_refused(minimum):
    layers = ALL_LAYERS - NAMESPACE_LAYERS - {Layer.VIEW, Layer.CGROUP}
    with pytest.raises(SandboxUnavailable) as caught:
        accept_self_test({}, (), names(layers), minimum)
    assert caught.value.exit_code == 10


USER = HostFacts(memory_total_bytes=16 << 30, memory_available_bytes=8 << 30, cpu_count=2, is_root=False)


def tiers(host=HOST, mode=Mode.SAFE, has_cgroup=True, **policy):
    candidates = plan_candidates(host, Policy(**policy), mode, has_cgroup=has_cgroup)
    for candidate in candidates:
        assert decide_tier(names(candidate.layers)).tier is candidate.tier
    return "".join(candidate.tier.value for candidate in candidates)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "A"),
        ({"has_cgroup": False}, "B"),
        ({"min_tier": Tier.A}, "A"),
        ({"min_tier": Tier.C}, "AC"),
        ({"min_tier": Tier.C, "has_cgroup": False}, "BC"),
        ({"min_tier": Tier.D}, "AC"),
        ({"min_tier": Tier.E, "allow_unsandboxed": True}, "ACE"),
        ({"min_tier": Tier.C, "mode": Mode.TRUST}, "A"),
        ({"min_tier": Tier.E, "allow_unsandboxed": True, "mode": Mode.TRUST}, "A"),
        ({"host": USER, "has_cgroup": False}, "BB"),
        ({"host": USER, "min_tier": Tier.C}, "AAC"),
    ],
    ids=str,
)
def test_only_tiers_that_policy_and_mode_accept_are_tried_strongest_first(options, expected):
    assert tiers(**options) == expected


def test_tier_a_without_a_cgroup_is_refused_before_anything_is_tried():
    with pytest.raises(SandboxUnavailable) as caught:
        tiers(min_tier=Tier.A, has_cgroup=False)
    assert caught.value.details == {"tier": "B", "min_tier": "A"}


def test_no_sandbox_is_never_tried_without_being_allowed_by_name():
    with pytest.raises(RefusedByPolicy):
        tiers(min_tier=Tier.E)


def test_root_needs_no_user_namespace_and_an_ordinary_user_does():
    for host, expected in ((HOST, False), (USER, True)):
        candidate = plan_candidates(host, Policy(), Mode.SAFE, has_cgroup=True)[0]
        assert (Layer.USER_NAMESPACE in candidate.layers) is expected


@pytest.mark.parametrize("has_cgroup", [True, False])
def test_an_ordinary_users_namespaces_may_be_made_by_bubblewrap_when_own_ones_cannot(has_cgroup):
    own, outer = plan_candidates(USER, Policy(), Mode.SAFE, has_cgroup=has_cgroup)
    assert not own.outer and outer.outer < outer.layers and outer.tier is own.tier
    assert {Layer.VIEW, Layer.NET_NAMESPACE, Layer.PID_NAMESPACE} <= outer.outer
    assert {Layer.LANDLOCK, Layer.SECCOMP, Layer.NO_NEW_PRIVS, Layer.RLIMITS} <= outer.layers - outer.outer
    assert all(not candidate.outer for candidate in plan_candidates(HOST, Policy(), Mode.SAFE, has_cgroup=has_cgroup))


def test_view_of_the_model_is_the_admitted_files_and_nothing_else():
    fact = FileFact("vae/config.json", "/cache/blobs/abc", 10, 1, 2, 3)
    spec = plan_confinement(
        layers=ALL_LAYERS,
        runtime_binds=(),
        runtime_files=(),
        admitted=[fact],
        control_dir="/run/x",
        scratch_dir=None,
        scratch_bytes=1 << 20,
        limits=plan_limits(Policy(), memory_limit_bytes=1 << 30, threads=2),
        identity=None,
        cgroup_dirs=(),
    )
    (bind,) = spec.view.binds
    assert (bind.source, bind.target, bind.executable) == ("/cache/blobs/abc", "/model/vae/config.json", False)
    assert bind.identity is not None and bind.identity.inode == 2
    assert from_wire(to_wire(spec)) == spec
