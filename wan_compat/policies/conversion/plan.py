"""From what a worker said about the tensors to every byte that will be written, or a refusal that names the cause.

The worker is hostile: what it lists is compared with tables of ours, name by name and shape by shape, and the bytes in
may not become more bytes out. The plan then says, for each tensor of each new file, where its bytes come from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.conversion.components import Part, Tensors, part_of, role_of, without_prefix
from wan_compat.policies.conversion.documents import (
    TOKENIZER_FILES,
    TOKENIZER_FOLDER,
    Component,
    pipeline_documents,
    to_json,
    tokenizer_files,
)
from wan_compat.policies.conversion.layout import (
    DTYPE_BYTES,
    MAX_SHARD_BYTES,
    PlannedFile,
    PlannedTensor,
    plan_files,
)
from wan_compat.policies.conversion.sources import EXPERT_FOLDERS, Source, refuse_kind
from wan_compat.policies.detection import detect
from wan_compat.policies.facts import FileFact, ModelFacts, TensorFact, WeightFile
from wan_compat.protocol.errors import ModelCorrupt, ModelInvalid, ModelNotCompatible, clean_text

DEFAULT_FLOW_SHIFT = 3.0
_NAMED = 5

# One tensor under two names in a pickled T5, which transformers ties again when it loads.
_TIED = ("shared.weight", "encoder.embed_tokens.weight")

_TEXT, _IMAGE = "WanPipeline", "WanImageToVideoPipeline"

_WHAT = {
    "text_encoder": "the text encoder (models_t5_umt5-xxl-enc-bf16.pth)",
    "vae": "the VAE (Wan2.1_VAE.pth or Wan2.2_VAE.pth)",
    "transformer": "the transformer (diffusion_pytorch_model.safetensors, or high_noise_model/)",
    "transformer_2": "the low-noise transformer (low_noise_model/)",
    "image_encoder": "the image encoder (models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth)",
    "tokenizer": f"the tokenizer ({TOKENIZER_FOLDER}/tokenizer.json or spiece.model)",
}


@dataclasses.dataclass(frozen=True)
class ConversionPlan:
    """All that will be written. Paths are relative to the new folder; `copies` are small files taken over as they are;
    `dropped` are tensors without a place, by source file; `unused` are weight files that no part was found in."""

    files: tuple[PlannedFile, ...]
    documents: Mapping[str, str]
    copies: tuple[tuple[FileFact, str], ...]
    dropped: Mapping[str, tuple[str, ...]]
    unused: tuple[str, ...]
    architecture: Architecture
    pipeline_class: str | None  # None: a single component
    reasons: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return (
            sum(file.bytes for file in self.files)
            + sum(len(text.encode()) for text in self.documents.values())
            + sum(fact.size for fact, _ in self.copies)
        )


def plan_conversion(
    facts: ModelFacts,
    sources: Sequence[Source],
    listed: Mapping[str, Tensors],
    flow_shifts: Mapping[str, float],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ConversionPlan:
    """Decide the conversion.

    Args:
        sources: As `choose_sources` gave them.
        listed: Source path -> its tensors, as the worker listed them; sizes in bytes follow from shape and type.
        flow_shifts: Variant slug -> the shift of its sampling schedule.

    Raises:
        ModelInvalid, ModelCorrupt: Tensors or parts are missing, left over, of another shape, or too many.
        ModelNotCompatible: A number format or a kind that cannot be converted.
    """
    _refuse_numbers(listed)
    known = dataclasses.replace(
        facts,
        weights={**facts.weights, **{path: _as_weights(path, tensors) for path, tensors in listed.items()}},
    )
    architecture = detect(known)
    refuse_kind(facts, architecture)
    if any(source.component for source in sources):
        plan = _same_layout(facts, sources, listed, architecture, max_shard_bytes)
    else:
        plan = _from_original(facts, sources, listed, architecture, flow_shifts, max_shard_bytes)
    written = sum(file.data_bytes for file in plan.files)
    available = sum(source.fact.size for source in sources)
    if written > available:
        raise ModelInvalid(
            f"{facts.root} has {available:,} bytes of weights and claims to hold {written:,}",
            hint="tensors that share their bytes, or a hostile file; use the official repository",
        )
    return plan


def _as_weights(path: str, tensors: Tensors) -> WeightFile:
    return WeightFile(path=path, format="safetensors", tensors=tensors, metadata={}, header_bytes=0)


def _refuse_numbers(listed: Mapping[str, Tensors]) -> None:
    for path, tensors in listed.items():
        if "scaled_fp8" in tensors or any(name.endswith((".scale_weight", ".weight_scale")) for name in tensors):
            raise ModelNotCompatible(
                f"{path!r} has 8-bit numbers with scales beside them, which diffusers does not read",
                hint="convert the model in bf16 or fp32, and let wan-compat choose a precision when it loads",
            )


# ---- a folder in diffusers layout whose weights are pickles ---------------------------------------------------------


def _same_layout(
    facts: ModelFacts,
    sources: Sequence[Source],
    listed: Mapping[str, Tensors],
    architecture: Architecture,
    max_shard_bytes: int,
) -> ConversionPlan:
    files: list[PlannedFile] = []
    documents: dict[str, str] = {}
    dropped: dict[str, tuple[str, ...]] = {}
    for name in sorted({source.component for source in sources if source.component}):
        entry = facts.index[name]
        tensors: dict[str, PlannedTensor] = {}
        for source in sources:
            if source.component == name:
                for key, tensor in listed[source.fact.path].items():
                    if key in tensors:
                        raise ModelInvalid(f"two files of {name!r} have the tensor {key!r}")
                    tensors[key] = _planned(key, tensor, tensor.shape, source.fact.path, key, 0, 1)
        if _TIED[0] in tensors and _TIED[1] in tensors and entry[0] == "transformers":
            dropped[tensors.pop(_TIED[1]).source] = (_TIED[1],)
        library: Literal["diffusers", "transformers"] = "diffusers" if entry[0] == "diffusers" else "transformers"
        made, index = plan_files(name, library, tensors.values(), max_shard_bytes)
        files += made
        documents |= index
    taken = {source.fact.path for source in sources}
    copies = [
        (fact, path)
        for path, fact in sorted(facts.files.items())
        if path == "model_index.json"
        or (path.count("/") == 1 and path.partition("/")[0] in facts.index and path not in taken and _is_small(path))
    ]
    return ConversionPlan(
        files=tuple(files),
        documents=documents,
        copies=tuple(copies),
        dropped=dropped,
        unused=(),
        architecture=architecture,
        pipeline_class=str(facts.index.get("_class_name")),
        reasons=("the layout is diffusers' already: names and configurations stay as they are",),
    )


def _is_small(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name in TOKENIZER_FILES or (name.endswith(".json") and not name.endswith(".index.json"))


# ---- the layout of the original program -----------------------------------------------------------------------------


def _from_original(
    facts: ModelFacts,
    sources: Sequence[Source],
    listed: Mapping[str, Tensors],
    architecture: Architecture,
    flow_shifts: Mapping[str, float],
    max_shard_bytes: int,
) -> ConversionPlan:
    components: dict[str, Component] = {}
    dropped: dict[str, tuple[str, ...]] = {}
    unused: list[str] = []
    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.group, []).append(source)
    origin: dict[str, str] = {}
    for group, members in groups.items():
        where = _merged(members, listed)
        plain = without_prefix({name: tensor for name, (_, tensor) in where.items()})
        tensors = {name: where[full][1] for name, full in plain.items()}
        role = role_of(tensors)
        if role is None:
            unused += [source.fact.path for source in members]
            continue
        folder = group.rpartition("/")[0]
        name = EXPERT_FOLDERS.get(folder, role) if role == "transformer" else role
        if name in components:
            raise ModelInvalid(
                f"{facts.root} has two files that could be its {name}: {origin[name]!r} and {group!r}",
                hint="move one of them away",
            )
        origin[name] = group
        part = part_of(role, tensors, facts.documents.get(f"{folder}/config.json" if folder else "config.json", {}))
        without = tuple(sorted(key for key in tensors if key.startswith(part.dropped))) if part.dropped else ()
        if without:
            dropped[group] = without
        planned = _compare(group, part, where, plain, frozenset(without))
        components[name] = Component(name, part.library, part.class_name, part.config, planned)
    if not components:
        raise ModelNotCompatible(
            f"no part of a Wan model was found in {', '.join(repr(path) for path in unused[:_NAMED])}",
            hint="convert knows the original names of Wan's transformer, VAE, text encoder and image encoder",
        )
    alone = facts.is_file
    documents: dict[str, str] = {}
    files: list[PlannedFile] = []
    for name, component in components.items():
        folder = "" if alone else name
        made, index = plan_files(folder, component.library, component.tensors, max_shard_bytes)
        files += made
        documents |= index
        documents[f"{folder}/config.json".lstrip("/")] = to_json(component.config or {})
    copies: tuple[tuple[FileFact, str], ...] = ()
    pipeline: str | None = None
    reasons = [f"{name}: from {origin[name]}" for name in components]
    if not alone:
        pipeline = _pipeline_class(facts, components)
        copies = tokenizer_files(facts)
        _require_all(facts, components, pipeline, copies)
        shift = flow_shifts.get(architecture.variant or "", DEFAULT_FLOW_SHIFT)
        reasons.append(f"flow_shift {shift:g}, as {architecture.variant or 'Wan 2.1'} is sampled with")
        documents |= pipeline_documents(facts, components, pipeline, shift)
    return ConversionPlan(
        files=tuple(files),
        documents=documents,
        copies=copies,
        dropped=dropped,
        unused=tuple(unused),
        architecture=architecture,
        pipeline_class=pipeline,
        reasons=tuple(reasons),
    )


def _merged(members: Iterable[Source], listed: Mapping[str, Tensors]) -> dict[str, tuple[str, TensorFact]]:
    found: dict[str, tuple[str, TensorFact]] = {}
    for source in members:
        for name, tensor in listed[source.fact.path].items():
            if name in found:
                raise ModelInvalid(f"{source.fact.path!r} and {found[name][0]!r} both have the tensor {name!r}")
            found[name] = (source.fact.path, tensor)
    return found


def _compare(
    group: str,
    part: Part,
    where: Mapping[str, tuple[str, TensorFact]],
    plain: Mapping[str, str],
    dropped: frozenset[str],
) -> tuple[PlannedTensor, ...]:
    """Return the planned tensors of a part whose names and shapes are exactly the table's."""
    expected = {rename.old for rename in part.renames}
    missing = sorted(expected - plain.keys())
    left_over = sorted(plain.keys() - expected - dropped)
    other = [
        f"{rename.old} {where[plain[rename.old]][1].shape} for {rename.old_shape}"
        for rename in part.renames
        if rename.old in plain and where[plain[rename.old]][1].shape != rename.old_shape
    ]
    problems = [
        f"{words} {_some(names)}"
        for words, names in (
            ("it lacks", missing),
            ("it has tensors without a place:", left_over),
            ("it has tensors of another shape:", other),
        )
        if names
    ]
    if problems:
        raise ModelInvalid(
            f"{group!r} is not the {part.role} that it looks like: {'; '.join(problems)}",
            hint="download the file again; fine-tunes with parts of their own cannot be converted",
        )
    return tuple(
        _planned(rename.new, where[full][1], rename.new_shape, where[full][0], full, rename.part, rename.parts)
        for rename in part.renames
        for full in (plain[rename.old],)
    )


