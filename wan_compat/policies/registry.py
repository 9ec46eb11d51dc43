"""The compatibility registry's rules: floors that nothing lowers, what a model needs, and how two registries differ.

How an update is put over the package's copy is in `registry_merge.py`, the form of both in `registry_document.py`.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, Literal

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
        *("accelerate", "safetensors", "sentencepiece", "ftfy", "pillow", "av", "peft", "imageio", "imageio-ffmpeg"),
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
            "min_mb": 12700,
            "plan": "group",
            "recommended_mb": 38900,
            "recommended_plan": "model",
        },
        "supported_optimizations": ["cpu_offload", "mixed_precision", "chunked_processing"],
    }
}


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
