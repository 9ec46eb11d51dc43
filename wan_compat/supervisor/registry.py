"""The compatibility registry of this user: the package's copy, and an overlay with what was learned since.

    data/compatibility_registry.json         comes with the package, never written
    <state>/compatibility_registry.json      the overlay: only what differs; replaced whole, under its lock

The overlay is judged again each time it is read (`policies/registry.py`): a floor that somebody lowered in it by hand
is raised again. An overlay that is damaged, or that others could have written, is not used; `problems` says why and
what to do, and nothing is written over it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wan_compat.policies.architecture import CompatibilityCheck, PipelineRequirements
from wan_compat.policies.registry import Change, diff, find_model, requirements_of, version_problem
from wan_compat.policies.registry_document import (
    MAX_DOCUMENT_BYTES,
    RegistryDocument,
    RegistryEntry,
    VramRequirements,
    parse_document,
    write_document,
)
from wan_compat.policies.registry_merge import Adjustment, accepted, combine, merge, pruned
from wan_compat.protocol.errors import (
    InvalidRequest,
    RefusedByPolicy,
    StateCorrupt,
    StateUnsafe,
    WanCompatError,
    clean_text,
)
from wan_compat.supervisor.installed import find_package, find_version
from wan_compat.supervisor.private_files import PrivateFolder, state_folder

REGISTRY_NAME = "compatibility_registry.json"
_SHIPPED = Path(__file__).parents[1] / "data" / REGISTRY_NAME


@dataclasses.dataclass(frozen=True)
class RegistryUpdate:
    """What an update did, or would do in a dry run."""

    changes: tuple[Change, ...]
    adjustments: tuple[Adjustment, ...]
    written: bool


class CompatibilityRegistry:
    """What is known about models: which pipeline runs them, from which version on, with how much memory.

    Args:
        registry_path: The overlay. The bare default name means the one in this user's state folder.
        site_packages: Judge against the packages of another interpreter.

    Attributes:
        document: Everything known, overlay included.
        problems: Why an overlay was not used; each with its remedy.
        adjustments: What the overlay said and was not taken.
    """

    def __init__(self, registry_path: str | Path = REGISTRY_NAME, *, site_packages: str | None = None) -> None:
        bare = str(registry_path) == REGISTRY_NAME
        self.registry_path = state_folder() / REGISTRY_NAME if bare else Path(registry_path)
        self._own_folder = bare
        self._site_packages = site_packages
        self.problems: tuple[WanCompatError, ...] = ()
        self.adjustments: tuple[Adjustment, ...] = ()
        self.document = self._load_registry()

    @property
    def registry(self) -> dict[str, dict[str, Any]]:
        """Return all entries as plain data: name -> `pipeline_class`, `min_diffusers_version` and so on."""
        return {name: entry.model_dump(mode="json") for name, entry in self.document.models.items()}

    def entry(self, model_name: str) -> tuple[str, RegistryEntry] | None:
        """Return (registry name, entry) of a model by hub name, variant or folder name."""
        return find_model(self.document, model_name)

    def get_pipeline_requirements(self, model_name: str) -> PipelineRequirements | None:
        """Return what a model's pipeline asks for, None for an unknown model."""
        found = self.entry(model_name)
        return requirements_of(self.document, found[1]) if found is not None else None

    def register_model_compatibility(self, model_name: str, requirements: PipelineRequirements) -> None:
        """Keep one model's requirements; see `update_registry`."""
        self.update_registry({model_name: requirements})

    def update_registry(self, updates: Mapping[str, PipelineRequirements]) -> RegistryUpdate:
        """Keep the requirements of several models in the overlay, all or none.

        Raises:
            InvalidRequest: A name or value that no registry has.
            StateUnsafe, StateCorrupt: The overlay cannot be used or written.
        """
        models = {}
        for name, requirements in updates.items():
            found = self.entry(name)
            models[found[0] if found else name] = _entry_of(requirements, found[1] if found else RegistryEntry())
        try:
            update = RegistryDocument(models=models)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidRequest(f"{clean_text(where, 200)}: {clean_text(first['msg'], 200)}") from error
        return self.apply(update)

    def validate_model_pipeline_compatibility(self, model_name: str, available_pipeline: str) -> CompatibilityCheck:
        """Say whether a pipeline class runs a model, in the diffusers that is installed here if there is one."""
        found = self.entry(model_name)
        if found is None:
            reason = f"{clean_text(model_name, 200)} is not in the registry; `wan-compat check` looks at the files"
            return CompatibilityCheck(False, model_name, None, available_pipeline, [reason])
        name, entry = found
        reasons = []
        if entry.pipeline_class is None and entry.required_args is not None:
            # Registered by a program: PipelineRequirements names no class.
            reasons.append(
                f"the registry does not say which pipeline runs {name}; `wan-compat check` looks at the files"
            )
        elif entry.pipeline_class is None:
            reasons.append(f"no pipeline of diffusers runs {name}{_instead(entry)}")
        elif available_pipeline not in (entry.pipeline_class, *entry.also_loads_as):
            others = f" or {', '.join(entry.also_loads_as)}" if entry.also_loads_as else ""
            reasons.append(f"{name} needs {entry.pipeline_class}{others}, not {clean_text(available_pipeline, 120)}")
        if entry.pipeline_class is not None:
            old = version_problem(entry.min_diffusers_version, find_version("diffusers", self._site_packages))
            reasons += [f"{entry.pipeline_class} for {name} {old}"] if old is not None else []
        return CompatibilityCheck(not reasons, name, entry.pipeline_class, available_pipeline, reasons)

    def apply(self, update: RegistryDocument, *, dry_run: bool = False) -> RegistryUpdate:
        """Put an update over what the overlay has, and write the overlay if that changed anything.

        Raises:
            RefusedByPolicy: A signed update older than one that was taken before.
            StateUnsafe, StateCorrupt: The overlay cannot be used or written; nothing was changed.
        """
        with PrivateFolder(self.registry_path.parent, create=not dry_run, close=self._own_folder) as folder:
            if dry_run:
                return self._apply(folder, update, dry_run=True)
            with folder.lock(self.registry_path.name):
                return self._apply(folder, update, dry_run=False)

    def _apply(self, folder: PrivateFolder, update: RegistryDocument, *, dry_run: bool) -> RegistryUpdate:
        # Read again under the lock: another process may have written since this object was made.
        overlay = self._read_overlay(folder)
        if 0 < update.serial < overlay.serial:
            raise RefusedByPolicy(
                f"the update has serial {update.serial}, one with {overlay.serial} was taken before",
                hint="get the newest file; an old one could bring back what was corrected",
            )
        kept = accepted(self._shipped, update, self._known_classes(update))
        after = pruned(self._shipped, combine(overlay, kept.document))
        known = self._known_classes(after)
        old, new = merge(self._shipped, overlay, known), merge(self._shipped, after, known)
        written = after != overlay and not dry_run
        if written:
            content = write_document(after)
            if len(content) > MAX_DOCUMENT_BYTES:
                raise InvalidRequest(f"the registry would have {len(content)} bytes, at most {MAX_DOCUMENT_BYTES} fit")
            try:
                folder.replace(self.registry_path.name, content)
            except OSError as error:
                raise StateUnsafe(
                    f"{self.registry_path} cannot be written: {error.strerror}",
                    hint="free some space; nothing was changed",
                ) from error
            self.document, self.adjustments, self.problems = new.document, new.adjustments, ()
        return RegistryUpdate(diff(old.document, new.document), kept.adjustments, written)

    def _load_registry(self) -> RegistryDocument:
        try:
            with PrivateFolder(self.registry_path.parent, close=self._own_folder) as folder:
                overlay = self._read_overlay(folder)
        except (StateUnsafe, StateCorrupt) as error:
            self.problems = (error,)
            return self._shipped
        merged = merge(self._shipped, overlay, self._known_classes(overlay))
        self.adjustments = merged.adjustments
        return merged.document

    def _read_overlay(self, folder: PrivateFolder) -> RegistryDocument:
        raw = folder.read(self.registry_path.name, MAX_DOCUMENT_BYTES)
        try:
            return parse_document(raw, str(self.registry_path)) if raw is not None else RegistryDocument()
        except InvalidRequest as error:
            raise StateCorrupt(
                f"the registry's overlay is damaged and not used: {error.message}",
                hint=f"put it aside: mv {self.registry_path} {self.registry_path}.broken, "
                "then `wan-compat update-registry --auto` makes it anew",
            ) from error

    def _known_classes(self, document: RegistryDocument) -> frozenset[str]:
        """The installed diffusers' classes, read only where a document names one that the package does not know."""
        named = {*document.pipelines}
        for entry in document.models.values():
            named.update((*entry.also_loads_as, *((entry.pipeline_class,) if entry.pipeline_class else ())))
        if named <= {*self._shipped.pipelines}:
            return frozenset()
        diffusers = find_package("diffusers", self._site_packages)
        return diffusers.class_names() if diffusers is not None else frozenset()

    @property
    def _shipped(self) -> RegistryDocument:
        return shipped_registry()


