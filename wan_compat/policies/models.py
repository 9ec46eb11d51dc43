"""From the facts of a diffusers folder to the pipeline that will be built, or a refusal that names file and cause.

Order as everywhere: what may run at all (code, pickles), then what it is (the transformer's class and channels), then
what was wished (tasks.py), then whether the parts fit together (model_fit.py). Every component gets an explicit class
from the table of pipelines.py: nothing is imported because a file names it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from wan_compat.policies.admission import admit_component
from wan_compat.policies.architecture import ArchitectureSignature
from wan_compat.policies.detection.classes import OTHER_FAMILIES, WAN_PIPELINES
from wan_compat.policies.facts import FileFact, ModelFacts, TensorFact
from wan_compat.policies.findings import Finding, Severity
from wan_compat.policies.judgement.code import judge_documents
from wan_compat.policies.judgement.shards import judge_shards
from wan_compat.policies.model_fit import channels_of, check_fit, main_expert, weights_of
from wan_compat.policies.modular_pipelines import BLOCKS
from wan_compat.policies.pipeline_choice import choose_pipeline
from wan_compat.policies.pipelines import PIPELINES, Pipeline, Way, ways_of
from wan_compat.policies.tasks import Wish, choose_way
from wan_compat.policies.trust import TrustDecision
from wan_compat.protocol.errors import (
    MemoryExceeded,
    ModelCorrupt,
    ModelIndexMissing,
    ModelNotCompatible,
    RemoteCodeRefused,
)
from wan_compat.protocol.results import LoraReport
from wan_compat.protocol.values import ComponentSpec, PipelineSpec

if TYPE_CHECKING:  # mending asks the decision below
    from wan_compat.policies.mending.values import Mend

Dtype = Literal["float32", "bfloat16", "float16"]

TEXT_TO_VIDEO = "WanPipeline"

_DTYPE_BYTES: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True)
class ModelDecision:
    """What will be loaded: the pipeline, the files the worker will see, and the numbers that later decisions need."""

    pipeline: PipelineSpec
    admitted: tuple[FileFact, ...]
    transformer_config: Mapping[str, Any]
    vae_config: Mapping[str, Any]
    weight_bytes: int  # in memory, at the chosen dtypes
    reasons: tuple[str, ...]
    way: Way | None = None  # what it is loaded for; None for a pipeline of the repository's own
    trust: TrustDecision | None = None  # in trust mode, what lets code of the repository run
    repository: str | None = None  # on a hub, with the commit as revision, where it came from a Hugging Face cache
    revision: str | None = None
    loras: tuple[LoraReport, ...] = ()
    lora_numbers: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of all LoRAs over each component
    guidance_scale: float | None = None  # where the repository itself says one: in the settings of a guider
    tensors: Mapping[str, Mapping[str, TensorFact]] = dataclasses.field(default_factory=dict)  # of each component
    mends: tuple[Mend, ...] = ()  # what of its files had to be helped before it could be decided

    @property
    def size_multiple(self) -> int:
        """Pixels by which height and width must divide: VAE factor times patch, and what the pipeline itself asks."""
        patch = self.transformer_config.get("patch_size") or (1, 2, 2)
        own = PIPELINES[self.way.pipeline].size_multiple if self.way is not None else 16
        return math.lcm(own, int(self.vae_config.get("scale_factor_spatial") or 8) * int(patch[1]))

    @property
    def frame_multiple(self) -> int:
        """Frames per latent frame after the first: num_frames is this times k plus 1."""
        return int(self.vae_config.get("scale_factor_temporal") or 4)


def decide_model(
    facts: ModelFacts, *, threads: int, memory_limit_bytes: int, wish: Wish | None = None
) -> ModelDecision:
    """Decide how a Wan folder in diffusers layout, or of diffusers' modular blocks, is loaded in safe mode on a CPU,
    for the task that is wished.

    Raises:
        RemoteCodeRefused, PickleRefused: It asks for code or has weights only as pickles.
        InvalidRequest: It does another task than was asked for, or takes other media.
        ModelCorrupt, ModelInvalid: Parts are missing, malformed, or do not fit together.
        ModelNotCompatible: A sound model for which there is no way here.
    """
    from wan_compat.policies.modular import decide_modular, is_modular  # which asks this for what is like it

    if is_modular(facts):
        return decide_modular(facts, threads=threads, memory_limit_bytes=memory_limit_bytes, wish=wish)
    refuse_code(facts)
    named = facts.index.get("_class_name")
    if "pipeline.py" in facts.files and not is_of_diffusers(str(named)):
        raise RemoteCodeRefused(
            f"model_index.json of {facts.root} names the pipeline {named!r}, "
            "which pipeline.py of the repository would have to bring",
            hint="use a repository whose pipeline is part of diffusers",
        )
    entries = _library_entries(facts)
    expert = main_expert(entries)
    missing = [name for name in ("tokenizer", "text_encoder", "vae", "scheduler") if name not in entries]
    missing += ["transformer"] if expert is None else []
    if named not in WAN_PIPELINES:
        raise ModelNotCompatible(f"{facts.root} is a {named}, which is none of Wan's pipelines")
    if expert is None or missing:
        raise ModelCorrupt(
            f"model_index.json of {facts.root} names no {', '.join(missing)}",
            hint="download the repository again, all of it",
        )
    transformer, vae = _config(facts, expert), _config(facts, "vae")
    pipeline_class, reason = _pipeline_of(facts, entries, expert, transformer)
    weights = weights_of(facts, entries, transformer, vae, pipeline_class)
    way = choose_way(ways_of(weights), wish, f"{facts.root}")
    pipeline = PIPELINES[way.pipeline]
    classes = {name: _admitted_class(facts, name, entry, way.pipeline) for name, entry in entries.items()}
    components = {name: class_name for name, class_name in classes.items() if class_name is not None}
    lacking = [name for name, slot in pipeline.slots.items() if not slot.optional and name not in components]
    if lacking:
        raise ModelCorrupt(
            f"model_index.json of {facts.root} names no {', '.join(lacking)}, which {way.pipeline} needs",
            hint="download the repository again, all of it",
        )
    boundary = check_fit(facts, components, transformer, vae, weights)
    weighty = [name for name in components if pipeline.slots[name].has_weights]
    dtype, weight_bytes, reasons = choose_dtype(facts, weighty, memory_limit_bytes, must_fit=False)
    return ModelDecision(
        pipeline=PipelineSpec(
            pipeline_class=way.pipeline,
            components=tuple(
                ComponentSpec(
                    name=name,
                    library=pipeline.slots[name].library,
                    class_name=pipeline.slots[name].instead.get(class_name, class_name),
                    subfolder=name,
                    dtype=dtype if name in weighty else None,
                    source=facts.sources.get(name),
                )
                for name, class_name in sorted(components.items())
            ),
            boundary_ratio=boundary if "boundary_ratio" in pipeline.settings else None,
            expand_timesteps="expand_timesteps" in pipeline.settings and facts.index.get("expand_timesteps") is True,
            settings={
                name: facts.index.get(name) is True
                for name in sorted(pipeline.settings - {"boundary_ratio", "expand_timesteps"})
            },
            threads=threads,
            frames="vae" if pipeline.streams else "pipeline",
        ),
        admitted=_admit(facts, components, pipeline),
        transformer_config=transformer,
        vae_config=vae,
        weight_bytes=weight_bytes,
        reasons=(*reasons, f"{pipeline_class}: {reason}"),
        way=way,
        repository=facts.repository,
        revision=facts.revision,
        tensors={name: facts.tensors.get(name, {}) for name in weighty},
    )


def _library_entries(facts: ModelFacts) -> dict[str, tuple[str, str]]:
    """Return library and class of every component that the index names and has."""
    found: dict[str, tuple[str, str]] = {}
    for name, value in facts.index.items():
        if name.startswith("_") or not is_component(value) or (value[0] is None and value[1] is None):
            continue
        library, class_name = value[0], value[1]
        if library not in ("diffusers", "transformers"):
            own = f", which is {name}/{library}.py of the repository" if f"{name}/{library}.py" in facts.files else ""
            raise RemoteCodeRefused(
                f"model_index.json of {facts.root} takes {name!r} from {library!r}{own}, "
                "not of diffusers or transformers",
                hint="use a repository whose components are part of diffusers and transformers",
            )
        found[name] = (str(library), str(class_name))
    return found


def _pipeline_of(
    facts: ModelFacts, entries: Mapping[str, tuple[str, str]], expert: str, transformer: Mapping[str, Any]
) -> tuple[str, str]:
    """Return the class of diffusers for this transformer, and why; the way then chooses among its siblings."""
    channels_in, channels_out = channels_of(transformer, f"{expert}/config.json")
    classes = {name: class_name for name, (_, class_name) in entries.items()}
    choice = choose_pipeline(
        ArchitectureSignature(
            has_transformer_2="transformer_2" in classes,
            has_boundary_ratio=facts.index.get("boundary_ratio") is not None,
            vae_dimensions=3,
            component_classes={**classes, "transformer": classes[expert]},
            pipeline_class=str(facts.index.get("_class_name")),
            transformer_config={**transformer, "in_channels": channels_in, "out_channels": channels_out},
        )
    )
    chosen = choice.pipeline_class
    if chosen is not None and chosen in PIPELINES and chosen not in BLOCKS:  # which have an index of their own
        return chosen, choice.reason
    # Only a refusal needs them, and a supervisor that runs models should not carry them about.
    from wan_compat.policies.detection.decide import detect
    from wan_compat.policies.judgement.identity import alternatives

    architecture = detect(facts)
    others = alternatives(architecture.capabilities, architecture)
    runs = f"it needs {choice.pipeline_class}, which does not run here yet" if choice.pipeline_class else choice.reason
    raise ModelNotCompatible(
        f"{facts.root} is {architecture.variant or 'a Wan model'}, and {runs}",
        hint=f"use {' or '.join(others)}" if others else "use the program of its authors",
    )


def is_of_diffusers(pipeline_class: str) -> bool:
    """Whether a pipeline's name is one of diffusers', as far as names tell."""
    families = (name.replace(" ", "").replace("-", "") for name in OTHER_FAMILIES.values())
    return pipeline_class in WAN_PIPELINES or any(pipeline_class.startswith(name) for name in families)


def refuse_code(facts: ModelFacts) -> None:
    """Raise RemoteCodeRefused when index or configurations name code, in whatever way the libraries would follow."""
    raise_first(facts, judge_documents(facts))
    if "model_index.json" not in facts.documents:
        raise ModelIndexMissing(
            f"{facts.root} has no model_index.json; it is a pipeline of modular blocks",
            hint="give the top folder of a repository in diffusers layout",
        )
    class_name = facts.index.get("_class_name")
    if not isinstance(class_name, str):
        raise ModelCorrupt(f"model_index.json of {facts.root} has no _class_name", hint="download it again")


def raise_first(facts: ModelFacts, found: Iterable[Finding]) -> None:
    """Raise the first error of what `check` would say too: the rules stand in judgement/, once for both."""
    for item in found:
        if item.severity is Severity.ERROR:
            raise item.to_error(facts.root)


def is_component(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 2


def _admitted_class(facts: ModelFacts, name: str, entry: tuple[str, str], pipeline_class: str) -> str | None:
    """Return the class of a component; None where another pipeline takes it and this one does not."""
    library, class_name = entry
    slot = PIPELINES[pipeline_class].slots.get(name)
    if slot is None:
        if any(name in other.slots for other in PIPELINES.values()):
            return None
        raise ModelNotCompatible(
            f"model_index.json of {facts.root} has a component {name!r} that {pipeline_class} does not take"
        )
    if library != slot.library or class_name not in slot.classes:
        raise ModelNotCompatible(
            f"component {name!r} of {facts.root} is {library}.{class_name}; "
            f"known here: {', '.join(f'{slot.library}.{item}' for item in slot.classes)}"
        )
    return class_name


def _config(facts: ModelFacts, name: str) -> Mapping[str, Any]:
    config = facts.configs.get(name)
    if config is None:
        raise ModelCorrupt(f"{facts.root} has no {name}/config.json", hint="download the repository again, all of it")
    return config


def choose_dtype(
    facts: ModelFacts, components: Iterable[str], memory_limit_bytes: int, *, must_fit: bool = True
) -> tuple[Dtype, int, tuple[str, ...]]:
    """Return the precision, the bytes of the weights in it, and why.

    Where a plan follows (policies/planning), that has the last word: `must_fit` false leaves it to say what fits.

    Raises:
        MemoryExceeded: Not even bfloat16 fits, and it must.
    """
    parameters = 0
    for name in components:
        for tensor in facts.tensors.get(name, {}).values():
            parameters += math.prod(tensor.shape)
    # fp32 is what CPUs compute fastest in (bf16 slows the transformer down 1.4x, measured); bf16 only to fit at all.
    for dtype, share in (("float32", 0.7), ("bfloat16", 0.8)):
        chosen: Dtype = "float32" if dtype == "float32" else "bfloat16"
        size = parameters * _DTYPE_BYTES[chosen]
        if size <= memory_limit_bytes * share:
            return chosen, size, (f"{chosen}: {size:,} bytes of weights fit the limit of {memory_limit_bytes:,}",)
    size = parameters * 2
    if not must_fit:
        return "bfloat16", size, ()
    raise MemoryExceeded(
        f"the weights of {facts.root} need {size / 1e9:.1f} GB in bfloat16, "
        f"the limit is {memory_limit_bytes / 1e9:.1f} GB",
        hint=f"raise --memory-limit to at least {math.ceil(size / 0.8 / 1e9)}GB, or use a smaller model",
    )


def _admit(facts: ModelFacts, components: Mapping[str, str], pipeline: Pipeline) -> tuple[FileFact, ...]:
    raise_first(facts, (item for item in judge_shards(facts, components) if item.component is not None))
    index = facts.files.get("model_index.json")  # None where it was rebuilt in memory
    admitted = [index] if index is not None else []
    for name in components:
        admitted += admit_component(facts, name, pipeline.slots[name].kind)
    return tuple(sorted(admitted, key=lambda fact: fact.path))
