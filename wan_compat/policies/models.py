"""From the facts of a diffusers folder to the pipeline that will be built, or a refusal that names file and cause.

Order as everywhere: what may run at all (code, pickles), then what it is (class, then channels), then whether the parts
fit together. Every component gets an explicit class from the table below: nothing is imported because a file names it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from wan_compat.policies.admission import Kind, admit_component
from wan_compat.policies.detection.classes import OTHER_FAMILIES, WAN_PIPELINES
from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.policies.findings import Finding, Severity
from wan_compat.policies.judgement.code import judge_documents
from wan_compat.policies.judgement.shards import judge_shards
from wan_compat.policies.judgement.structure import judge_boundary
from wan_compat.policies.trust import TrustDecision
from wan_compat.protocol.errors import (
    MemoryExceeded,
    ModelCorrupt,
    ModelIndexMissing,
    ModelInvalid,
    ModelNotCompatible,
    RemoteCodeRefused,
)
from wan_compat.protocol.values import ComponentSpec, PipelineSpec

Dtype = Literal["float32", "bfloat16", "float16"]

TEXT_TO_VIDEO = "WanPipeline"

# Which classes a component may have. transformers 5 saves a T5 tokenizer as TokenizersBackend, real Wan repositories
# say T5TokenizerFast or T5Tokenizer: all three are the same file format.
_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast", "TokenizersBackend", "PreTrainedTokenizerFast")
_SCHEDULERS = (
    "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "FlowMatchHeunDiscreteScheduler",
)
ADMITTED_CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tokenizer": ("transformers", _TOKENIZERS),
    "text_encoder": ("transformers", ("UMT5EncoderModel",)),
    "transformer": ("diffusers", ("WanTransformer3DModel",)),
    "transformer_2": ("diffusers", ("WanTransformer3DModel",)),
    "vae": ("diffusers", ("AutoencoderKLWan",)),
    "scheduler": ("diffusers", _SCHEDULERS),
}
REQUIRED = ("tokenizer", "text_encoder", "vae", "scheduler")

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
    trust: TrustDecision | None = None  # in trust mode, what lets code of the repository run
    repository: str | None = None  # on a hub, with the commit as revision, where it came from a Hugging Face cache
    revision: str | None = None

    @property
    def size_multiple(self) -> int:
        """Pixels by which height and width must divide: VAE factor times patch, and 16 as WanPipeline itself asks."""
        patch = self.transformer_config.get("patch_size") or (1, 2, 2)
        return math.lcm(16, int(self.vae_config.get("scale_factor_spatial") or 8) * int(patch[1]))

    @property
    def frame_multiple(self) -> int:
        """Frames per latent frame after the first: num_frames is this times k plus 1."""
        return int(self.vae_config.get("scale_factor_temporal") or 4)


def decide_model(facts: ModelFacts, *, threads: int, memory_limit_bytes: int) -> ModelDecision:
    """Decide how a text-to-video Wan folder in diffusers layout is loaded in safe mode on a CPU.

    Raises:
        RemoteCodeRefused, PickleRefused: It asks for code or has weights only as pickles.
        ModelCorrupt, ModelInvalid: Parts are missing, malformed, or do not fit together.
        ModelNotCompatible: A sound model for which there is no way here.
        MemoryExceeded: The weights alone exceed the limit in every precision.
    """
    refuse_code(facts)
    pipeline_class = facts.index.get("_class_name")
    if "pipeline.py" in facts.files and not _is_of_diffusers(str(pipeline_class)):
        raise RemoteCodeRefused(
            f"model_index.json of {facts.root} names the pipeline {pipeline_class!r}, "
            "which pipeline.py of the repository would have to bring",
            hint="use a repository whose pipeline is part of diffusers",
        )
    if pipeline_class != TEXT_TO_VIDEO:
        raise ModelNotCompatible(
            f"{facts.root} is a {pipeline_class}; text to video with {TEXT_TO_VIDEO} is what can be run here",
            hint="use a text-to-video Wan repository in diffusers layout, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        )
    components: dict[str, str] = {}
    for name, value in facts.index.items():
        if name.startswith("_") or not is_component(value):
            continue
        library, class_name = value[0], value[1]
        if library is None and class_name is None:
            continue
        components[name] = _admitted_class(facts, name, library, class_name)
    missing = [name for name in REQUIRED if name not in components]
    if "transformer" not in components:
        missing.append("transformer")
    if missing:
        raise ModelCorrupt(
            f"model_index.json of {facts.root} names no {', '.join(missing)}",
            hint="download the repository again, all of it",
        )
    transformer, vae = _config(facts, "transformer"), _config(facts, "vae")
    boundary = check_fit(facts, components, transformer, vae)
    dtype, weight_bytes, reasons = choose_dtype(facts, components, memory_limit_bytes)
    specs = tuple(
        ComponentSpec(
            name=name,
            library="transformers" if ADMITTED_CLASSES[name][0] == "transformers" else "diffusers",
            class_name=class_name,
            subfolder=name,
            dtype=dtype if name in ("text_encoder", "transformer", "transformer_2", "vae") else None,
        )
        for name, class_name in sorted(components.items())
    )
    return ModelDecision(
        pipeline=PipelineSpec(
            pipeline_class=TEXT_TO_VIDEO,
            components=specs,
            boundary_ratio=boundary,
            expand_timesteps=facts.index.get("expand_timesteps") is True,
            threads=threads,
        ),
        admitted=_admit(facts, components),
        transformer_config=transformer,
        vae_config=vae,
        weight_bytes=weight_bytes,
        reasons=reasons,
        repository=facts.repository,
        revision=facts.revision,
    )


def _is_of_diffusers(pipeline_class: str) -> bool:
    """Whether a pipeline's name is one of diffusers', as far as names tell; either way it is none that runs here."""
    families = (name.replace(" ", "").replace("-", "") for name in OTHER_FAMILIES.values())
    return pipeline_class in (TEXT_TO_VIDEO, *WAN_PIPELINES) or any(
        pipeline_class.startswith(name) for name in families
    )


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


def _admitted_class(facts: ModelFacts, name: str, library: Any, class_name: Any) -> str:
    known = ADMITTED_CLASSES.get(name)
    if known is None:
        raise ModelNotCompatible(
            f"model_index.json of {facts.root} has a component {name!r} that {TEXT_TO_VIDEO} does not take"
        )
    if library not in ("diffusers", "transformers"):
        own = f", which is {name}/{library}.py of the repository" if f"{name}/{library}.py" in facts.files else ""
        raise RemoteCodeRefused(
            f"model_index.json of {facts.root} takes {name!r} from {library!r}{own}, not of diffusers or transformers",
            hint="use a repository whose components are part of diffusers and transformers",
        )
    if library != known[0] or class_name not in known[1]:
        raise ModelNotCompatible(
            f"component {name!r} of {facts.root} is {library}.{class_name}; "
            f"known here: {', '.join(f'{known[0]}.{item}' for item in known[1])}"
        )
    return str(class_name)


def _config(facts: ModelFacts, name: str) -> Mapping[str, Any]:
    config = facts.configs.get(name)
    if config is None:
        raise ModelCorrupt(f"{facts.root} has no {name}/config.json", hint="download the repository again, all of it")
    return config


def _integer(config: Mapping[str, Any], key: str, default: int, document: str) -> int:
    value = config.get(key, default)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
        raise ModelCorrupt(f"{document} has {key}={value!r}, not a sensible number", hint="download it again")
    return value


def check_fit(
    facts: ModelFacts, components: Mapping[str, str], transformer: Mapping[str, Any], vae: Mapping[str, Any]
) -> float | None:
    """Refuse parts of library classes that do not fit together; return the boundary between two experts, if any."""
    patch = transformer.get("patch_size", [1, 2, 2])
    if not (
        isinstance(patch, list) and len(patch) == 3 and all(isinstance(side, int) and 1 <= side <= 16 for side in patch)
    ):
        raise ModelCorrupt(f"transformer/config.json has patch_size={patch!r}")
    _integer(vae, "scale_factor_spatial", 8, "vae/config.json")
    _integer(vae, "scale_factor_temporal", 4, "vae/config.json")
    channels_in = _integer(transformer, "in_channels", 16, "transformer/config.json")
    channels_out = _integer(transformer, "out_channels", channels_in, "transformer/config.json")
    z_dim = _integer(vae, "z_dim", 16, "vae/config.json")
    if channels_in != channels_out:
        raise ModelNotCompatible(
            f"the transformer of {facts.root} takes {channels_in} channels and gives {channels_out}: it is not "
            "text-to-video (image-to-video and control models take extra channels)"
        )
    if channels_out != z_dim:
        raise ModelInvalid(
            f"the transformer of {facts.root} works on {channels_out} latent channels, its VAE on {z_dim}",
            hint="the parts come from different models; take transformer and VAE from one repository",
        )
    boundary = facts.index.get("boundary_ratio")
    if boundary is not None and (isinstance(boundary, bool) or not isinstance(boundary, int | float)):
        raise ModelCorrupt(f"model_index.json has boundary_ratio={boundary!r}")
    if boundary is not None and not 0 <= boundary <= 1:
        raise ModelCorrupt(f"model_index.json has boundary_ratio={boundary!r}, outside 0..1")
    two = "transformer_2" in components
    raise_first(facts, judge_boundary(facts))
    if two:
        second = _config(facts, "transformer_2")
        for key in ("in_channels", "out_channels", "text_dim", "patch_size"):
            if second.get(key) != transformer.get(key):
                raise ModelInvalid(
                    f"the two experts of {facts.root} differ in {key}: {transformer.get(key)!r} and {second.get(key)!r}"
                )
    return None if boundary is None else float(boundary)


def choose_dtype(
    facts: ModelFacts, components: Iterable[str], memory_limit_bytes: int
) -> tuple[Dtype, int, tuple[str, ...]]:
    """Return the precision, the bytes of the weights in it, and why; MemoryExceeded when none fits."""
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
    raise MemoryExceeded(
        f"the weights of {facts.root} need {size / 1e9:.1f} GB in bfloat16, "
        f"the limit is {memory_limit_bytes / 1e9:.1f} GB",
        hint=f"raise --memory-limit to at least {math.ceil(size / 0.8 / 1e9)}GB, or use a smaller model",
    )


def _admit(facts: ModelFacts, components: Mapping[str, str]) -> tuple[FileFact, ...]:
    raise_first(facts, (item for item in judge_shards(facts, components) if item.component is not None))
    admitted = [facts.files["model_index.json"]]
    for name in components:
        admitted += admit_component(facts, name, kind_of(name))
    return tuple(sorted(admitted, key=lambda fact: fact.path))


def kind_of(name: str) -> Kind:
    """Return what files the part of this name has, where its class is one of `ADMITTED_CLASSES`."""
    if name in ("tokenizer", "scheduler"):
        return "tokenizer" if name == "tokenizer" else "scheduler"
    return "transformers" if ADMITTED_CLASSES[name][0] == "transformers" else "diffusers"
