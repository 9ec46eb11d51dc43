"""Which packages a model may have installed for it: the list, what each is for, and what a model needs of it.

Nothing outside the list is ever installed, and no name outside it is printed as something to install: such a name could
be anybody's package. What is then done about a need is for `dependency_plan.py`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from wan_compat.policies.architecture import Architecture, VersionCompatibility
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.registry import SECURITY_FLOORS
from wan_compat.protocol.errors import RefusedByPolicy, clean_text


class Feature(enum.StrEnum):
    """What a model can need beyond the libraries of every worker."""

    LORA = "lora"
    GGUF = "gguf"
    BITSANDBYTES = "bitsandbytes"
    TORCHAO = "torchao"
    QUANTO = "quanto"


@dataclasses.dataclass(frozen=True)
class AllowedPackage:
    """One package that may be installed: from which version on, and what for. `feature` None: every worker wants it."""

    name: str
    specifier: str
    why: str
    feature: Feature | None = None

    @property
    def requirement(self) -> str:
        return f"{self.name}{self.specifier}"


# Floors without a word to them are those of SECURITY_FLOORS or of pyproject.toml's worker extra.
ALLOWED: Mapping[str, AllowedPackage] = {
    item.name: item
    for item in (
        AllowedPackage("torch", f">={SECURITY_FLOORS['torch']}", "computes"),
        AllowedPackage("diffusers", f">={SECURITY_FLOORS['diffusers']}", "has the pipelines"),
        AllowedPackage("transformers", f">={SECURITY_FLOORS['transformers']}", "has the text encoder"),
        AllowedPackage("accelerate", ">=1.2", "loads large models piece by piece"),
        AllowedPackage("safetensors", ">=0.5", "reads weights"),
        AllowedPackage("sentencepiece", ">=0.2", "tokenizer of the text encoder"),
        AllowedPackage("ftfy", ">=6.3", "cleans prompts as Wan was trained on them"),
        AllowedPackage("pillow", ">=11", "reads images"),
        AllowedPackage("av", ">=14", "reads videos"),
        # transformers.integrations.peft.MIN_PEFT_VERSION of transformers 5.23; diffusers asks for less.
        AllowedPackage("peft", ">=0.20.0", "applies LoRAs", Feature.LORA),
        # The floors of diffusers 0.42's quantizers.
        AllowedPackage("gguf", ">=0.10.0", "reads GGUF weights", Feature.GGUF),
        AllowedPackage("bitsandbytes", ">=0.48.0", "runs weights in 4 or 8 bits", Feature.BITSANDBYTES),
        AllowedPackage("torchao", ">=0.16.0", "runs weights quantised by torchao", Feature.TORCHAO),
        AllowedPackage("optimum-quanto", ">=0.2.6", "runs weights quantised by quanto", Feature.QUANTO),
    )
}

# torch, and what only comes with it. A dependency on one of these is for the base environment to satisfy.
NEVER_INSTALLED = frozenset({"torch", "triton"})

# `quant_method` of a component's configuration -> what runs it. What is not here needs no package or has none.
_QUANT_METHODS = {
    "bitsandbytes": Feature.BITSANDBYTES,
    "gguf": Feature.GGUF,
    "torchao": Feature.TORCHAO,
    "quanto": Feature.QUANTO,
}


@dataclasses.dataclass(frozen=True)
class Need:
    """One requirement, and who has it: `Wan-AI/Wan2.1-T2V-14B-Diffusers`, `peft 0.21.2`, `you`."""

    requirement: str
    wanted_by: str


def features_of(facts: ModelFacts, architecture: Architecture) -> frozenset[Feature]:
    """Return what lies in a model that needs more than every worker has."""
    found = set()
    if architecture.layout == "gguf" or any(weights.format == "gguf" for weights in facts.weights.values()):
        found.add(Feature.GGUF)
    for document in facts.documents.values():
        quantization = document.get("quantization_config")
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        if isinstance(method, str) and method in _QUANT_METHODS:
            found.add(_QUANT_METHODS[method])
    return frozenset(found)


def needs_of(name: str, registered: Iterable[str], features: Iterable[Feature]) -> tuple[Need, ...]:
    """Return what a model needs.

    Args:
        name: Of the model, for the plan to say who wants what.
        registered: Requirements of its registry entry; empty for a model that nobody knows.
    """
    needs = [Need(item.requirement, "every worker") for item in ALLOWED.values() if item.feature is None]
    needs += [Need(text, name) for text in registered]
    wanted = frozenset(features)
    needs += [
        Need(item.requirement, f"{item.feature} of {name}") for item in ALLOWED.values() if item.feature in wanted
    ]
    return tuple(needs)


def require_allowed(requirements: Iterable[str], wanted_by: str) -> tuple[Need, ...]:
    """Return requirements as needs if all of them name packages of the allow list.

    Raises:
        RefusedByPolicy: One does not, or is not a plain NAME or NAME with versions; all such are named.
    """
    needs, refused = [], []
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            refused.append(f"{clean_text(text, 80)!r} (not a requirement)")
            continue
        if canonicalize_name(requirement.name) not in ALLOWED:
            refused.append(f"{clean_text(requirement.name, 80)!r}")
        elif requirement.url or requirement.extras or requirement.marker:
            refused.append(f"{clean_text(text, 80)!r} (an address, extras or a condition)")
        else:
            needs.append(Need(text, wanted_by))
    if refused:
        raise RefusedByPolicy(
            f"not on the list of packages that may be installed: {', '.join(refused[:20])}",
            hint=f"on it are {', '.join(sorted(ALLOWED.keys() - NEVER_INSTALLED))}",
            details={"refused": refused[:20]},
        )
    return tuple(needs)


def validate_code_version(local_code: str, model_version: str) -> VersionCompatibility:
    """Say whether the installed code runs what a model was made with.

    Args:
        local_code: Version of the installed library, empty for none.
        model_version: What the model says: a version (`_diffusers_version` of its index; at least that one is needed,
            a development version counting as its release) or a range (`>=0.35`).
    """
    found = local_code or None
    try:
        if model_version[:1].isdigit():
            wanted = SpecifierSet(f">={Version(model_version).base_version}")
        else:
            wanted = SpecifierSet(model_version)
    except ValueError:
        shown = clean_text(model_version, 80)
        return VersionCompatibility(False, shown, found, f"{shown!r} is neither a version nor a range of versions")
    required = str(wanted)
    if found is None:
        return VersionCompatibility(
            False, required, None, f"nothing is installed, {required or 'any version'} is needed"
        )
    try:
        version = Version(found)
    except ValueError:
        return VersionCompatibility(False, required, found, f"{clean_text(found, 80)!r} is not a version")
    floor = Version(SECURITY_FLOORS["diffusers"])
    if not wanted.contains(version.base_version, prereleases=True):
        return VersionCompatibility(False, required, found, f"{required} is needed, installed is {found}")
    if version < floor:
        return VersionCompatibility(
            False, required, found, f"diffusers >= {floor} is needed for its security fixes, installed is {found}"
        )
    return VersionCompatibility(True, required, found, f"{found} satisfies {required or 'any version'}")
