"""What an update may change in the registry, and what no update can.

    package's copy  <-  overlay or update          merge(): field by field, never trusting the right side

An update may add models, classes of diffusers, memory figures and defaults. It cannot

- lower a floor: `SECURITY_FLOORS`, or a minimum that the package's copy states; lower ones are raised;
- name a package outside `ALLOWED_PACKAGES`, or an address, marker or extra in a dependency;
- give a pipeline to a model that has none unless diffusers itself has that class, or replace one by another.

Each thing that was not taken is an `Adjustment`, which is told to the user.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, Literal, TypeVar

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel

from wan_compat.policies.registry import ALLOWED_PACKAGES, SECURITY_FLOORS
from wan_compat.policies.registry_document import PipelineEntry, RegistryDocument, RegistryEntry
from wan_compat.policies.variants import VARIANTS

_Entry = TypeVar("_Entry", RegistryEntry, PipelineEntry)


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
class Merged:
    document: RegistryDocument
    adjustments: tuple[Adjustment, ...]


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


def accepted(shipped: RegistryDocument, update: RegistryDocument, known_classes: Collection[str] = ()) -> Merged:
    """Return what is left of an update when everything is taken out that `merge` would not take, with minimums raised:
    what may be put over an overlay. The adjustments say what went."""
    merged = merge(shipped, update, known_classes)
    # A refused dependency is left out of its list, anything else with its field.
    refused = {(item.name, item.field) for item in merged.adjustments if item.kind == "refused"}
    refused -= {(name, "required_dependencies") for name in update.models}
    models = {
        name: _taken(entry, merged.document.models[name], {field for owner, field in refused if owner == name})
        for name, entry in update.models.items()
    }
    pipelines = {
        name: _taken(entry, merged.document.pipelines[name], set())
        for name, entry in update.pipelines.items()
        if (name, "pipeline") not in refused
    }
    document = update.model_copy(update={"models": models, "pipelines": pipelines})
    return Merged(document, merged.adjustments)


def pruned(shipped: RegistryDocument, overlay: RegistryDocument) -> RegistryDocument:
    """Return an overlay without what the package's copy says anyway, so that a newer package is not masked."""
    fields: dict[str, Any] = {"serial": overlay.serial, "models": {}, "pipelines": {}}
    for table in ("models", "pipelines"):
        for name, entry in getattr(overlay, table).items():
            base = getattr(shipped, table).get(name)
            kept = _set_fields(entry)
            if base is not None:
                over = _over(base, kept)
                kept = {field: value for field, value in kept.items() if over[field] != getattr(base, field)}
            if kept or base is None:
                fields[table][name] = type(entry).model_construct(_fields_set=set(kept), **kept)
    if overlay.diffusers_version not in (None, shipped.diffusers_version):
        fields["diffusers_version"] = overlay.diffusers_version
    return RegistryDocument(**fields)


def combine(older: RegistryDocument, newer: RegistryDocument) -> RegistryDocument:
    """Return two overlays as one; fields of the newer one win."""
    models, pipelines = dict(older.models), dict(older.pipelines)
    for name, entry in newer.models.items():
        known = models.get(name)
        models[name] = entry if known is None else known.model_copy(update=_over(known, _set_fields(entry)))
    for name, pipeline in newer.pipelines.items():
        before = pipelines.get(name)
        pipelines[name] = pipeline if before is None else before.model_copy(update=_over(before, _set_fields(pipeline)))
    fields: dict[str, Any] = {"models": models, "pipelines": pipelines, "serial": max(older.serial, newer.serial)}
    if newer.diffusers_version is not None:
        fields["diffusers_version"] = newer.diffusers_version
    return older.model_copy(update=fields)


def _taken(entry: _Entry, merged: _Entry, refused: Collection[str]) -> _Entry:
    raised = ("required_dependencies", "min_diffusers_version")
    fields = {
        field: getattr(merged if field in raised else entry, field)
        for field in entry.model_fields_set
        if field not in refused
    }
    return type(entry).model_construct(_fields_set=set(fields), **fields)


def _set_fields(entry: BaseModel) -> dict[str, Any]:
    return {field: getattr(entry, field) for field in entry.model_fields_set}


def _over(base: BaseModel, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `wanted` over those of `base`, key by key where both are tables: an update that knows a
    new frame rate does not forget the size."""
    fields = {}
    for field, value in wanted.items():
        before = getattr(base, field)
        if isinstance(value, dict) and isinstance(before, dict):
            value = {**before, **value}
        elif isinstance(value, BaseModel) and type(value) is type(before):
            value = before.model_copy(update=_set_fields(value))
        fields[field] = value
    return fields


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
        version = wanted["min_diffusers_version"]
        floor = base.min_diffusers_version or (SECURITY_FLOORS["diffusers"] if version is not None else None)
        if floor is not None and _below(version, floor):
            _note_raised(adjustments, name, "min_diffusers_version", version, floor)
            wanted["min_diffusers_version"] = floor
    if "required_dependencies" in wanted:
        wanted["required_dependencies"] = _merge_dependencies(
            name, base.required_dependencies, wanted["required_dependencies"], adjustments
        )
    return base.model_copy(update=_over(base, wanted))


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
    return base.model_copy(update=_over(base, wanted))


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
