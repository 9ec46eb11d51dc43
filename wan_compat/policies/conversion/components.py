"""What a group of tensors is, by the names that only one part of Wan has, and the configuration that fits it.

Everything that shapes tell is taken from shapes, since a `config.json` beside them may be another model's. What they
do not tell (how many heads share the width) comes from the original's own configuration or, for the image encoder, from
the one form that Wan uses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Mapping
from typing import Any, Literal

from wan_compat.policies.conversion import renames, vae
from wan_compat.policies.conversion.renames import Rename
from wan_compat.policies.facts import TensorFact
from wan_compat.protocol.errors import ModelInvalid

Role = Literal["transformer", "vae", "text_encoder", "image_encoder"]
Tensors = Mapping[str, TensorFact]

PREFIXES = ("model.diffusion_model.", "diffusion_model.")

_MARKS: Mapping[Role, tuple[str, ...]] = {
    "transformer": ("blocks.0.self_attn.q.weight", "patch_embedding.weight"),
    "vae": ("encoder.conv1.weight", "decoder.conv1.weight", "conv2.weight"),
    "text_encoder": ("token_embedding.weight", "blocks.0.attn.q.weight"),
    "image_encoder": ("visual.patch_embedding.weight", "visual.transformer.0.attn.to_qkv.weight"),
}
HEAD_CHANNELS = 128  # of every Wan transformer, where no configuration says otherwise
CLIP_HEAD_CHANNELS = 80  # ViT-H/14: 16 heads of 1280
MAX_LAYERS = 512


@dataclasses.dataclass(frozen=True)
class Part:
    """One component of the converted model, before anything was compared with it."""

    role: Role
    library: Literal["diffusers", "transformers"]
    class_name: str
    config: Mapping[str, Any]
    renames: tuple[Rename, ...]
    dropped: tuple[str, ...] = ()  # beginnings of names that have no place, and need none


def role_of(tensors: Container[str]) -> Role | None:
    """Return the part that these tensors are in the original's spelling (`without_prefix` first), None if no part."""
    return next((role for role, marks in _MARKS.items() if all(mark in tensors for mark in marks)), None)


def without_prefix(tensors: Tensors) -> dict[str, str]:
    """Return plain name -> name in the file. ComfyUI's single files have a prefix before every name."""
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): name for name in tensors}
    return {name: name for name in tensors}


def part_of(role: Role, tensors: Tensors, original_config: Mapping[str, Any]) -> Part:
    """Return the component that the tensors, under plain names, must become.

    Raises:
        ModelInvalid: Sizes that contradict each other or the original's configuration.
    """
    if role == "transformer":
        return _transformer(tensors, original_config)
    if role == "vae":
        config, table = vae.vae_of(tensors)
        return Part(role, "diffusers", "AutoencoderKLWan", config, table)
    return _text_encoder(tensors) if role == "text_encoder" else _image_encoder(tensors)


