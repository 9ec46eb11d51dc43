"""One part of a model from files outside of its own folder: what it is, its configuration, what each tensor becomes.

The header decides everything (its names and shapes are compared, one by one, with what the part must have) and the
configuration is built from it. What shapes do not tell, how many heads share the width, comes from the configuration of
the folder that gives the other parts if all that shapes do tell is the same there, else it is what every published Wan
model has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from wan_compat.policies.conversion.components import PREFIXES, Part, Role, part_of, role_of
from wan_compat.policies.conversion.renames import Rename
from wan_compat.policies.facts import TensorFact, WeightFile
from wan_compat.policies.sources.spelling import CLIP_PREFIX, original_names
from wan_compat.protocol.errors import ModelInvalid, ModelNotCompatible, clean_text
from wan_compat.protocol.sources import ConfigValue, SourceSpec, as_templates, template_of

Tensors = Mapping[str, TensorFact]
Config = Mapping[str, Any]

_NAMED = 5
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_EIGHT_BITS = frozenset({"F8_E4M3", "F8_E5M2", "I8"})
# What ComfyUI and LightX2V put beside 8-bit weights. Scales of inputs are for kernels that multiply in 8 bits.
_SCALES = ("scale_weight", "weight_scale")
_IGNORED_ENDINGS = ("scale_input", "input_scale", "comfy_quant")
# Beside the weights: ComfyUI's mark of scaled files, its copy of the tokenizer, and what CLIP has behind its layers.
_IGNORED = ("scaled_fp8", "spiece_model", "logit_scale", "visual_projection.weight", "text_projection.weight")
_IGNORED_ROOTS = ("text_model.",)

# Of a configuration: what says where it comes from, and what would make a library do more than build the class.
_NOT_TAKEN = frozenset({"auto_map", "quantization_config", "torch_dtype", "dtype", "transformers_version"})
# What shapes do not tell, by part; everything else of a built configuration is compared with the folder's.
_UNTOLD: Mapping[Role, frozenset[str]] = {
    "transformer": frozenset(
        {"_class_name", "num_attention_heads", "attention_head_dim", "vace_layers", "cross_attn_norm", "qk_norm", "eps"}
        | {"rope_max_seq_len"}
    ),
    "vae": frozenset({"_class_name", "latents_mean", "latents_std", "attn_scales", "dropout"}),
    "text_encoder": frozenset(
        {"architectures", "model_type", "relative_attention_max_distance", "feed_forward_proj", "layer_norm_epsilon"}
        | {"is_encoder_decoder", "use_cache", "pad_token_id", "eos_token_id"}
    ),
    "image_encoder": frozenset(
        {"architectures", "model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "projection_dim"}
    ),
}
# Of a VAE's configuration, what is left out where it is the class's own default.
_VAE_DEFAULTS: Config = {
    "decoder_base_dim": None,
    "is_residual": False,
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": None,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}


@dataclasses.dataclass(frozen=True)
class Single:
    """A part that can be loaded: by `source` once it is known where its files lie in the worker's view.

    `tensors` are named as in the model; scales are multiplied in, so they are not among them.
    """

    role: Role
    library: Literal["diffusers", "transformers"]
    class_name: str
    config: Config
    tensors: Tensors
    format: Literal["safetensors", "gguf"]
    renames: Mapping[str, str]
    splits: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    scales: Mapping[str, str]
    ignored: tuple[str, ...]
    reasons: tuple[str, ...]

    def source(self, files: tuple[str, ...]) -> SourceSpec:
        """Return what a worker is told."""
        return SourceSpec(
            format=self.format,
            files=files,
            config={name: _value(value) for name, value in self.config.items()},
            renames=dict(self.renames),
            splits=dict(self.splits),
            shapes=dict(self.shapes),
            scales=dict(self.scales),
            ignored=self.ignored,
        )


def role_in(files: Mapping[str, WeightFile]) -> Role | None:
    """Return which part of a model the files hold, by names alone; None for no part of Wan's."""
    merged = {name: tensor for file in files.values() for name, tensor in file.tensors.items()}
    prefix = _prefix_of(merged)
    plain = {name.removeprefix(prefix): tensor for name, tensor in merged.items()}
    return role_of(original_names(plain) or plain)


