"""From facts to the confinement of one worker: which layers, what it sees, what it may use, and what tier that is."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from wan_compat.policies.facts import FileFact, HostFacts
from wan_compat.policies.policy import Policy, replace
from wan_compat.protocol.errors import RefusedByPolicy, SandboxUnavailable
from wan_compat.protocol.values import Mode
from wan_compat.sandbox.spec import (
    ALL_LAYERS,
    MODEL_TARGET,
    NAMESPACE_LAYERS,
    OUTER_LAYERS,
    Bind,
    ConfinementSpec,
    FileIdentity,
    GpuAccess,
    Identity,
    Layer,
    Limits,
    StaticFile,
    Tier,
    View,
)

# Room for a thread per core of each pool (torch, oneDNN, tokenizers, ZeroMQ) on top of the libraries' own.
THREADS_BASE = 64

_MUST_HAVE = frozenset({Layer.DESCRIPTORS, Layer.RLIMITS, Layer.CREDENTIALS, Layer.NO_NEW_PRIVS, Layer.SECCOMP})
_TIER_C = _MUST_HAVE | {Layer.LANDLOCK}
_TIER_B = _TIER_C | (NAMESPACE_LAYERS - {Layer.USER_NAMESPACE}) | {Layer.VIEW}
_TIER_A = _TIER_B | {Layer.CGROUP}

# What every process can do for itself. It confines nothing, which is why it is tier E.
_BASE = frozenset({Layer.DESCRIPTORS, Layer.RLIMITS, Layer.CREDENTIALS, Layer.NO_NEW_PRIVS})

# Code that was approved but is not ours is run in namespaces of its own, or not at all.
TRUST_MINIMUM = Tier.B


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A set of layers to try, and the tier that it makes when it can be entered.

    `outer` are those of them that bubblewrap makes around the worker's launcher; none where the worker makes its own.
    """

    tier: Tier
    layers: frozenset[Layer]
    outer: frozenset[Layer] = frozenset()


def plan_candidates(
    host: HostFacts, policy: Policy, mode: Mode, *, has_cgroup: bool, why_no_cgroup: str = "", cgroup_remedy: str = ""
) -> tuple[Candidate, ...]:
    """Return what to try, strongest first, down to the weakest that policy and mode accept.

    The strongest is everything: less the user namespace for root, who can do without, and less the cgroup where there
    is none. Then the same with namespaces and view made by bubblewrap, for an ordinary user whose machine allows them
    to nobody else: root who may not make namespaces may not make them through it either. Then what a container without
    namespaces can enter (C), and last, only where the policy allows it by name and in safe mode alone, no sandbox (E).
    Tier D has no mechanism on Linux.

    Raises:
        RefusedByPolicy: Tier E is asked for without `allow_unsandboxed`, or with trust mode.
        SandboxUnavailable: Nothing that could be tried here reaches the minimum.
    """
    minimum = minimum_tier(policy, mode)
    if minimum is Tier.E and not policy.allow_unsandboxed:
        raise RefusedByPolicy(
            "tier E means no sandbox at all, and the policy does not allow it",
            hint="ask for tier A, B or C; a machine that offers none of them should not run untrusted models",
        )
    full = ALL_LAYERS - ({Layer.USER_NAMESPACE} if host.is_root else set())
    cgroup = frozenset({Layer.CGROUP}) if has_cgroup else frozenset()
    best = Tier.A if has_cgroup else Tier.B
    outer = OUTER_LAYERS | cgroup
    candidates = [
        Candidate(best, full - {Layer.CGROUP} | cgroup),
        *([] if host.is_root else [Candidate(best, _TIER_C | outer, outer)]),
        Candidate(Tier.C, _TIER_C | cgroup),
        Candidate(Tier.E, _BASE),
    ]
    accepted = tuple(candidate for candidate in candidates if candidate.tier.satisfies(minimum))
    if not accepted:
        raise tier_unavailable(candidates[0].tier, minimum, [cgroup_remedy] if cgroup_remedy else [], why_no_cgroup)
    return accepted


def minimum_tier(policy: Policy, mode: Mode) -> Tier:
    """Return the weakest tier for jobs of this mode: the policy's, but never below B where approved code runs."""
    if mode is Mode.SAFE or policy.min_tier.satisfies(TRUST_MINIMUM):
        return policy.min_tier
    return TRUST_MINIMUM


def policy_for_code(policy: Policy) -> Policy:
    """Return `policy` for a job that runs code of a repository in safe mode: never below the tier of approved code."""
    return policy if policy.min_tier.satisfies(TRUST_MINIMUM) else replace(policy, {"min_tier": TRUST_MINIMUM})


def plan_limits(policy: Policy, *, memory_limit_bytes: int, threads: int) -> Limits:
    """Return what one worker may use; the cgroup and the rlimits are made from the same numbers."""
    return Limits(
        memory_bytes=memory_limit_bytes,
        threads=min(policy.threads, THREADS_BASE + 4 * threads),
        open_files=policy.open_files,
        cpu_cores=policy.cpu_cores,
    )


def plan_confinement(
    *,
    layers: frozenset[Layer],
    runtime_binds: Iterable[Bind],
    runtime_files: Iterable[StaticFile],
    admitted: Iterable[FileFact],
    control_dir: str,
    scratch_dir: str | None,
    scratch_bytes: int,
    limits: Limits,
    identity: Identity | None,
    cgroup_dirs: tuple[str, ...],
    outer: frozenset[Layer] = frozenset(),
    gpu: GpuAccess | None = None,
) -> ConfinementSpec:
    """Compose the spec. The model's part of the view is the list of admitted files, one bind each, and nothing else.

    Args:
        layers: All that shall be in force.
        outer: Those of them that somebody else makes around the launcher.
        scratch_dir: Host folder that is scratch where there is no view (tier C); None otherwise.
        gpu: The worker computes on a GPU: its nodes are in the view, and ioctl reaches the driver.
    """
    model = tuple(
        Bind(
            source=fact.real_path,
            target=f"{MODEL_TARGET}/{fact.path}",
            identity=FileIdentity(fact.device, fact.inode, fact.size, fact.mtime_ns),
        )
        for fact in admitted
    )
    return ConfinementSpec(
        layers=layers - outer,
        outer=outer,
        view=View(
            binds=(*runtime_binds, *model),
            files=tuple(runtime_files),
            control_dir=control_dir,
            scratch_bytes=scratch_bytes,
            host_scratch_dir=scratch_dir,
        ),
        limits=limits,
        identity=identity,
        cgroup_dirs=cgroup_dirs,
        gpu=gpu,
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


def tier_unavailable(found: Tier, minimum: Tier, remedies: Iterable[str], because: str = "") -> SandboxUnavailable:
    """Return the error for a machine that offers less than was demanded, and the mechanism that is missing."""
    return SandboxUnavailable(
        f"tier {minimum.value} is required, this machine offers tier {found.value}"
        + (f": {because}" if because else ""),
        fixes=[*remedies, "run `wan-compat doctor` to see what is missing and how to get it"],
        details={"tier": found.value, "min_tier": minimum.value},
    )
