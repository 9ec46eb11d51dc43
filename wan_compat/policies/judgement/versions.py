"""Do the installed libraries have what the model names: the pipeline, its classes, its packages?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from packaging.version import Version

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.findings import Finding, finding
from wan_compat.policies.judgement.parts import index_of, parts_of, pipeline_class_of
from wan_compat.policies.model_index import LIBRARIES
from wan_compat.policies.pipelines import ADMITTED_CLASSES
from wan_compat.policies.registry import ALLOWED_PACKAGES, SECURITY_FLOORS, version_problem
from wan_compat.policies.registry_document import RegistryEntry
from wan_compat.policies.registry_merge import minimum_of
from wan_compat.policies.variants import VARIANTS
from wan_compat.policies.written_by import newer_writer, release

_PIPELINES = frozenset(variant.pipeline_class for variant in VARIANTS.values() if variant.pipeline_class)
_ADMITTED = frozenset((library, name) for library, names in ADMITTED_CLASSES.values() for name in names)


@dataclasses.dataclass(frozen=True)
class Installed:
    """What is installed where workers run. `versions`: by package, None where it is not there; `lacking`: library and
    class of those that were looked for (`classes_to_find`) and that the installed library does not have."""

    versions: Mapping[str, str | None]
    lacking: frozenset[tuple[str, str]] = frozenset()


def judge_versions(
    facts: ModelFacts, architecture: Architecture, installed: Installed, entry: RegistryEntry | None
) -> Iterator[Finding]:
    """Yield missing and old packages, and classes that the installed ones do not have."""
    if architecture.is_wan is False:
        return  # another family's program has other needs
    yield from _diffusers(architecture, installed, entry)
    if (newer := newer_writer(facts.documents.values(), installed.versions.get("diffusers"))) is not None:
        yield finding("written_by_newer", newer)
    yield from _packages(installed, entry)
    yield from _classes(facts, installed)


def _diffusers(architecture: Architecture, installed: Installed, entry: RegistryEntry | None) -> Iterator[Finding]:
    found = installed.versions.get("diffusers")
    if found is None:
        yield finding("diffusers_missing", "diffusers is not installed")
        return
    problem = version_problem(minimum_diffusers(architecture, entry), found)
    if problem is not None:
        message, _, upgrade = problem.rpartition(": ")
        what = architecture.pipeline_class or architecture.variant or architecture.architecture_type
        yield finding("diffusers_too_old", f"{what} {message}", fix=upgrade)


def minimum_diffusers(architecture: Architecture, entry: RegistryEntry | None) -> str | None:
    """Return the first release that runs the model. Of variants that files cannot tell apart, the one that asks for
    least: it may be that one."""
    slugs = architecture.candidates or ((architecture.variant,) if architecture.variant else ())
    least = [variant.min_diffusers for slug in slugs if (variant := VARIANTS.get(slug)) and variant.min_diffusers]
    if len(slugs) < 2 and entry is not None and entry.min_diffusers_version is not None:
        return entry.min_diffusers_version
    return min(least, key=Version, default=None)


def needed_packages(entry: RegistryEntry | None) -> Mapping[str, str | None]:
    """Return packages and the oldest versions that will do; without an entry, what every worker needs."""
    if entry is None or not entry.required_dependencies:
        return SECURITY_FLOORS
    return dict(minimum_of(text) for text in entry.required_dependencies)


def _packages(installed: Installed, entry: RegistryEntry | None) -> Iterator[Finding]:
    for name, minimum in needed_packages(entry).items():
        text = name if minimum is None else f"{name}>={minimum}"
        if name == "diffusers" or name not in ALLOWED_PACKAGES:
            continue
        found = installed.versions.get(name)
        if found is None:
            yield finding("dependency_missing", f"{name} is not installed", fix=f"pip install '{text}'")
        elif minimum is not None and release(found) < Version(minimum):
            code = "transformers_too_old" if name == "transformers" else "dependency_missing"
            yield finding(code, f"{text} is needed, installed is {found}", fix=f"pip install -U '{text}'")


def classes_to_find(facts: ModelFacts) -> frozenset[tuple[str, str]]:
    """Return library and class of everything that the index names and that no table of ours knows."""
    named = {
        (part.library, part.class_name)
        for part in parts_of(facts).values()
        if part.library in LIBRARIES and part.class_name is not None
    }
    name = pipeline_class_of(facts)
    if name is not None and name not in _PIPELINES:
        named.add(("diffusers", name))
    if (blocks := _blocks_of(facts)) is not None:
        named.add(("diffusers", blocks))
    return frozenset(named - _ADMITTED)


def _classes(facts: ModelFacts, installed: Installed) -> Iterator[Finding]:
    path, _ = index_of(facts)
    name = pipeline_class_of(facts)
    if name is not None and ("diffusers", name) in installed.lacking:
        own = "pipeline.py" in facts.files
        yield finding(
            "remote_code_pipeline" if own else "pipeline_class_unknown",
            f"{path} names the pipeline {name}, which diffusers {installed.versions.get('diffusers')} does not have"
            + (": pipeline.py of the repository would have to bring it" if own else ""),
            path=path,
        )
    blocks = _blocks_of(facts)
    if blocks is not None and ("diffusers", blocks) in installed.lacking:
        yield finding(
            "remote_code_pipeline",
            f"{path} is made of the blocks {blocks}, which are not part of diffusers: code of the repository's own",
            path=path,
        )
    for part in parts_of(facts).values():
        if (part.library, part.class_name) in installed.lacking:
            yield finding(
                "class_unknown",
                f"{part.name} is {part.library}.{part.class_name}, which {part.library} "
                f"{installed.versions.get(part.library or '')} does not have",
                component=part.name,
                path=path,
            )


def _blocks_of(facts: ModelFacts) -> str | None:
    """Return the class of the blocks that a modular index names."""
    blocks = index_of(facts)[1].get("_blocks_class_name")
    return blocks if isinstance(blocks, str) else None