@functools.cache
def shipped_registry() -> RegistryDocument:
    """Return the package's own copy, parsed once."""
    return parse_document(_SHIPPED.read_bytes(), str(_SHIPPED))


def _entry_of(requirements: PipelineRequirements, known: RegistryEntry) -> RegistryEntry:
    optimizations = [name for name in known.supported_optimizations if name != "cpu_offload"]
    if requirements.supports_cpu_offload:
        optimizations.insert(0, "cpu_offload")
    try:
        return RegistryEntry(
            required_args=tuple(requirements.required_args),
            optional_args=tuple(requirements.optional_args),
            required_dependencies=tuple(requirements.dependencies),
            # Not model_copy: it would take values unchecked.
            vram_requirements=VramRequirements(
                min_mb=requirements.min_vram_mb,
                plan="registered",
                recommended_mb=known.vram_requirements.recommended_mb,
                recommended_plan=known.vram_requirements.recommended_plan,
            ),
            supported_optimizations=tuple(optimizations),
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"requirements: {clean_text(where, 200)}: {clean_text(first['msg'], 200)}") from error


def _instead(entry: RegistryEntry) -> str:
    if entry.alternative is None:
        return ""
    model = f"use {entry.alternative.model}: " if entry.alternative.model else ""
    return f"; {model}{entry.alternative.reason}"