def _prefix_of(tensors: Tensors) -> str:
    return next((item for item in PREFIXES if any(name.startswith(item) for name in tensors)), "")


def read_single(where: str, files: Mapping[str, WeightFile], folder_config: Config | None) -> Single:
    """Return the part that the files hold.

    Args:
        where: What the user gave, for messages.
        files: The headers of one file, or of all shards.
        folder_config: The configuration that the folder with the other parts has for a part of this name.

    Raises:
        ModelInvalid: Tensors are missing, left over or of another shape; or these are no part of Wan's.
        ModelNotCompatible: A number format that nothing here computes with, or several parts in one file.
    """
    formats = {file.format for file in files.values()}
    if len(formats) != 1 or (formats == {"gguf"} and len(files) > 1):
        raise ModelNotCompatible(f"{where} has several weight files that are not the shards of one part")
    merged: dict[str, TensorFact] = {}
    for path, file in files.items():
        for name in merged.keys() & file.tensors.keys():
            raise ModelInvalid(f"{path!r} of {where} has the tensor {name!r} that another of its files has too")
        merged |= file.tensors
    prefix = _prefix_of(merged)
    if prefix and any(not name.startswith(prefix) and name not in _IGNORED for name in merged):
        other = next(name for name in merged if not name.startswith(prefix) and name not in _IGNORED)
        raise ModelNotCompatible(
            f"{where} holds more than the transformer ({clean_text(other, 120)!r}), which is not taken apart here",
            hint="use a file of the transformer alone, and a folder with the other parts",
        )
    plain = {name.removeprefix(prefix): tensor for name, tensor in merged.items()}
    scales, ignored, weights = _sorted(where, plain)
    spelled = original_names(weights)
    same = spelled is not None
    original = spelled if spelled is not None else {name: (name, tensor) for name, tensor in weights.items()}
    facts = {name: tensor for name, (_, tensor) in original.items()}
    gguf = formats == {"gguf"}
    if gguf:
        facts = _unsqueezed(facts)
    role = role_of(facts)
    if role is None:
        some = ", ".join(repr(clean_text(name, 80)) for name in sorted(weights)[:_NAMED])
        raise ModelInvalid(
            f"{where} is no transformer, VAE, text encoder or image encoder of Wan by its names: {some} ...",
            hint="see what it is with wan-compat check",
        )
    part = part_of(role, facts, _told_by_folder(role, facts, folder_config))
    unplaced = [name for name in facts if name.startswith(part.dropped)] if part.dropped else []
    table = _same_names(part, original) if same else part.renames
    renames, splits, shapes, tensors = _compare(where, table, weights, frozenset(unplaced), squeezed=gguf)
    config, how = _configuration(part, folder_config)
    ignored += unplaced
    pairs = {f"{prefix}{old}": new for old, new in renames.items()}
    return Single(
        role=role,
        library=part.library,
        class_name=part.class_name,
        config=config,
        tensors=tensors,
        format="gguf" if gguf else "safetensors",
        renames=as_templates((old, new) for old, new in pairs.items() if old != new) if any_changes(pairs) else {},
        splits=_as_split_templates({f"{prefix}{old}": news for old, news in splits.items()}),
        shapes=_as_shape_templates(shapes),
        scales=as_templates((f"{prefix}{old}", f"{prefix}{scale}") for old, scale in scales.items()),
        ignored=tuple(sorted({template_of(_full(name, prefix, merged))[0] for name in ignored})),
        reasons=(f"{part.class_name} by the names and shapes in {where}", how),
    )


