"""From facts to the confinement of one worker: which layers, what it sees, what it may use, and what tier that is."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from wan_compat.policies.facts import FileFact, HostFacts
from wan_compat.protocol.errors import SandboxUnavailable
from wan_compat.sandbox.spec import (
    ALL_LAYERS,
    MODEL_TARGET,
    NAMESPACE_LAYERS,
    Bind,
    ConfinementSpec,
    FileIdentity,
    Identity,
    Layer,
    Limits,
    StaticFile,
    Tier,
    View,
)

# The kernel keeps a tmpfs in the worker's memory: scratch is for libraries that insist on a temporary file.
SCRATCH_BYTES = 64 << 20

# Room for the threads' stacks and the reserve of the allocator on top of the libraries' own.
THREADS_BASE = 64

_MUST_HAVE = frozenset({Layer.DESCRIPTORS, Layer.RLIMITS, Layer.CREDENTIALS, Layer.NO_NEW_PRIVS, Layer.SECCOMP})
_TIER_C = _MUST_HAVE | {Layer.LANDLOCK}
_TIER_B = _TIER_C | (NAMESPACE_LAYERS - {Layer.USER_NAMESPACE}) | {Layer.VIEW}
_TIER_A = _TIER_B | {Layer.CGROUP}


def plan_layers(host: HostFacts, *, has_cgroup: bool) -> frozenset[Layer]:
    """Return the layers to enter: all, less the user namespace for root, less the cgroup where there is none."""
    layers = ALL_LAYERS
    if host.is_root:
        layers -= {Layer.USER_NAMESPACE}
    if not has_cgroup:
        layers -= {Layer.CGROUP}
    return layers


def plan_limits(*, memory_limit_bytes: int, threads: int) -> Limits:
    """Return what one worker may use; the cgroup and the rlimits are made from the same numbers."""
    return Limits(memory_bytes=memory_limit_bytes, threads=THREADS_BASE + 4 * threads)


def plan_confinement(
    *,
    layers: frozenset[Layer],
    runtime_binds: Iterable[Bind],
    runtime_files: Iterable[StaticFile],
    admitted: Iterable[FileFact],
    control_dir: str,
    limits: Limits,
    identity: Identity | None,
    cgroup_dirs: tuple[str, ...],
) -> ConfinementSpec:
    """Compose the spec. The model's part of the view is the list of admitted files, one bind each, and nothing else."""
    model = tuple(
        Bind(
            source=fact.real_path,
            target=f"{MODEL_TARGET}/{fact.path}",
            identity=FileIdentity(fact.device, fact.inode, fact.size, fact.mtime_ns),
        )
        for fact in admitted
    )
    return ConfinementSpec(
        layers=layers,
        view=View(
            binds=(*runtime_binds, *model),
            files=tuple(runtime_files),
            control_dir=control_dir,
            scratch_bytes=SCRATCH_BYTES,
        ),
        limits=limits,
        identity=identity,
        cgroup_dirs=cgroup_dirs,
    )


@dataclasses.dataclass(frozen=True)
class TierDecision:
    tier: Tier
    reasons: tuple[str, ...]


def decide_tier(entered: Collection[str]) -> TierDecision:
    """Name the tier of the layers that were really entered."""
    layers = {layer for layer in Layer if layer.value in entered}
    for tier, needed in ((Tier.A, _TIER_A), (Tier.B, _TIER_B), (Tier.C, _TIER_C)):
        missing = needed - layers
        if not missing:
            return TierDecision(tier, (f"tier {tier.value}: {len(layers)} layers in force",))
    return TierDecision(Tier.E, (f"missing: {', '.join(sorted(layer.value for layer in _TIER_C - layers))}",))


def missing_for(tier: Tier, layers: Collection[Layer]) -> tuple[Layer, ...]:
    """Return the layers that `tier` needs and `layers` lacks, in the order of entry."""
    needed = {Tier.A: _TIER_A, Tier.B: _TIER_B, Tier.C: _TIER_C}.get(tier, frozenset())
    return tuple(layer for layer in Layer if layer in needed and layer not in layers)


def accept_self_test(
    probes: Mapping[str, bool], expected_denied: Collection[str], entered: Collection[str], minimum: Tier
) -> TierDecision:
    """Compare what the worker could do with what it should not, and the tier with the one demanded.

    Raises:
        SandboxUnavailable: A probe that had to be denied was not (or was not run), or the tier is too low.
    """
    open_doors = sorted(name for name in expected_denied if probes.get(name) is not True)
    if open_doors:
        raise SandboxUnavailable(
            f"the sandbox's self-test failed: {', '.join(open_doors)} should have been denied",
            hint="run `wan-compat doctor` and report its output; nothing was loaded",
            details={"probes": open_doors},
        )
    decision = decide_tier(entered)
    if not decision.tier.satisfies(minimum):
        raise tier_unavailable(decision.tier, minimum, [])
    return decision


def tier_unavailable(found: Tier, minimum: Tier, remedies: Iterable[str]) -> SandboxUnavailable:
    """Return the error for a machine that offers less than was demanded."""
    return SandboxUnavailable(
        f"tier {minimum.value} is required, this machine offers tier {found.value}",
        fixes=[*remedies, "run `wan-compat doctor` to see what is missing and how to get it"],
        details={"tier": found.value, "min_tier": minimum.value},
    )
