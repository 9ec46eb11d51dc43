"""The compatibility registry's rules: what a model needs, what an update may change, and what no update can.

    package's copy  <-  overlay or update          merge(): field by field, never trusting the right side

An update may add models, classes of diffusers, memory figures and defaults. It cannot

- lower a floor: `SECURITY_FLOORS`, or a minimum that the package's copy states; lower ones are raised;
- name a package outside `ALLOWED_PACKAGES`, or an address, marker or extra in a dependency;
- give a pipeline to a model that has none unless diffusers itself has that class, or replace one by another.

Each thing that was not taken is an `Adjustment`, which is told to the user.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from wan_compat.policies.architecture import PipelineRequirements
from wan_compat.policies.registry_document import PipelineEntry, RegistryDocument, RegistryEntry
from wan_compat.policies.variants import VARIANTS

# The first releases without known remote-code holes that matter here (SECURITY.md).
SECURITY_FLOORS: Mapping[str, str] = {"diffusers": "0.38.0", "transformers": "5.3.0", "torch": "2.10"}

# What a registry may ask to install; a name outside could be anybody's package.
ALLOWED_PACKAGES = frozenset(
    {
        *SECURITY_FLOORS,
        *("accelerate", "safetensors", "sentencepiece", "ftfy", "pillow", "peft", "imageio", "imageio-ffmpeg"),
        *("gguf", "bitsandbytes", "torchao", "optimum-quanto", "opencv-python-headless"),
    }
)

COMPATIBILITY_REGISTRY_EXAMPLE: Mapping[str, Mapping[str, Any]] = {
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": {
        "pipeline_class": "WanPipeline",
        "min_diffusers_version": "0.35.0",
        "required_dependencies": ["diffusers>=0.38.0", "transformers>=5.3.0", "torch>=2.10"],
        "pipeline_source": "https://github.com/huggingface/diffusers/blob/v0.42.1/src/diffusers/pipelines/wan/pipeline_wan.py",
        "vram_requirements": {
            "min_mb": 10700,
            "plan": "group",
            "recommended_mb": 40600,
            "recommended_plan": "model",
        },
        "supported_optimizations": ["cpu_offload", "mixed_precision", "chunked_processing"],
    }
}


@dataclasses.dataclass(frozen=True)
class Adjustment:
    """Something an update wanted and did not get: `raised` to a floor, or `refused`."""

    kind: Literal["raised", "refused"]
    name: str
    field: str
    wanted: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.field} {self.wanted!r} {self.kind}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Change:
    """One difference between two registries. `field` is None where a whole entry was added or removed."""

    kind: Literal["added", "removed", "changed"]
    subject: Literal["model", "pipeline"]
    name: str
    field: str | None
    before: Any
    after: Any

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Merged:
    document: RegistryDocument
    adjustments: tuple[Adjustment, ...]


# ---- merging -------------------------------------------------------------------------------------------------------


def merge(shipped: RegistryDocument, update: RegistryDocument, known_classes: Collection[str] = ()) -> Merged:
    """Return the package's copy with an update over it.

    Args:
        known_classes: Pipeline classes of the installed diffusers, beside those that the package's copy names.
    """
    known = {*shipped.pipelines, *known_classes}
    adjustments: list[Adjustment] = []
    pipelines = dict(shipped.pipelines)
    for name, pipeline in update.pipelines.items():
        if name not in known:
            adjustments.append(Adjustment("refused", name, "pipeline", name, "diffusers has no such class"))
            continue
        pipelines[name] = _merge_pipeline(name, shipped.pipelines.get(name), pipeline, adjustments)
    models = dict(shipped.models)
    for name, entry in update.models.items():
        base = _base(shipped, name, entry)
        models[name] = _merge_entry(name, base, entry, known, adjustments, is_new=name not in shipped.models)
    fields = {"pipelines": pipelines, "models": models, "serial": max(shipped.serial, update.serial)}
    if update.diffusers_version is not None:
        fields["diffusers_version"] = update.diffusers_version
    return Merged(shipped.model_copy(update=fields), tuple(adjustments))


def _base(shipped: RegistryDocument, name: str, entry: RegistryEntry) -> RegistryEntry:
    """What an update's entry stands on: the same model, or for a new name the model whose variant it claims to be."""
    if name in shipped.models:
        return shipped.models[name]
    variant = VARIANTS.get(entry.variant or "")
    found = shipped.models.get(variant.repository or variant.slug) if variant is not None else None
    return RegistryEntry() if found is None else found.model_copy(update={"licence": None, "notes": (), "sources": ()})


