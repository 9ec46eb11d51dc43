"""Which files of a model the converting worker is shown, decided from names and headers before there is a worker.

This is the only place in the package that admits a pickle, and only to a worker that can write nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.policies.findings import Severity
from wan_compat.policies.judgement.code import judge_documents
from wan_compat.policies.model_index import is_absent, is_component_entry
from wan_compat.policies.variants import VARIANTS
from wan_compat.protocol.errors import ModelCorrupt, ModelInvalid, ModelNotCompatible

MAX_SOURCES = 64

_PICKLE = re.compile(r".*\.(pth|pt|ckpt|bin)")
_WEIGHTS = re.compile(r".*\.(safetensors|sft|pth|pt|ckpt|bin)")
EXPERT_FOLDERS = {"high_noise_model": "transformer", "low_noise_model": "transformer_2"}
_SHARD = re.compile(r"(.*?)-\d{5}-of-\d{5}(\.[a-z]+)")

# Kinds that diffusers has a class for, but whose original names are not known here.
_UNKNOWN_NAMES = ("wan_animate",)


@dataclasses.dataclass(frozen=True)
class Source:
    """One file that is shown. `group` is one for all shards of a part; `component` is known in diffusers layout."""

    fact: FileFact
    is_pickle: bool
    group: str
    component: str | None = None


def choose_sources(facts: ModelFacts, architecture: Architecture) -> tuple[Source, ...]:
    """Return the files to convert.

    Raises:
        ModelNotCompatible: Nothing to convert, or a kind that cannot be converted.
        ModelInvalid, ModelCorrupt, RemoteCodeRefused: It is not what it says, or asks for code.
    """
    for item in judge_documents(facts):
        if item.severity is Severity.ERROR:
            raise item.to_error(facts.root)
    refuse_kind(facts, architecture)
    found = tuple(_diffusers(facts) if architecture.layout == "diffusers" else _original(facts))
    if architecture.layout == "diffusers" and not any(source.is_pickle for source in found):
        raise ModelNotCompatible(
            f"{facts.root} is in diffusers layout and its weights are safetensors: there is nothing to convert",
            hint="use it as it is: wan-compat generate",
        )
    if not found:
        raise ModelNotCompatible(f"{facts.root} has no weights that could be converted")
    if len(found) > MAX_SOURCES:
        raise ModelInvalid(f"{facts.root} has {len(found)} weight files; at most {MAX_SOURCES} are converted together")
    shown = {source.fact.path for source in found}
    for item in facts.problems:
        if item.severity is Severity.ERROR and (item.path is None or item.path in shown):
            raise item.to_error(facts.root)
    for source in found:
        if not source.is_pickle and source.fact.path not in facts.weights:
            raise ModelCorrupt(f"the header of {source.fact.path!r} could not be read", hint="download it again")
    return found


def refuse_kind(facts: ModelFacts, architecture: Architecture) -> None:
    """Raise ModelNotCompatible for what no conversion makes runnable."""
    name = architecture.variant or architecture.architecture_type
    if architecture.layout in ("gguf", "lora", "modular"):
        raise ModelNotCompatible(
            f"{facts.root} is a model in the layout {architecture.layout!r}, which is not converted",
            hint="use the original repository of the model in full precision",
        )
    if architecture.is_wan is False:
        raise ModelNotCompatible(f"{facts.root} is not a Wan model ({name}); only those are converted")
    # The variant's own class: an architecture in a layout that cannot be loaded has none.
    known = VARIANTS.get(architecture.variant or "")
    if architecture.architecture_type == "wan_s2v" or (known is not None and known.pipeline_class is None):
        raise ModelNotCompatible(
            f"{facts.root} is {name}, and diffusers has no class that runs it",
            hint="no conversion helps; use another model of the family",
        )
    if architecture.architecture_type in _UNKNOWN_NAMES and architecture.layout != "diffusers":
        raise ModelNotCompatible(
            f"{facts.root} is {name}, whose original names are not converted here",
            hint="use the official -Diffusers repository of the same model",
        )


def _original(facts: ModelFacts) -> Iterator[Source]:
    """Yield weights at the top and in the folders of the experts: those deeper belong to tokenizers or examples."""
    for path, fact in sorted(facts.files.items()):
        folder, _, name = path.rpartition("/")
        if folder in ("", *EXPERT_FOLDERS) and _WEIGHTS.fullmatch(name):
            yield Source(fact, is_pickle=bool(_PICKLE.fullmatch(name)), group=_group(path))


def _diffusers(facts: ModelFacts) -> Iterator[Source]:
    for name, entry in facts.index.items():
        if name.startswith("_") or not is_component_entry(entry) or is_absent(entry):
            continue
        inside = [path for path in sorted(facts.files) if path.rpartition("/")[0] == name and _WEIGHTS.fullmatch(path)]
        plain = [path for path in inside if not _PICKLE.fullmatch(path)]
        # Where a component has both, the pickles are copies.
        for path in plain or inside:
            yield Source(facts.files[path], is_pickle=not plain, group=name, component=name)


def _group(path: str) -> str:
    match = _SHARD.fullmatch(path)
    return match[1] + match[2] if match else path