def _transformer(tensors: Tensors, original: Mapping[str, Any]) -> Part:
    d, c, *patch = _shape(tensors, "patch_embedding.weight", 5)
    image = "img_emb.proj.0.weight" in tensors
    positions = "img_emb.emb_pos" in tensors
    sizes = {
        "d": d,
        "c": c,
        "o": _shape(tensors, "head.head.weight", 2)[0],
        "t": _shape(tensors, "text_embedding.0.weight", 2)[1],
        "q": _shape(tensors, "time_embedding.0.weight", 2)[1],
        "f": _shape(tensors, "blocks.0.ffn.0.weight", 2)[0],
        **{f"p{place}": size for place, size in enumerate(patch)},
    }
    if image:
        sizes["i"] = _shape(tensors, "img_emb.proj.0.weight", 1)[0]
    if positions:
        sizes["n"] = _shape(tensors, "img_emb.emb_pos", 3)[1]
    layers, vace_layers = _count(tensors, "blocks."), _count(tensors, "vace_blocks.")
    if vace_layers:
        sizes["e"] = _shape(tensors, "vace_patch_embedding.weight", 5)[1]
    if sizes["o"] % math.prod(patch):
        raise ModelInvalid(f"the transformer's head has {sizes['o']} rows, no multiple of a patch {tuple(patch)}")
    heads = original.get("num_heads", d // HEAD_CHANNELS)
    if not isinstance(heads, int) or not 1 <= heads <= d or d % heads or d // heads % 2:
        raise ModelInvalid(
            f"a transformer of width {d} cannot have {heads!r} heads",
            hint="put the original config.json beside the weights: it says num_heads",
        )
    out = sizes["o"] // math.prod(patch)
    _agree(original, {"dim": d, "in_dim": c, "out_dim": out, "ffn_dim": sizes["f"], "num_layers": layers})
    config: dict[str, Any] = {
        "_class_name": "WanVACETransformer3DModel" if vace_layers else "WanTransformer3DModel",
        "patch_size": patch,
        "num_attention_heads": heads,
        "attention_head_dim": d // heads,
        "in_channels": c,
        "out_channels": out,
        "text_dim": sizes["t"],
        "freq_dim": sizes["q"],
        "ffn_dim": sizes["f"],
        "num_layers": layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": sizes.get("i"),
        "added_kv_proj_dim": d if image else None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": sizes.get("n"),
    }
    if vace_layers:
        config |= {"vace_layers": _vace_places(layers, vace_layers, original), "vace_in_channels": sizes["e"]}
    table = renames.transformer_renames(
        sizes, layers=layers, vace_layers=vace_layers, image=image, image_positions=positions
    )
    return Part("transformer", "diffusers", config["_class_name"], config, table)


def _vace_places(layers: int, vace_layers: int, original: Mapping[str, Any]) -> list[int]:
    """Return behind which blocks the control blocks stand; evenly spread, as in both published sizes."""
    step = layers // vace_layers
    places = original.get("vace_layers", [step * number for number in range(vace_layers)])
    known = isinstance(places, list) and all(isinstance(place, int) for place in places)
    if not known or len(places) != vace_layers or places != sorted({place for place in places if 0 <= place < layers}):
        raise ModelInvalid(f"vace_layers is {places!r}, for {vace_layers} control blocks and {layers} blocks")
    return [int(place) for place in places]


def _text_encoder(tensors: Tensors) -> Part:
    v, d = _shape(tensors, "token_embedding.weight", 2)
    b, h = _shape(tensors, "blocks.0.pos_embedding.embedding.weight", 2)
    a = _shape(tensors, "blocks.0.attn.q.weight", 2)[0]
    f = _shape(tensors, "blocks.0.ffn.gate.0.weight", 2)[0]
    layers = _count(tensors, "blocks.")
    if h < 1 or a % h:
        raise ModelInvalid(f"a text encoder with attention width {a} cannot have {h} heads")
    config = {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "vocab_size": v,
        "d_model": d,
        "d_kv": a // h,
        "d_ff": f,
        "num_layers": layers,
        "num_heads": h,
        "relative_attention_num_buckets": b,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "is_encoder_decoder": False,
        "use_cache": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    table = renames.text_encoder_renames({"v": v, "d": d, "a": a, "b": b, "h": h, "f": f}, layers=layers)
    return Part("text_encoder", "transformers", "UMT5EncoderModel", config, table)


def _image_encoder(tensors: Tensors) -> Part:
    d, c, k, _ = _shape(tensors, "visual.patch_embedding.weight", 4)
    n = _shape(tensors, "visual.pos_embedding", 3)[1]
    f = _shape(tensors, "visual.transformer.0.mlp.0.weight", 2)[0]
    layers = _count(tensors, "visual.transformer.")
    side = math.isqrt(max(n - 1, 0))
    if d % CLIP_HEAD_CHANNELS or side < 1 or side * side != n - 1:
        raise ModelInvalid(f"an image encoder of width {d} with {n} positions is not Wan's CLIP")
    config = {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": d,
        "intermediate_size": f,
        "num_hidden_layers": layers,
        "num_attention_heads": d // CLIP_HEAD_CHANNELS,
        "num_channels": c,
        "image_size": side * k,
        "patch_size": k,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 1024,
    }
    table = renames.image_encoder_renames({"d": d, "c": c, "k": k, "n": n, "f": f}, layers=layers)
    return Part("image_encoder", "transformers", "CLIPVisionModel", config, table, renames.CLIP_DROPPED)


def _shape(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    tensor = tensors.get(name)
    if tensor is None:
        raise ModelInvalid(f"the tensor {name!r} is missing", hint="download the file again, and compare its checksum")
    if len(tensor.shape) != dimensions or 0 in tensor.shape:
        raise ModelInvalid(f"the tensor {name!r} has shape {tensor.shape}, where {dimensions} dimensions are known")
    return tensor.shape


def _count(tensors: Tensors, prefix: str) -> int:
    """Count layers. A gap in their numbers shows later, as missing tensors."""
    found = {name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)}
    if len(found) > MAX_LAYERS:
        raise ModelInvalid(f"{len(found)} layers under {prefix!r}; no Wan model has more than {MAX_LAYERS}")
    return len(found)


def _agree(original: Mapping[str, Any], measured: Mapping[str, int]) -> None:
    for field, value in measured.items():
        said = original.get(field, value)
        if said != value:
            raise ModelInvalid(
                f"config.json says {field}={said!r}, the tensors say {value}",
                hint="weights and config.json come from different models; take both from one repository",
            )
