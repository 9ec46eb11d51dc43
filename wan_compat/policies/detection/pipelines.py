"""Which pipeline class would run a model: what its index names, what its layout allows, what diffusers has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wan_compat.policies.architecture import Layout
from wan_compat.policies.detection.classes import (
    FOREIGN_WAN_PIPELINES,
    MODULAR_PIPELINES,
    NOT_IN_DIFFUSERS,
    WAN_PIPELINES,
)
from wan_compat.policies.detection.configs import text_of
from wan_compat.policies.detection.traits import Traits
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.variants import Variant

# diffusers' blocks for Wan, and its generic ones, begin so; ChronoEditBlocks and others come with their repository.
_OWN_BLOCKS = ("Wan", "Helios", "Sequential", "Auto", "Modular")


def named_pipeline(index: Mapping[str, Any]) -> str | None:
    """Return the class that an index names; of `[module, class]`, which means remote code, the class."""
    name = index.get("_class_name")
    if isinstance(name, list | tuple):
        name = name[-1] if name else None
    return text_of(name)


def has_own_pipeline(facts: ModelFacts, index: Mapping[str, Any]) -> bool:
    """Whether the repository brings the code of its pipeline: by `[module, class]`, `auto_map` or blocks of its own."""
    modular = facts.documents.get("modular_config.json", {})
    blocks = text_of(index.get("_blocks_class_name"))
    foreign_blocks = blocks is not None and not blocks.startswith(_OWN_BLOCKS)
    named_by_module = isinstance(index.get("_class_name"), list | tuple)
    return named_by_module or foreign_blocks or bool(index.get("auto_map")) or bool(modular.get("auto_map"))


def made_for(slug: str, pipeline: str | None) -> bool:
    """Whether a pipeline class was made for a variant."""
    return any(slug.startswith(prefix) for prefix in WAN_PIPELINES.get(pipeline or "", ()))


def runnable_class(
    variant: Variant, layout: Layout, named: str | None, *, own: bool, traits: Mapping[str, Traits]
) -> str | None:
    """Return the class of diffusers that would run `variant` from this layout, None where none can.

    Args:
        named: The class that the index names. It is kept where it runs these weights, such as the one for images.
        own: The repository brings code of its own for the pipeline.
    """
    if own or layout in ("original", "lora") or named in FOREIGN_WAN_PIPELINES or variant.pipeline_class is None:
        return None
    if any(part.is_foreign or part.is_custom for part in traits.values()):
        return None
    if layout == "modular" and named is not None:
        return named if named in MODULAR_PIPELINES else None
    fits = named not in NOT_IN_DIFFUSERS and made_for(variant.slug, named)
    return named if fits else variant.pipeline_class


def other_classes(variant: Variant, pipeline: str | None) -> tuple[str, ...]:
    """Return the classes besides `pipeline` that run the same weights for other tasks."""
    if pipeline is None or variant.pipeline_class is None:
        return ()
    return tuple(name for name in (variant.pipeline_class, *variant.also_loads_as) if name != pipeline)
