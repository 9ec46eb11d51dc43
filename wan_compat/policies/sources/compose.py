"""A folder in diffusers layout and single files as one model: facts about files that lie in many places.

What comes out looks like a folder that has everything, so that every later decision is made as for any other model:
which pipeline, do the parts fit, how much memory. Only `ModelFacts.sources` says that a part is loaded in another way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from wan_compat.policies.admission import is_pickle_name
from wan_compat.policies.detection.decide import detect
from wan_compat.policies.facts import FileFact, ModelFacts, WeightFile
from wan_compat.policies.findings import Severity
from wan_compat.policies.judgement.parts import SHARD
from wan_compat.policies.sources.single import Single, read_single, role_in
from wan_compat.policies.variants import VARIANTS
from wan_compat.protocol.errors import InvalidRequest, ModelCorrupt, ModelInvalid, ModelNotCompatible, PickleRefused
from wan_compat.protocol.sources import SourceSpec

# What a file may be given for, and what must then be in it.
ROLES: Mapping[str, str] = {
    "transformer": "transformer",
    "transformer_2": "transformer",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "image_encoder": "image_encoder",
}
_WITH_TABLES = ("WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline", "WanVideoToVideoPipeline")


@dataclasses.dataclass(frozen=True)
class Given:
    """What a user gave for one part: `flag` is how, for messages; `component` None asks the file what it is."""

    facts: ModelFacts
    flag: str
    component: str | None = None


@dataclasses.dataclass(frozen=True)
class Composed:
    """One model, and where each of its parts that was given came from, with the reasons."""

    facts: ModelFacts
    reasons: tuple[str, ...]


def compose(base: ModelFacts | None, given: Iterable[Given]) -> Composed:
    """Put single files into a folder's model, in place of its own parts of that name.

    Raises:
        InvalidRequest: A file holds another part than it was given for, two are for one part, or other parts lack.
        PickleRefused: Weights that can run code.
        ModelInvalid, ModelCorrupt, ModelNotCompatible: A file is broken, no part of Wan, or in a form that runs nowhere
            here.
    """
    found: dict[str, tuple[Given, Single, Mapping[str, WeightFile]]] = {}
    for item in given:
        _refuse_lora(item)
        weights = weights_of(item)
        role = role_in(weights)
        name = item.component or role or "part"
        if role is not None and ROLES.get(name) != role:
            raise InvalidRequest(
                f"{item.flag} {item.facts.root} is a {_words(role)}, no {_words(name)}",
                hint=f"give it with --{role.replace('_', '-')}",
            )
        if base is None:
            raise InvalidRequest(
                f"{item.facts.root} is the {_words(name)} alone; the other parts were not given",
                hint="give a folder in diffusers layout that has them: --components FOLDER",
            )
        single = _read(item, weights, base.configs.get(name))
        name = item.component or single.role
        if name in found:
            raise InvalidRequest(f"two files were given for the {_words(name)}", hint="leave one of them out")
        found[name] = (item, single, weights)
    assert base is not None, "nothing was given"
    return _put_together(base, found)


def weights_of(item: Given) -> dict[str, WeightFile]:
    """Return the headers of what was given: a file, or the shards of one part at the top of a folder."""
    facts = item.facts
    for problem in facts.problems:
        if problem.severity is Severity.ERROR and (problem.path is None or "/" not in problem.path):
            raise problem.to_error(facts.root)
    top = {path: file for path, file in facts.weights.items() if "/" not in path}
    if not top:
        pickles = [path for path in facts.files if is_pickle_name(path) and "/" not in path]
        if pickles:
            raise PickleRefused(
                f"{item.flag} {facts.root} is a pickle, which can run code when it is loaded",
                hint=f"make safetensors of it, in the sandbox: wan-compat convert {facts.root}",
            )
        raise ModelInvalid(f"{item.flag} {facts.root} has no weights that could be read")
    stems = {match["stem"] if (match := SHARD.fullmatch(path)) else path for path in top}
    if len(stems) > 1:
        raise InvalidRequest(
            f"{facts.root} has {len(top)} weight files: {', '.join(sorted(top)[:5])}",
            hint="give one of them by its name",
        )
    shards = [match for path in top if (match := SHARD.fullmatch(path))]
    if shards and len(shards) != int(shards[0]["total"]):
        raise ModelCorrupt(f"{facts.root} has {len(shards)} of {int(shards[0]['total'])} shards", hint="get the others")
    return dict(sorted(top.items()))


def _refuse_lora(item: Given) -> None:
    if detect(item.facts).layout == "lora":
        raise InvalidRequest(
            f"{item.flag} {item.facts.root} is a LoRA: it changes a model and is none", hint="give it with --lora"
        )


def _read(item: Given, weights: Mapping[str, WeightFile], config: Mapping[str, Any] | None) -> Single:
    architecture = detect(item.facts)
    known = VARIANTS.get(architecture.variant or "")
    try:
        return read_single(item.facts.root, weights, config)
    except ModelInvalid as error:
        if architecture.is_wan is False:
            why = next((item.fact for item in reversed(architecture.evidence) if item.source != "files"), "")
            raise ModelInvalid(
                f"{item.flag} {item.facts.root} is no part of Wan: {why or error.message}",
                hint="use a file of a Wan model",
            ) from error
        if known is not None and known.pipeline_class not in _WITH_TABLES:
            instead = f"use {known.repository}" if known.repository and known.pipeline_class else "use another model"
            raise ModelNotCompatible(
                f"{item.facts.root} is {known.slug}, of which single files cannot be loaded here: {error.message}",
                hint=instead,
            ) from error
        raise


def _put_together(base: ModelFacts, found: Mapping[str, tuple[Given, Single, Mapping[str, WeightFile]]]) -> Composed:
    if "model_index.json" not in base.documents:
        raise ModelInvalid(
            f"{base.root} has no model_index.json, so that it cannot give the other parts",
            hint="give the top folder of a repository in diffusers layout",
        )
    replaced = tuple(f"{name}/" for name in found)
    files = {path: fact for path, fact in base.files.items() if not path.startswith(replaced)}
    documents = {path: document for path, document in base.documents.items() if not path.startswith(replaced)}
    weights = {path: file for path, file in base.weights.items() if not path.startswith(replaced)}
    index = dict(base.index)
    sources: dict[str, SourceSpec] = {}
    reasons: list[str] = []
    for name, (item, single, headers) in found.items():
        places = _places(name, single, headers)
        for number, (path, place) in enumerate(places.items()):
            fact = item.facts.files[path]
            files[place] = _at(fact, place)
            # All tensors in the first: a shard's own list is of no use under new names.
            tensors = single.tensors if number == 0 else {}
            weights[place] = WeightFile(place, single.format, tensors, {}, headers[path].header_bytes)
        index[name] = [single.library, single.class_name]
        documents[f"{name}/config.json"] = single.config
        sources[name] = single.source(tuple(places.values()))
        reasons += [f"{name}: {item.flag} {item.facts.root}", *(f"{name}: {reason}" for reason in single.reasons)]
    documents["model_index.json"] = index
    facts = dataclasses.replace(
        base,
        files=files,
        documents=documents,
        weights=weights,
        problems=tuple(item for item in base.problems if not (item.path or "").startswith(replaced)),
        sources={**base.sources, **sources},
    )
    return Composed(facts, tuple(reasons))


def _places(name: str, single: Single, headers: Mapping[str, WeightFile]) -> dict[str, str]:
    """Return path -> place in the worker's view."""
    stem = "diffusion_pytorch_model" if single.library == "diffusers" else "model"
    if len(headers) == 1:
        return dict.fromkeys(headers, f"{name}/{stem}.{single.format}")
    return {path: f"{name}/part_{number}.{single.format}" for number, path in enumerate(headers, 1)}


def _at(fact: FileFact, place: str) -> FileFact:
    return dataclasses.replace(fact, path=place)


def _words(name: str) -> str:
    return {"transformer_2": "second transformer", "vae": "VAE"}.get(name, name.replace("_", " "))
