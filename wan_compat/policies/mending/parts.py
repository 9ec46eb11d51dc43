"""A part whose weights are sound, and whose configuration or list of shards is damaged or missing.

Wan's own parts are told by the names and shapes of their tensors, all of them compared (policies/sources/single.py).
What shapes do not tell is the same in every published model of these sizes; of other sizes nothing is rebuilt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wan_compat.policies.detection.rules import SIZES
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.findings import Severity
from wan_compat.policies.judgement.parts import SHARD, WEIGHT_STEMS, files_in
from wan_compat.policies.mending.values import Mend, Mended
from wan_compat.policies.model_index import is_component_entry
from wan_compat.policies.sources.compose import ROLES, Given, compose
from wan_compat.policies.sources.single import Single, read_single
from wan_compat.protocol.errors import WanCompatError


def rebuild_parts(facts: ModelFacts, *, contradicted: bool = False) -> Mended | None:
    """Put parts that are read by their tensors in the place of those that their library could not read.

    With `contradicted`, also those whose configuration says other shapes than their tensors have: detection believes
    the tensors too.
    """
    mends: list[Mend] = []
    for part in ROLES:
        entry: Any = facts.index.get(part)
        if not is_component_entry(entry) or part in facts.sources or entry[0] not in WEIGHT_STEMS:
            continue
        wrong = _what_is_wrong(facts, part, WEIGHT_STEMS[entry[0]])
        if wrong is None and contradicted:
            wrong = _contradiction(facts, part, WEIGHT_STEMS[entry[0]])
        mended = _rebuilt(facts, part, entry, contradicted=contradicted) if wrong is not None else None
        if wrong is None or mended is None:
            continue
        facts = mended
        mends.append(
            Mend(wrong, f"read {part} by the names and shapes of its tensors, which fit {entry[1]} one by one")
        )
    return Mended(facts, tuple(mends)) if mends else None


def _what_is_wrong(facts: ModelFacts, part: str, stem: str) -> str | None:
    config, index = f"{part}/config.json", f"{part}/{stem}.safetensors.index.json"
    for found in facts.problems:
        if found.severity is Severity.ERROR and found.path in (config, index):
            return f"model_corrupt: {found.message}" if found.code.startswith("json_") else None
    if not _weights(facts, part, stem):
        return None
    if config not in facts.files:
        return f"model_corrupt: there is no {config}"
    if f"{part}/{stem}.safetensors" not in facts.files and index not in facts.files:
        return f"model_corrupt: there is no {index}"
    return None


def _contradiction(facts: ModelFacts, part: str, stem: str) -> str | None:
    single, said = _read(facts, part, stem), facts.configs.get(part)
    if single is None or said is None or _fits(single, said):
        return None
    return f"model_corrupt: the tensors of {part} have other shapes than {part}/config.json says"


def _fits(single: Single, said: Mapping[str, Any]) -> bool:
    """Whether a part was read with the folder's configuration: `read_single` takes that where it fits every shape."""
    return all(said.get(name) == value for name, value in single.config.items())


def _read(facts: ModelFacts, part: str, stem: str) -> Single | None:
    """Return the part as its tensors tell it; None where they are no whole part of Wan."""
    headers = {path: facts.weights[path] for path in _weights(facts, part, stem)}
    if not headers:
        return None
    try:
        return read_single(f"{facts.root}/{part}", headers, facts.configs.get(part))
    except WanCompatError:
        return None


def _weights(facts: ModelFacts, part: str, stem: str) -> dict[str, str]:
    """Return path -> name of the one file, or of the whole set of shards."""
    whole = f"{stem}.safetensors"
    names = files_in(facts, part)
    shards = {name: match for name in names if (match := SHARD.fullmatch(name)) and match["stem"] == stem}
    chosen = [whole] if whole in names else sorted(name for name, match in shards.items() if match["variant"] is None)
    paths = {f"{part}/{name}": name for name in chosen}
    if whole not in names and chosen:
        totals = {int(shards[name]["total"]) for name in chosen}
        if totals != {len(chosen)}:
            return {}
    broken = {item.path for item in facts.problems if item.severity is Severity.ERROR}
    return paths if all(path in facts.weights and path not in broken for path in paths) else {}


def _rebuilt(facts: ModelFacts, part: str, entry: list[str], *, contradicted: bool) -> ModelFacts | None:
    stem = WEIGHT_STEMS[entry[0]]
    paths, single, said = _weights(facts, part, stem), _read(facts, part, stem), facts.configs.get(part)
    if single is None or [single.library, single.class_name] != list(entry[:2]):
        return None
    fits = said is not None and _fits(single, said)
    if not fits and not ((said is None or contradicted) and _is_of_a_published_size(single)):
        return None
    alone = ModelFacts(
        root=f"{facts.root}/{part}",
        files={name: dataclasses.replace(facts.files[path], path=name) for path, name in paths.items()},
        documents={},
        weights={name: dataclasses.replace(facts.weights[path], path=name) for path, name in paths.items()},
    )
    try:
        return compose(facts, [Given(alone, part, part)]).facts
    except WanCompatError:
        return None


def _is_of_a_published_size(single: Single) -> bool:
    """Whether what shapes do not tell is known: how many heads share the width of a transformer."""
    if single.role != "transformer":
        return True
    return single.config["num_attention_heads"] * single.config["attention_head_dim"] in SIZES