def any_changes(pairs: Mapping[str, str]) -> bool:
    return any(old != new for old, new in pairs.items())


def _full(name: str, prefix: str, merged: Tensors) -> str:
    return f"{prefix}{name}" if f"{prefix}{name}" in merged else name


def _sorted(where: str, tensors: Tensors) -> tuple[dict[str, str], list[str], dict[str, TensorFact]]:
    """Return (weight -> scale, what is ignored, weights), all by plain names."""
    scales: dict[str, str] = {}
    ignored: list[str] = []
    weights: dict[str, TensorFact] = {}
    for name, tensor in tensors.items():
        stem, _, ending = name.rpartition(".")
        if name in _IGNORED or ending in _IGNORED_ENDINGS or name.startswith(_IGNORED_ROOTS):
            ignored.append(name)
        elif ending in _SCALES:
            weight = tensors.get(f"{stem}.weight")
            rows = weight.shape[0] if weight is not None and weight.shape else 0
            if math.prod(tensor.shape) not in (1, rows) or tensor.dtype not in _FLOATS:
                raise ModelNotCompatible(
                    f"{name!r} of {where} is {tensor.dtype} of shape {tensor.shape}: scales for blocks of a weight, "
                    "which nothing here computes with",
                    hint="use a file with one scale for each weight or row, or in bf16",
                )
            scales[f"{stem}.weight"] = name
        else:
            weights[name] = tensor
    for name, tensor in weights.items():
        packed = tensor.dtype not in _FLOATS | _EIGHT_BITS and not _is_block_type(tensor.dtype)
        if packed or (tensor.dtype == "I8" and name not in scales):
            raise ModelNotCompatible(
                f"{clean_text(name, 120)!r} of {where} is stored as {tensor.dtype}, packed by a program of its own",
                hint="use a file in bf16, fp16, fp32, fp8 or GGUF",
            )
    return scales, ignored, weights


def _is_block_type(dtype: str) -> bool:
    return dtype.startswith(("Q", "IQ"))


def _unsqueezed(facts: Tensors) -> dict[str, TensorFact]:
    """Give a GGUF's patch embedding its five dimensions back: converters squeeze them in different ways."""
    found = dict(facts)
    for name in ("patch_embedding", "vace_patch_embedding"):
        tensor, bias = found.get(f"{name}.weight"), found.get(f"{name}.bias")
        if tensor is not None and bias is not None and len(tensor.shape) != 5 and len(bias.shape) == 1:
            channels, rest = divmod(math.prod(tensor.shape), 4 * max(bias.shape[0], 1))
            if not rest:
                shape = (bias.shape[0], channels, 1, 2, 2)
                found[f"{name}.weight"] = dataclasses.replace(tensor, shape=shape)
    return found


def _told_by_folder(role: Role, facts: Tensors, config: Config | None) -> Config:
    """Return, in the original's words, what the folder's configuration says and shapes do not."""
    if role != "transformer" or config is None:
        return {}
    heads, size = config.get("num_attention_heads"), config.get("attention_head_dim")
    width = facts["patch_embedding.weight"].shape[0]
    if not isinstance(heads, int) or not isinstance(size, int) or heads * size != width:
        return {}
    places = config.get("vace_layers")
    return {"num_heads": heads} | ({"vace_layers": places} if isinstance(places, list) else {})


def _same_names(part: Part, original: Mapping[str, tuple[str, TensorFact]]) -> tuple[Rename, ...]:
    """Return the part's table for a file that has the libraries' names already."""
    shared = original.get("token_embedding.weight", ("shared.weight",))[0]
    bare = part.role == "image_encoder" and not any(name.startswith(CLIP_PREFIX) for name, _ in original.values())
    table = []
    for rename in part.renames:
        old = rename.new.removeprefix(CLIP_PREFIX) if bare else rename.new
        if old == "shared.weight":
            old = shared
        table.append(Rename(old, rename.new_shape, rename.new, rename.new_shape))
    return tuple(table)


