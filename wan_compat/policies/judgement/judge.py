"""The one entry: everything there is to say about a model, gravest first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.detection.traits import Traits
from wan_compat.policies.facts import HostFacts, ModelFacts
from wan_compat.policies.findings import FINDINGS, Finding, Severity, finding
from wan_compat.policies.judgement.code import judge_code
from wan_compat.policies.judgement.fit import judge_fit
from wan_compat.policies.judgement.identity import judge_identity
from wan_compat.policies.judgement.parts import parts_of
from wan_compat.policies.judgement.resources import judge_resources
from wan_compat.policies.judgement.shards import judge_shards
from wan_compat.policies.judgement.structure import judge_structure
from wan_compat.policies.judgement.versions import Installed, judge_versions
from wan_compat.policies.limits import memory_limit
from wan_compat.policies.models import decide_model
from wan_compat.policies.registry_document import RegistryEntry
from wan_compat.protocol.errors import (
    EnvironmentLacks,
    MemoryExceeded,
    ModelInvalid,
    ModelNotCompatible,
    RefusedByPolicy,
    ResourceExceeded,
    WanCompatError,
)

# What keeps a model from running here, though diffusers could load it elsewhere or for another task.
_ABOUT_HERE = (EnvironmentLacks, ResourceExceeded)
_NOT_ABOUT_LOADING = frozenset({"not_runnable_yet", "task_not_supported", "not_wan"})

# The most fundamental cause decides an exit code: a file that is broken stays broken on a larger machine.
_RANKS: tuple[type[WanCompatError], ...] = (
    ModelInvalid,
    RefusedByPolicy,
    ModelNotCompatible,
    EnvironmentLacks,
    ResourceExceeded,
)
_SEVERITIES = tuple(Severity)

MAX_FINDINGS = 500


def judge(
    facts: ModelFacts,
    architecture: Architecture,
    traits: Mapping[str, Traits],
    installed: Installed,
    host: HostFacts,
    entry: RegistryEntry | None = None,
) -> tuple[Finding, ...]:
    """Return what is wrong or noteworthy about a model, gravest first, each thing once.

    Args:
        facts: What was read. `facts.problems` are part of the answer.
        architecture: What detection made of it.
        traits: What headers and configurations say of denoisers and VAE.
        installed: The libraries that workers use.
        host: The machine.
        entry: What the compatibility registry knows about this model.
    """
    found = [*facts.problems]
    if architecture.is_wan is not False:  # what a model of another family should have is not ours to know
        found += judge_structure(facts, architecture)
        found += judge_shards(facts, parts_of(facts, architecture))
    found += judge_code(facts, architecture)
    found += judge_identity(facts, architecture, traits, entry)
    found += judge_fit(facts, architecture, traits)
    found += judge_versions(facts, architecture, installed, entry)
    if architecture.is_wan is not False:
        found += judge_resources(facts, parts_of(facts, architecture), host)
    # More memory or a newer library would not help a model that could not be run then either: that is told at once.
    if all(issubclass(FINDINGS[item.code].error, _ABOUT_HERE) for item in found if is_error(item)):
        told = {item.code for item in found}
        found += (item for item in _runnable(facts, architecture, host) if item.code not in told)
    return in_order(found)


def in_order(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings without repetitions, errors first, and those of one severity by what is most fundamental."""
    unique = dict.fromkeys(found)
    return tuple(sorted(unique, key=lambda item: (_SEVERITIES.index(item.severity), rank(item))))[:MAX_FINDINGS]


def _runnable(facts: ModelFacts, architecture: Architecture, host: HostFacts) -> Iterator[Finding]:
    """Ask the decision that `generate` makes, so that the two never disagree."""
    if architecture.layout == "lora":
        message = f"a LoRA for {architecture.variant or 'a Wan model'}: it changes a model and is none"
        yield finding("not_runnable_yet", message, fix="give the model that it is for")
        return
    if architecture.layout in ("single_file", "gguf", "component"):
        yield finding(
            "not_runnable_yet",
            f"a part of a model, in the layout {architecture.layout}; the other parts were not given",
            fix="give a folder in diffusers layout that has them: --components FOLDER",
        )
        return
    if architecture.layout not in ("diffusers", "modular"):
        yield finding(
            "not_runnable_yet",
            f"a sound model in the layout {architecture.layout}; whole models in diffusers layout can be run",
            fix="use the model's repository in diffusers layout",
        )
        return
    try:
        decide_model(facts, threads=1, memory_limit_bytes=memory_limit(None, host))
    except MemoryExceeded as error:
        yield finding("memory_short", error.message.replace(facts.root, "the model"), fix=error.hint)
    except WanCompatError as error:
        yield finding("not_runnable_yet", error.message.replace(facts.root, "the model"), fix=error.hint)


def rank(item: Finding) -> int:
    """Return how fundamental a finding is, 0 first; see `exit_code`."""
    error = FINDINGS[item.code].error
    return next((number for number, kind in enumerate(_RANKS) if issubclass(error, kind)), len(_RANKS))


def exit_code(found: Iterable[Finding]) -> int:
    """Return the exit code that these findings amount to.

    Of several errors the most fundamental counts: 4 invalid or corrupt, 5 refused by policy, 1 not compatible, 3 the
    environment lacks something, 6 not enough memory. Warnings alone are 0.
    """
    errors = sorted((rank(item), FINDINGS[item.code].error.exit_code) for item in found if is_error(item))
    return errors[0][1] if errors else 0


def is_error(item: Finding) -> bool:
    return item.severity is Severity.ERROR


def is_loadable(found: Iterable[Finding]) -> bool:
    """Whether diffusers can load the model with explicit classes, here or on a machine that has what it takes."""
    return not any(
        is_error(item)
        and item.code not in _NOT_ABOUT_LOADING
        and not issubclass(FINDINGS[item.code].error, _ABOUT_HERE)
        for item in found
    )
