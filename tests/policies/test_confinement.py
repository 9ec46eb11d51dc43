"""Which tier a set of layers is, and what the self-test must show before a model byte is read."""

import pytest

from wan_compat.policies.confinement import (
    accept_self_test,
    decide_tier,
    missing_for,
    plan_confinement,
    plan_layers,
    plan_limits,
)
from wan_compat.policies.facts import FileFact, HostFacts
from wan_compat.protocol.errors import SandboxUnavailable
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


def test_root_needs_no_user_namespace_and_a_missing_cgroup_is_left_out():
    assert Layer.USER_NAMESPACE not in plan_layers(HOST, has_cgroup=True)
    assert Layer.CGROUP not in plan_layers(HOST, has_cgroup=False)
    assert missing_for(Tier.A, plan_layers(HOST, has_cgroup=False)) == (Layer.CGROUP,)
    assert missing_for(Tier.B, plan_layers(HOST, has_cgroup=False)) == ()


def test_view_of_the_model_is_the_admitted_files_and_nothing_else():
    fact = FileFact("vae/config.json", "/cache/blobs/abc", 10, 1, 2, 3)
    spec = plan_confinement(
        layers=ALL_LAYERS,
        runtime_binds=(),
        runtime_files=(),
        admitted=[fact],
        control_dir="/run/x",
        limits=plan_limits(memory_limit_bytes=1 << 30, threads=2),
        identity=None,
        cgroup_dirs=(),
    )
    (bind,) = spec.view.binds
    assert (bind.source, bind.target, bind.executable) == ("/cache/blobs/abc", "/model/vae/config.json", False)
    assert bind.identity is not None and bind.identity.inode == 2
    assert from_wire(to_wire(spec)) == spec
