"""Weights of a part that are broken or lack, in the place of which sound ones of the same part lie in its folder.

diffusion_pytorch_model.safetensors                  the name under which the library looks
diffusion_pytorch_model-00001-of-00002.safetensors   the same in shards, with an index
diffusion_pytorch_model.fp16.safetensors             a variant: the same numbers, rounded
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.policies.findings import Finding, Severity
from wan_compat.policies.judgement.parts import PICKLE, SHARD, WEIGHT_STEMS, files_in
from wan_compat.policies.judgement.shards import judge_shards
from wan_compat.policies.mending.values import Mend, Mended
from wan_compat.policies.pipelines import ADMITTED_CLASSES, PIPELINES
from wan_compat.protocol.errors import clean_text

# Variants that hold the same numbers, the most exact first. Others (`ema`, `non_ema`, `fp8`) are other weights.
VARIANTS = ("fp32", "bf16", "fp16")
_ROUNDED = frozenset({"bf16", "fp16"})
_WITH_WEIGHTS = frozenset(
    name for pipeline in PIPELINES.values() for name, slot in pipeline.slots.items() if slot.has_weights
)


@dataclasses.dataclass(frozen=True)
class _Found:
    """Sound weights: the names that the worker gets to see -> the names of the files."""

    names: Mapping[str, str]
    rounded: bool = False


def take_sound_weights(facts: ModelFacts) -> Mended | None:
    """Put sound files in the place of broken or missing ones, part by part."""
    mends: list[Mend] = []
    for part in sorted(_WITH_WEIGHTS):
        if part in facts.sources or not (inside := files_in(facts, part)):
            continue
        stem = WEIGHT_STEMS[ADMITTED_CLASSES[part][0]]
        own = {name for name in inside if _is_own(name, stem)}
        wrong = _what_is_wrong(facts, part, own, stem, inside)
        found = _sound(facts, part, stem, own) if wrong is not None else None
        if wrong is None or found is None:
            continue
        facts = _with(facts, part, own, found)
        taken = ", ".join(clean_text(name, 120) for name in list(found.names.values())[:3])
        exactness = "; its numbers are rounded, and pixels may differ a little" if found.rounded else ""
        mends.append(Mend(wrong, f"take the weights of {part} from {taken}, which lies beside{exactness}"))
    return Mended(facts, tuple(mends)) if mends else None


def _is_own(name: str, stem: str) -> bool:
    """Whether the library would open a file of this name."""
    shard = SHARD.fullmatch(name)
    return name in (f"{stem}.safetensors", f"{stem}.safetensors.index.json") or (
        shard is not None and shard["stem"] == stem and shard["variant"] is None
    )


def _what_is_wrong(
    facts: ModelFacts, part: str, own: set[str], stem: str, inside: Mapping[str, FileFact]
) -> str | None:
    if not any(name.endswith(".safetensors") for name in own):
        # Weights that are there as a pickle only are refused, and stay so.
        pickled = any(PICKLE.fullmatch(name) for name in inside)
        return None if pickled else f"model_corrupt: there is no {part}/{stem}.safetensors"
    for found in _errors(facts, part, stem):
        if _is_own((found.path or "").rpartition("/")[2], stem):
            return f"model_corrupt: {found.message}"
    return None


def _errors(facts: ModelFacts, part: str, stem: str) -> list[Finding]:
    """Return what is wrong with the files that the library would open, or lacks; not with what lies beside."""
    found = [*facts.problems, *judge_shards(facts, (part,))]
    return [
        item
        for item in found
        if item.severity is Severity.ERROR
        and (path := item.path or "").startswith(f"{part}/")
        and (path not in facts.files or _is_own(path.rpartition("/")[2], stem))
    ]


def _sound(facts: ModelFacts, part: str, stem: str, own: set[str]) -> _Found | None:
    whole = f"{stem}.safetensors"
    if whole in own and _is_sound(facts, part, whole):
        return _Found({whole: whole})
    shards = {name: name for name in sorted(own) if name != whole}
    if shards and f"{whole}.index.json" in shards:
        alone = _with(facts, part, own, _Found(shards))
        if not _errors(alone, part, stem):
            return _Found(shards)
    for variant in VARIANTS:
        if _is_sound(facts, part, name := f"{stem}.{variant}.safetensors"):
            return _Found({whole: name}, variant in _ROUNDED)
    return None


def _is_sound(facts: ModelFacts, part: str, name: str) -> bool:
    path = f"{part}/{name}"
    broken = any(item.severity is Severity.ERROR and item.path == path for item in facts.problems)
    return path in facts.weights and facts.weights[path].format == "safetensors" and not broken


def _with(facts: ModelFacts, part: str, own: set[str], found: _Found) -> ModelFacts:
    """Return facts in which the part has these files and none of its own besides."""
    dropped = {f"{part}/{name}" for name in own} | {f"{part}/{name}" for name in found.names.values()}
    moved = {f"{part}/{name}": f"{part}/{old}" for name, old in found.names.items()}
    files = {path: fact for path, fact in facts.files.items() if path not in dropped}
    weights = {path: file for path, file in facts.weights.items() if path not in dropped}
    documents = {path: document for path, document in facts.documents.items() if path not in dropped}
    for place, path in moved.items():
        files[place] = dataclasses.replace(facts.files[path], path=place)
        if path in facts.weights:
            weights[place] = dataclasses.replace(facts.weights[path], path=place)
        if path in facts.documents:
            documents[place] = facts.documents[path]
    gone = dropped - set(moved.values())
    return dataclasses.replace(
        facts,
        files=files,
        weights=weights,
        documents=documents,
        problems=tuple(item for item in facts.problems if item.path not in gone),
    )