def _merge_entry(
    name: str,
    base: RegistryEntry,
    entry: RegistryEntry,
    known: Collection[str],
    adjustments: list[Adjustment],
    *,
    is_new: bool,
) -> RegistryEntry:
    wanted = {field: getattr(entry, field) for field in entry.model_fields_set}

    def refuse(field: str, value: Any, reason: str) -> None:
        adjustments.append(Adjustment("refused", name, field, str(value), reason))
        del wanted[field]

    pipeline = wanted.get("pipeline_class")
    if "pipeline_class" in wanted and pipeline != base.pipeline_class:
        if base.pipeline_class is not None and not (is_new and pipeline is None):
            refuse("pipeline_class", pipeline, f"the package says {base.pipeline_class}")
        elif pipeline is not None and pipeline not in known:
            refuse("pipeline_class", pipeline, "diffusers has no such class")
    if (also := wanted.get("also_loads_as")) and not set(also) <= set(known):
        refuse("also_loads_as", ", ".join(also), "diffusers has no such class")
    if (variant := wanted.get("variant")) is not None and variant not in VARIANTS:
        refuse("variant", variant, "no known variant")
    if "min_diffusers_version" in wanted:
        floor = base.min_diffusers_version or SECURITY_FLOORS["diffusers"]
        if _below(wanted["min_diffusers_version"], floor):
            _note_raised(adjustments, name, "min_diffusers_version", wanted["min_diffusers_version"], floor)
            wanted["min_diffusers_version"] = floor
    if "required_dependencies" in wanted:
        wanted["required_dependencies"] = _merge_dependencies(
            name, base.required_dependencies, wanted["required_dependencies"], adjustments
        )
    return base.model_copy(update=wanted)


def _merge_pipeline(
    name: str, base: PipelineEntry | None, entry: PipelineEntry, adjustments: list[Adjustment]
) -> PipelineEntry:
    if base is None:
        return entry
    wanted = {field: getattr(entry, field) for field in entry.model_fields_set}
    floor = base.min_diffusers_version
    if floor is not None and _below(wanted.get("min_diffusers_version", floor), floor):
        _note_raised(adjustments, name, "min_diffusers_version", wanted["min_diffusers_version"], floor)
        wanted["min_diffusers_version"] = floor
    return base.model_copy(update=wanted)


def _merge_dependencies(
    name: str, base: tuple[str, ...], wanted: tuple[str, ...], adjustments: list[Adjustment]
) -> tuple[str, ...]:
    """Return the package's own dependencies with minimums raised where asked, then allowed new ones."""
    merged = {minimum_of(text)[0]: text for text in base}
    for text in wanted:
        try:
            package, minimum = minimum_of(text)
        except ValueError as error:
            adjustments.append(Adjustment("refused", name, "required_dependencies", text, str(error)))
            continue
        if package not in ALLOWED_PACKAGES:
            reason = "not on the list of packages that a registry may ask for"
            adjustments.append(Adjustment("refused", name, "required_dependencies", text, reason))
            continue
        floors = [SECURITY_FLOORS.get(package), minimum_of(merged[package])[1] if package in merged else None]
        floor = max((version for version in floors if version is not None), key=Version, default=None)
        if floor is not None and (minimum is None or _below(minimum, floor)):
            if minimum is not None:
                _note_raised(adjustments, name, "required_dependencies", text, floor)
            minimum = floor
        merged[package] = f"{package}>={minimum}" if minimum is not None else package
    return tuple(merged.values())


def minimum_of(text: str) -> tuple[str, str | None]:
    """Return (package, minimum version) of a dependency of the form `name` or `name>=version`.

    Raises:
        ValueError: Any other form: an upper bound or a pin would hold a package below a later floor.
    """
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise ValueError("no valid dependency") from error
    specifiers = list(requirement.specifier)
    if requirement.url or requirement.extras or requirement.marker or len(specifiers) > 1:
        raise ValueError("only NAME or NAME>=VERSION is taken")
    if specifiers and specifiers[0].operator != ">=":
        raise ValueError("only NAME or NAME>=VERSION is taken")
    return canonicalize_name(requirement.name), specifiers[0].version if specifiers else None


def _note_raised(adjustments: list[Adjustment], name: str, field: str, wanted: Any, floor: str) -> None:
    adjustments.append(Adjustment("raised", name, field, str(wanted), f"not below {floor}"))