Compared = tuple[
    dict[str, str], dict[str, tuple[str, ...]], dict[str, tuple[int, ...]], dict[str, TensorFact]
]  # renames, splits, shapes, tensors


def _compare(
    where: str, table: tuple[Rename, ...], weights: Tensors, unplaced: frozenset[str], *, squeezed: bool
) -> Compared:
    expected = {rename.old for rename in table}
    left = weights.keys() - expected - unplaced
    if "shared.weight" in expected:
        left -= {"encoder.embed_tokens.weight"}  # the same tensor under its other name; tied again when it is loaded
    missing = expected - weights.keys()
    for names, words in ((missing, "lacks"), (left, "has no place for")):
        if names:
            raise ModelInvalid(
                f"{where} {words} {_some(names)}",
                hint="download the file again; a model with layers of its own needs a class of its own",
            )
    renames: dict[str, str] = {}
    splits: dict[str, tuple[str, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    tensors: dict[str, TensorFact] = {}
    for rename in table:
        tensor = weights[rename.old]
        fits = tensor.shape == rename.old_shape
        if not fits and not (squeezed and math.prod(tensor.shape) == math.prod(rename.old_shape)):
            raise ModelInvalid(
                f"{clean_text(rename.old, 120)!r} of {where} has the shape {tensor.shape}, {rename.old_shape} fits",
                hint="the tensors of this file contradict each other; download it again",
            )
        if rename.parts > 1:
            splits[rename.old] = (*splits.get(rename.old, ()), rename.new)
        else:
            renames[rename.old] = rename.new
        # Of a GGUF the header may say what its converter squeezed; the package that reads it does not.
        if (rename.parts == 1 and tensor.shape != rename.new_shape) or (squeezed and len(rename.new_shape) > 2):
            shapes[rename.new] = rename.new_shape
        tensors[rename.new] = TensorFact(tensor.dtype, rename.new_shape, tensor.bytes // rename.parts)
    return renames, splits, shapes, tensors


def _some(names: set[str] | frozenset[str]) -> str:
    shown = ", ".join(clean_text(name, 120) for name in sorted(names)[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def _as_split_templates(splits: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    if not splits:
        return {}
    columns = [as_templates((old, news[place]) for old, news in splits.items()) for place in range(3)]
    return {old: tuple(column[old] for column in columns) for old in columns[0]}


def _as_shape_templates(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        template = template_of(name)[0]
        found[template if found.get(template, shape) == shape else name] = shape
    return found


def _configuration(part: Part, folder: Config | None) -> tuple[dict[str, Any], str]:
    """Return the folder's configuration if all that shapes tell is the same there, else the one built from them."""
    built = dict(part.config)
    if folder is not None:
        told = {name: value for name, value in built.items() if name not in _UNTOLD[part.role]}
        defaults = _VAE_DEFAULTS if part.role == "vae" else {}
        same = all(folder.get(name, defaults.get(name)) == value for name, value in told.items())
        if same and part.role == "transformer":
            width = built["num_attention_heads"] * built["attention_head_dim"]
            same = folder.get("num_attention_heads", 0) * folder.get("attention_head_dim", 0) == width
        if same:
            taken = {
                name: value
                for name, value in folder.items()
                if not name.startswith("_") and name not in _NOT_TAKEN and _is_plain(value)
            }
            return taken, "its configuration is that of the folder, which fits every shape"
    return built, "its configuration was built from the shapes"


def _is_plain(value: Any) -> bool:
    scalars = (bool, int, float, str, type(None))
    return isinstance(value, scalars) or (
        isinstance(value, list) and len(value) <= 256 and all(isinstance(item, scalars) for item in value)
    )


def _value(value: Any) -> ConfigValue:
    return tuple(value) if isinstance(value, list | tuple) else value
