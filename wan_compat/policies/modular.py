"""From the facts of a folder with modular_model_index.json to the pipeline of diffusers' own blocks that will be built.

    "vae": ["diffusers", "AutoencoderKLWan", {"subfolder": "vae", "pretrained_model_name_or_path": ...}]
    "vae": [null, null, {"type_hint": ["diffusers", "AutoencoderKLWan"], ...}]

A part lies in the folder of its name, as diffusers takes it too, whatever repository the index names besides. One that
does not is a reference to another repository: it is refused, never fetched. Blocks that the repository brings itself
run in trust mode alone (trusted_models.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wan_compat.policies.admission import admit_component
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.judgement.code import judge_documents
from wan_compat.policies.judgement.parts import files_in, repository_named
from wan_compat.policies.model_fit import integer
from wan_compat.policies.model_index import is_absent, is_component_entry, reference
from wan_compat.policies.models import ModelDecision, choose_dtype, decide_model, raise_first
from wan_compat.policies.modular_pipelines import BLOCKS, KINDS, LIKE, LIKE_SETTINGS
from wan_compat.policies.pipelines import PIPELINES, Slot, Way, Weights, ways_of
from wan_compat.policies.tasks import Wish, choose_way
from wan_compat.protocol.errors import ModelCorrupt, ModelInvalid, ModelNotCompatible
from wan_compat.protocol.values import ComponentSpec, PipelineSpec

INDEX = "modular_model_index.json"
_BOUNDARY = 0.875  # what diffusers' blocks expect where the index has none
_ANIMATE2: Mapping[str, Weights] = {
    "WanAnimate2ModularPipeline": "animate2",
    "WanAnimate2DistilledModularPipeline": "animate2_distilled",
}


def is_modular(facts: ModelFacts) -> bool:
    """Whether a modular index is all that names the parts."""
    return "model_index.json" not in facts.documents and INDEX in facts.documents


def decide_modular(
    facts: ModelFacts, *, threads: int, memory_limit_bytes: int, wish: Wish | None = None
) -> ModelDecision:
    """Decide how a folder with a modular index is loaded in safe mode.

    Raises:
        RemoteCodeRefused: Its blocks, or a part, are code of the repository.
        ModelNotCompatible: Other blocks than diffusers' own for this class, or parts that lie in another repository.
        Others: As `decide_model`.
    """
    raise_first(facts, judge_documents(facts))
    index = facts.documents[INDEX]
    named = index.get("_class_name")
    if not isinstance(named, str) or named not in BLOCKS:
        raise ModelNotCompatible(
            f"{facts.root} is a {named!r} of modular blocks; known here: {', '.join(BLOCKS)}",
            hint="use the model's repository with model_index.json, if there is one",
        )
    blocks = index.get("_blocks_class_name")
    if blocks not in (None, BLOCKS[named]):
        raise ModelNotCompatible(
            f"{INDEX} of {facts.root} builds {named} of {blocks!r}, not of {BLOCKS[named]}",
            hint="use the model's repository with model_index.json, if there is one",
        )
    classes = {
        name: class_name
        for name, slot in PIPELINES[named].slots.items()
        if (class_name := _part(facts, index, named, name, slot)) is not None
    }
    if named in LIKE:
        decision = _by_the_ordinary(facts, index, named, classes, threads, memory_limit_bytes)
        weights = KINDS.get((named, decision.way.weights)) if decision.way is not None else None
        if weights is None:
            raise ModelInvalid(
                f"{INDEX} of {facts.root} names {named}, which its transformer was not made for",
                hint="use a repository with model_index.json",
            )
    else:
        decision, weights = _animate2(facts, classes, threads, memory_limit_bytes), _ANIMATE2[named]
    way = choose_way(ways_of(weights), wish, facts.root)
    return _as_blocks(facts, decision, way, classes, index)


def _part(facts: ModelFacts, index: Mapping[str, Any], named: str, name: str, slot: Slot) -> str | None:
    """Return the class of a part that is here; None where an optional one is not."""
    entry: Any = index.get(name)
    if not is_component_entry(entry) or is_absent(entry):
        if slot.optional:
            return None
        raise ModelCorrupt(f"{INDEX} of {facts.root} names no {name}", hint="download the repository again, all of it")
    given = reference(entry)
    hint = given.get("type_hint")
    library, class_name = hint if isinstance(hint, list) and len(hint) == 2 and entry[0] is None else entry[:2]
    if given.get("subfolder") not in (None, "", name) or not files_in(facts, name):
        if slot.optional:
            return None
        source = repository_named(given)
        raise ModelNotCompatible(
            f"{INDEX} of {facts.root} takes {name} from {source!r}, which is not among its files",
            hint=f"use {source} itself" if source else "use a repository that holds all its parts",
        )
    if library is None or class_name is None:
        library, class_name = slot.library, _own_class(facts, name)
    if library != slot.library or class_name not in slot.classes:
        raise ModelNotCompatible(
            f"component {name!r} of {facts.root} is {library}.{class_name}; "
            f"known here: {', '.join(f'{slot.library}.{item}' for item in slot.classes)}"
        )
    if class_name == "AutoTokenizer" and (own := _own_class(facts, name)) in slot.classes and own != class_name:
        return str(own)
    return slot.instead.get(str(class_name), str(class_name))


def _own_class(facts: ModelFacts, name: str) -> Any:
    config = facts.configs.get(name, {})
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return config.get("_class_name") or first or config.get("tokenizer_class")


def _by_the_ordinary(
    facts: ModelFacts,
    index: Mapping[str, Any],
    named: str,
    classes: Mapping[str, str],
    threads: int,
    memory_limit_bytes: int,
) -> ModelDecision:
    """Decide as for a folder that names the same parts for the ordinary pipeline."""
    slots = PIPELINES[named].slots
    document: dict[str, Any] = {
        name: [slots[name].library, class_name] for name, class_name in classes.items() if slots[name].kind != "guider"
    }
    document |= LIKE_SETTINGS.get(named, {})
    if "boundary_ratio" in PIPELINES[named].settings:
        document["boundary_ratio"] = index.get("boundary_ratio", _BOUNDARY)
    like = dataclasses.replace(
        facts,
        documents={**facts.documents, "model_index.json": {"_class_name": LIKE[named], **document}},
        files={**facts.files, "model_index.json": facts.files[INDEX]},
    )
    return decide_model(like, threads=threads, memory_limit_bytes=memory_limit_bytes)


def _animate2(facts: ModelFacts, classes: Mapping[str, str], threads: int, memory_limit_bytes: int) -> ModelDecision:
    transformer, vae = facts.configs.get("transformer", {}), facts.configs.get("vae", {})
    z_dim = integer(vae, "z_dim", 16, "vae/config.json")
    temporal = integer(vae, "scale_factor_temporal", 4, "vae/config.json")
    channels = (
        integer(transformer, "in_dim", 36, "transformer/config.json"),
        integer(transformer, "out_dim", 16, "transformer/config.json"),
    )
    if channels != (wanted := (2 * z_dim + temporal, z_dim)):
        raise ModelInvalid(
            f"the transformer of {facts.root} has channels {channels}, where its VAE's latents make {wanted}",
            hint="the parts come from different models; take transformer and VAE from one repository",
        )
    patch = transformer.get("patch_size", [1, 2, 2])
    if patch != [1, 2, 2]:
        raise ModelCorrupt(f"transformer/config.json has patch_size={patch!r}")
    pipeline = PIPELINES["WanAnimate2ModularPipeline"]
    weighty = [name for name in classes if pipeline.slots[name].has_weights]
    dtype, weight_bytes, reasons = choose_dtype(facts, weighty, memory_limit_bytes)
    admitted = [facts.files[INDEX]]
    for name in classes:
        if pipeline.slots[name].kind != "guider":
            admitted += admit_component(facts, name, pipeline.slots[name].kind)
    return ModelDecision(
        pipeline=PipelineSpec(
            pipeline_class="WanAnimate2ModularPipeline",
            components=tuple(
                ComponentSpec(
                    name=name,
                    library=pipeline.slots[name].library,
                    class_name=class_name,
                    subfolder=name,
                    dtype=dtype if name in weighty else None,
                )
                for name, class_name in sorted(classes.items())
                if pipeline.slots[name].kind != "guider"
            ),
            threads=threads,
        ),
        admitted=tuple(sorted(admitted, key=lambda fact: fact.path)),
        transformer_config=transformer,
        vae_config=vae,
        weight_bytes=weight_bytes,
        tensors={name: facts.tensors.get(name, {}) for name in weighty},
        reasons=reasons,
        repository=facts.repository,
        revision=facts.revision,
    )


def _as_blocks(
    facts: ModelFacts, decision: ModelDecision, way: Way, classes: Mapping[str, str], index: Mapping[str, Any]
) -> ModelDecision:
    """Return the decision with diffusers' blocks in place of the ordinary pipeline, and with guiders."""
    slots = PIPELINES[way.pipeline].slots
    guiders = [name for name in classes if slots[name].kind == "guider"]
    components = [
        part.model_copy(update={"class_name": classes[part.name]}) if part.name in classes else part
        for part in decision.pipeline.components
    ]
    components += [
        ComponentSpec(name=name, library="diffusers", class_name=classes[name], subfolder=name) for name in guiders
    ]
    admitted = [*decision.admitted, *(fact for name in guiders for fact in admit_component(facts, name, "guider"))]
    settings = {} if decision.pipeline.boundary_ratio is None else {"boundary_ratio": decision.pipeline.boundary_ratio}
    scale = facts.documents.get("guider/guider_config.json", {}).get("guidance_scale") if "guider" in guiders else None
    sound = isinstance(scale, int | float) and not isinstance(scale, bool) and 0 <= scale <= 100
    return dataclasses.replace(
        decision,
        pipeline=decision.pipeline.model_copy(
            update={
                "pipeline_class": way.pipeline,
                "code_kind": "blocks",
                "settings": settings,
                "boundary_ratio": None,
                "components": tuple(components),
                "frames": "pipeline",
            }
        ),
        admitted=tuple(sorted(admitted, key=lambda fact: fact.path)),
        reasons=(*decision.reasons, f"{way.pipeline}: {INDEX} names it, and diffusers has its blocks"),
        way=way,
        guidance_scale=float(scale) if sound and scale is not None else None,
    )