def _below(version: str | None, floor: str) -> bool:
    try:
        return version is None or Version(version) < Version(floor)
    except InvalidVersion:
        return True


# ---- differences ---------------------------------------------------------------------------------------------------


def diff(before: RegistryDocument, after: RegistryDocument) -> tuple[Change, ...]:
    """Return what changed, models first, by name and field."""
    return (
        *_diff("model", before.models, after.models),
        *_diff("pipeline", before.pipelines, after.pipelines),
    )


def _diff(
    subject: Literal["model", "pipeline"],
    before: Mapping[str, RegistryEntry] | Mapping[str, PipelineEntry],
    after: Mapping[str, RegistryEntry] | Mapping[str, PipelineEntry],
) -> Iterator[Change]:
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None and new is not None:
            yield Change("added", subject, name, None, None, new.model_dump(mode="json", exclude_defaults=True))
        elif new is None and old is not None:
            yield Change("removed", subject, name, None, old.model_dump(mode="json", exclude_defaults=True), None)
        elif old is not None and new is not None and old != new:
            left, right = old.model_dump(mode="json"), new.model_dump(mode="json")
            for field in sorted(left):
                if left[field] != right[field]:
                    yield Change("changed", subject, name, field, left[field], right[field])


# ---- looking up ----------------------------------------------------------------------------------------------------


def find_model(document: RegistryDocument, name: str) -> tuple[str, RegistryEntry] | None:
    """Return (registry name, entry) by hub name, variant, folder name, or folder of a Hugging Face cache."""
    for candidate in _candidates(name):
        if candidate in document.models:
            return candidate, document.models[candidate]
        lower = candidate.lower()
        if lower in VARIANTS:
            repository = VARIANTS[lower].repository or lower
            if repository in document.models:
                return repository, document.models[repository]
        for known, entry in document.models.items():
            if lower in (known.lower(), posixpath.basename(known).lower()):
                return known, entry
    return None


def _candidates(name: str) -> Iterator[str]:
    """Yield what a name may mean, most literal first: `a/b`, then the repository of a cache folder, then `b`."""
    yield name
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    for part in reversed(parts):
        if part.startswith("models--"):
            yield part.removeprefix("models--").replace("--", "/")
    if parts:
        yield parts[-1]


def requirements_of(document: RegistryDocument, entry: RegistryEntry) -> PipelineRequirements:
    """Return what a model's pipeline asks for. An argument that has a default but is needed all the same counts as
    required: the first of each `one_of` group."""
    pipeline = document.pipelines.get(entry.pipeline_class or "")
    required, optional = pipeline_arguments(pipeline) if pipeline is not None else ([], [])
    return PipelineRequirements(
        required_args=list(entry.required_args) if entry.required_args is not None else required,
        optional_args=list(entry.optional_args) if entry.optional_args is not None else optional,
        dependencies=list(entry.required_dependencies),
        min_vram_mb=entry.vram_requirements.min_mb or 0,
        supports_cpu_offload="cpu_offload" in entry.supported_optimizations,
    )


def pipeline_arguments(pipeline: PipelineEntry) -> tuple[list[str], list[str]]:
    """Return (required, optional) arguments of a pipeline's call."""
    needed = [group[0] for group in pipeline.one_of]
    required = [*pipeline.required_args, *(name for name in needed if name not in pipeline.required_args)]
    return required, [name for name in pipeline.optional_args if name not in required]


def version_problem(minimum: str | None, found: str | None) -> str | None:
    """Return why an installed diffusers will not do, with what to do about it; None where it will.

    A pre-release counts as its release: `0.36.0.dev0` is what a checkout calls itself after 0.35 was cut, and has the
    class or has not, which its table tells. Against the floor for security it counts as older.
    """
    if found is None:
        return None
    floor = SECURITY_FLOORS["diffusers"]
    upgrade = f'pip install --upgrade "diffusers>={max(filter(None, (minimum, floor)), key=Version)}"'
    try:
        version = Version(found)
    except InvalidVersion:
        return f"the installed diffusers has the unreadable version {found!r}: {upgrade}"
    if minimum is not None and Version(version.base_version) < Version(minimum):
        return f"needs diffusers >= {minimum}, you have {found}: {upgrade}"
    if version < Version(floor):
        return f"needs diffusers >= {floor} for its security fixes, you have {found}: {upgrade}"
    return None