def _planned(
    name: str, tensor: TensorFact, shape: tuple[int, ...], source: str, source_name: str, part: int, parts: int
) -> PlannedTensor:
    width = DTYPE_BYTES.get(tensor.dtype)
    if width is None:
        raise ModelNotCompatible(
            f"{source_name!r} in {source!r} has numbers of type {clean_text(tensor.dtype, 40)}; "
            f"{', '.join(DTYPE_BYTES)} can be converted",
            hint="convert the model in bf16 or fp32",
        )
    size = math.prod(tensor.shape) * width
    return PlannedTensor(name, tensor.dtype, shape, source, source_name, part * (size // parts), size // parts)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


def _pipeline_class(facts: ModelFacts, components: Mapping[str, Component]) -> str:
    """Return the pipeline by the channels of the transformer."""
    component = components.get("transformer") or components.get("transformer_2")
    if component is None or component.config is None:
        raise _missing(facts, ["transformer"])
    config = component.config
    channels = (config["in_channels"], config["out_channels"])
    if component.class_name == "WanVACETransformer3DModel":
        return "WanVACEPipeline"
    if channels in ((16, 16), (48, 48)):
        return _TEXT
    if channels == (36, 16):
        return _IMAGE
    raise ModelNotCompatible(
        f"a transformer from {channels[0]} to {channels[1]} channels has no pipeline in diffusers "
        "(control and camera models take extra channels)",
        hint="no conversion helps; use a text-to-video, image-to-video or VACE model",
    )


def _require_all(
    facts: ModelFacts, components: Mapping[str, Component], pipeline: str, tokenizer: Sequence[Any]
) -> None:
    needed = ["transformer", "vae", "text_encoder"]
    if any(path.startswith(f"{folder}/") for path in facts.files for folder in EXPERT_FOLDERS):
        needed.append("transformer_2")
    transformer = components.get("transformer")
    if pipeline == _IMAGE and transformer is not None and (transformer.config or {}).get("image_dim") is not None:
        needed.append("image_encoder")
    missing = [name for name in needed if name not in components]
    if not tokenizer:
        missing.append("tokenizer")
    if missing:
        raise _missing(facts, missing)
    assert transformer is not None and transformer.config is not None
    latent = (components["vae"].config or {}).get("z_dim")
    if latent != transformer.config["out_channels"]:
        raise ModelInvalid(
            f"the transformer of {facts.root} works on {transformer.config['out_channels']} latent channels, "
            f"its VAE on {latent}",
            hint="the parts come from different models; take them from one repository",
        )


def _missing(facts: ModelFacts, names: Iterable[str]) -> ModelCorrupt:
    return ModelCorrupt(
        f"{facts.root} lacks {', '.join(_WHAT[name] for name in names)}",
        hint="download the rest of the original repository; convert needs all parts, or a single file",
    )
