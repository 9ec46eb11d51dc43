"""An index that is rebuilt in memory from the parts beside it, and a pipeline class that the parts tell better."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.detection.classes import FOREIGN_WAN_PIPELINES, LOOK_ALIKE_PIPELINES, WAN_PIPELINES
from wan_compat.policies.detection.decide import detect
from wan_compat.policies.detection.hints import hints_of, score
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.findings import Severity
from wan_compat.policies.mending.values import Mend, Mended
from wan_compat.policies.model_index import is_component_entry
from wan_compat.policies.models import is_of_diffusers
from wan_compat.policies.pipelines import PIPELINES
from wan_compat.policies.repair import INDEX, rebuilt
from wan_compat.policies.variants import VARIANTS
from wan_compat.protocol.errors import clean_text

# Of these every pipeline has one; an index that names none of one was cut or edited.
_REQUIRED = ("scheduler", "text_encoder", "tokenizer", "vae", "transformer")
# Settings of an index that follow from the parts; of others (`is_distilled`) only the index tells.
_TOLD_BY_PARTS = frozenset({"boundary_ratio", "expand_timesteps"})
_CODE = (".py", ".pyc", ".so")


def rebuild_index(facts: ModelFacts) -> Mended | None:
    """Put an index in the place of one that is damaged or missing, if the parts tell without doubt what it says."""
    wrong = _what_is_wrong(facts)
    if wrong is None or _brings_code(facts):
        return None
    if _has_only_a_mark(facts):
        sound = dataclasses.replace(facts, problems=tuple(item for item in facts.problems if item.path != INDEX))
        return Mended(sound, (Mend(wrong, f"read {INDEX} without the byte order mark at its start"),))
    bare = _without_index(facts)
    architecture = detect(bare)
    proposal = rebuilt(bare, architecture) if _is_certain(bare, architecture) else None
    if proposal is None or PIPELINES[proposal.document["_class_name"]].settings - _TOLD_BY_PARTS:
        return None
    if set(_folders(bare)) - set(proposal.document):
        return None  # a part that the rebuilt index has no place for may be what the author's pipeline is about
    # What a legible index says stands: should it name code, that is refused as ever.
    said = {
        name: value
        for name, value in facts.index.items()
        if value is not None and (is_component_entry(value) or not is_component_entry(proposal.document.get(name)))
    }
    mended = dataclasses.replace(bare, documents={**bare.documents, INDEX: {**proposal.document, **said}})
    action = f"rebuild {INDEX} in memory from the parts ({architecture.pipeline_class})"
    return Mended(mended, (Mend(wrong, action),))


def name_pipeline(facts: ModelFacts) -> Mended | None:
    """Put the class that runs these parts in the place of one that nobody has."""
    named = facts.index.get("_class_name")
    if not isinstance(named, str) or named in WAN_PIPELINES or is_of_diffusers(named) or _brings_code(facts):
        return None
    if named in LOOK_ALIKE_PIPELINES or named in FOREIGN_WAN_PIPELINES or facts.index.get("auto_map"):
        return None
    architecture = detect(_with_index(facts, {**facts.index, "_class_name": None}))
    chosen = architecture.pipeline_class
    if chosen is None or not _is_certain(facts, architecture):
        return None
    known = PIPELINES[chosen].settings | _TOLD_BY_PARTS
    own = [name for name, value in facts.index.items() if not name.startswith("_") and not is_component_entry(value)]
    if set(own) - known:
        return None  # settings of its own: the author's class does something else with these parts
    shown = clean_text(named, 120)
    return Mended(
        _with_index(facts, {**facts.index, "_class_name": chosen}),
        (
            Mend(
                f"model_not_compatible: the pipeline class {shown} is not part of diffusers",
                f"run it as {chosen}, which its parts are made for; the author's own {shown} was not used, "
                "and may have made another video",
            ),
        ),
    )


def _what_is_wrong(facts: ModelFacts) -> str | None:
    if INDEX not in facts.files:
        return f"model_index_missing: there is no {INDEX}"
    for found in facts.problems:
        if found.severity is Severity.ERROR and found.path == INDEX:
            return f"model_corrupt: {found.message}" if found.code.startswith("json_") else None
    index = facts.index
    if "_class_name" not in index:
        return f"model_corrupt: {INDEX} has no _class_name"
    if not isinstance(index["_class_name"], str):
        return None  # of `[module, class]` the module is code
    for name in _REQUIRED:
        if name in _folders(facts) and not is_component_entry(index.get(name)):
            return f"model_corrupt: {INDEX} does not name the class of the {name} that lies beside it"
    return None


def _has_only_a_mark(facts: ModelFacts) -> bool:
    found = [item.code for item in facts.problems if item.severity is Severity.ERROR and item.path == INDEX]
    return found == ["json_byte_order_mark"] and bool(facts.index)


def _is_certain(facts: ModelFacts, architecture: Architecture) -> bool:
    """Whether every model that this could be runs in the one class, or its name speaks for one that does."""
    chosen = architecture.pipeline_class
    if architecture.is_wan is not True or chosen not in PIPELINES:
        return False
    slugs = {slug for slug in (architecture.variant, *architecture.candidates) if slug is not None}
    others = {slug for slug in slugs if VARIANTS[slug].pipeline_class != chosen}
    if not others:
        return True
    hints = dataclasses.replace(hints_of(facts, {}, None, ()), flow_shift=None)  # what files say was heard already
    spoken = max((score(slug, hints) for slug in slugs - others), default=0)
    return spoken > max(score(slug, hints) for slug in others)


def _brings_code(facts: ModelFacts) -> bool:
    return any(path.lower().endswith(_CODE) for path in facts.files)


def _folders(facts: ModelFacts) -> Iterator[str]:
    yield from dict.fromkeys(path.split("/")[0] for path in facts.files if path.endswith("config.json") and "/" in path)


def _without_index(facts: ModelFacts) -> ModelFacts:
    """The file that is there is no longer part of the model: no worker gets to see it."""
    return dataclasses.replace(
        facts,
        files={path: fact for path, fact in facts.files.items() if path != INDEX},
        documents={path: document for path, document in facts.documents.items() if path != INDEX},
        problems=tuple(found for found in facts.problems if found.path != INDEX),
    )


def _with_index(facts: ModelFacts, index: Mapping[str, Any]) -> ModelFacts:
    return dataclasses.replace(facts, documents={**facts.documents, INDEX: index})
