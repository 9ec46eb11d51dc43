"""What the tensors of one weight file or component are, from names and shapes alone.

Wan's denoiser comes in five spellings of the same network:

    blocks.0.attn1.to_q             diffusers
    blocks.0.self_attn.q            original (Wan's repositories, ComfyUI, GGUF)
    blocks.0.self_attn.to_q         Animate-2 in diffusers, which keeps the original's `head.modulation`
    blocks.0.block.self_attn.q      Animate-2's own checkpoint

each possibly behind prefixes such as `model.diffusion_model.`. Sizes come from the patch embedding
[dim, in, 1, 2, 2] and the head [out * 4, dim]; biases first, since quantisation packs weights but not biases.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from wan_compat.policies.detection.classes import Role
from wan_compat.policies.detection.foreign_headers import foreign_family
from wan_compat.policies.detection.survey import Survey, survey
from wan_compat.policies.facts import TensorFact

KeyStyle = Literal["diffusers", "original", "animate2", "animate2_original", "kohya", "transformers"]

# Scales beside fp8 weights: ComfyUI's `scaled_fp8` marker and both orders of the name.
_SCALES = ("scale_weight", "weight_scale", "scale_input", "input_scale")
_PACKED = {"absmax": "bitsandbytes", "quant_map": "bitsandbytes", "qweight": "packed", "qzeros": "packed"}
_PACKED |= {"wscales": "packed", "_data": "quanto"}
_PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})

_AROUND = frozenset({"head", "text_embedding", "time_embedding", "time_projection"})

# Roots and block modules that a plain Wan transformer does not have, in either spelling.
_FEATURE_ROOTS: Mapping[str, str] = {
    "vace_patch_embedding": "vace",
    "vace_blocks": "vace",
    "motion_encoder": "animate",
    "face_adapter": "animate",
    "face_encoder": "animate",
    "pose_patch_embedding": "animate",
    "casual_audio_encoder": "s2v",
    "audio_injector": "s2v",
    "trainable_cond_mask": "s2v",
    "frame_packer": "s2v",
    "control_adapter": "camera",
    "ref_conv": "ref_conv",
    "fps_embedding": "fps",
    "fps_projection": "fps",
    "far_patch_embedding": "far",
    "patch_short": "helios",
    "patch_mid": "helios",
    "patch_long": "helios",
    "img_emb": "image_embedder",
}
_FEATURE_MODULES: Mapping[str, str] = {
    "audio_cross_attn": "audio",
    "cross_attn.k_img": "image_embedder",
    "attn2.add_k_proj": "image_embedder",
    "cross_attn.add_k_proj": "image_embedder",
    "to_gate_compress": "vsa",  # FastVideo's video sparse attention
    "attn1.to_gate_compress": "vsa",
    "self_attn.to_gate_compress": "vsa",
}


@dataclasses.dataclass(frozen=True)
class HeaderTraits:
    """What tensor names and shapes tell. Sizes are None where nothing shows them.

    `family` is "wan" (Wan and relatives), another family's name, or None. `features` are parts that a plain Wan
    transformer lacks (`image_embedder`, `pos_embed`, `vace`, ...). `has_ends` says that first and last layer are both
    there: without them (a missing shard) an absent feature proves nothing. `dtypes` counts bytes per type.
    `quantization` names formats: `fp8`, `fp8_scaled`, `gguf`, `bitsandbytes`, `packed`, `quanto`, `int8`.
    """

    role: Role
    family: str | None = None
    key_style: KeyStyle | None = None
    prefix: str = ""
    dim: int | None = None
    in_channels: int | None = None
    out_channels: int | None = None
    num_layers: int | None = None
    ffn_dim: int | None = None
    text_dim: int | None = None
    image_dim: int | None = None
    vace_layers: int | None = None
    z_dim: int | None = None
    base_dim: int | None = None
    latent_dimensions: Literal[0, 2, 3] = 0
    features: frozenset[str] = frozenset()
    quantization: frozenset[str] = frozenset()
    dtypes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    parameters: int = 0
    bytes: int = 0
    tensors: int = 0
    has_ends: bool = False


def read_headers(tensors: Mapping[str, TensorFact], metadata: Mapping[str, object]) -> tuple[HeaderTraits, ...]:
    """Return what the tensors are: one value, or several for a checkpoint that bundles denoiser, VAE and encoders."""
    found = []
    for section, part in survey(tensors).items():
        traits = _read(part, metadata)
        if section and traits.role == "other":
            traits = dataclasses.replace(traits, role=section)
        found.append(traits)
    return tuple(found)


def _read(part: Survey, metadata: Mapping[str, object]) -> HeaderTraits:
    # Here and not above: lora.py describes its answer with this module's class.
    from wan_compat.policies.detection.lora import read_lora

    traits = (
        read_lora(part)
        or _read_denoiser(part)
        or _read_vae(part)
        or _read_text_encoder(part)
        or _read_other_encoder(part)
        or _read_foreign(part, metadata)
        or _read_language_model(part)  # last: some denoisers are built from one
        or HeaderTraits("other")
    )
    return dataclasses.replace(
        traits,
        prefix=part.prefix,
        quantization=_quantization(part),
        dtypes=_dtypes(part),
        parameters=sum(math.prod(tensor.shape) for tensor in part.tensors.values()),
        bytes=sum(tensor.bytes for tensor in part.tensors.values()),
        tensors=len(part.tensors),
    )


def _read_denoiser(part: Survey) -> HeaderTraits | None:
    modules = part.modules
    style = _style(part)
    if style is None:
        return None
    features = {feature for root, feature in _FEATURE_ROOTS.items() if root in part.roots}
    for module in modules:
        feature = _FEATURE_MODULES.get(module) or _FEATURE_MODULES.get(module.partition(".")[0])
        if feature is not None:
            features.add(feature)
    features.update(_named_features(part))
    dim = _dimension(part, style)
    patch = part.shape("patch_embedding.weight")
    volume = math.prod(patch[2:]) if len(patch) == 5 else 4
    head = part.first("proj_out.bias", "head.head.bias", "proj_out.weight", "head.head.weight")
    if style == "diffusers":
        names = (
            "ffn.net.0.proj",
            "condition_embedder.text_embedder.linear_1",
            "condition_embedder.image_embedder.norm1",
        )
    else:
        names = ("block.ffn.0" if style == "animate2_original" else "ffn.0", "text_embedding.0", "img_emb.proj.0")
    text = part.shape(f"{names[1]}.weight")
    return HeaderTraits(
        "denoiser",
        family="wan",
        key_style=style,
        dim=dim,
        in_channels=_in_channels(patch, dim),
        out_channels=head[0] // volume if head and volume and head[0] >= volume else None,
        num_layers=len(part.blocks.get("blocks", ())),
        ffn_dim=_first_side(part.block_shape(f"{names[0]}.bias") or part.block_shape(f"{names[0]}.weight")),
        text_dim=text[1] if len(text) == 2 else None,
        image_dim=_first_side(part.shape(f"{names[2]}.weight")),
        vace_layers=len(part.blocks["vace_blocks"]) if "vace_blocks" in part.blocks else None,
        features=frozenset(features),
        has_ends=bool(patch) and bool(head),
    )


def _style(part: Survey) -> KeyStyle | None:
    """Return how Wan's layers are spelled here, None if these are not Wan's layers.

    Two of three marks suffice (self-attention, cross-attention, the layers around the blocks): a shard, or a file with
    few tensors left, is still Wan's.
    """
    spellings: tuple[tuple[KeyStyle, str, str, frozenset[str]], ...] = (
        ("diffusers", "attn1.to_q", "attn2.to_q", frozenset({"condition_embedder"})),
        ("animate2_original", "block.self_attn.q", "block.cross_attn.q", _AROUND),
        ("animate2", "self_attn.to_q", "cross_attn.to_q", _AROUND),
        ("original", "self_attn.q", "cross_attn.q", _AROUND),
    )
    video = len(part.shape("patch_embedding.weight")) == 5
    for style, own, cross, around in spellings:
        # Every Wan attention normalises its queries under this name; others that say `self_attn.to_q` call it `q_norm`.
        norm = f"{own.rpartition('.')[0]}.norm_q"
        marks = ({own, norm} <= part.modules, cross in part.modules, video and not around.isdisjoint(part.roots))
        if sum(marks) >= 2:
            return style
    if video and "condition_embedder" in part.roots:
        return "diffusers"
    return "original" if video and part.shape("head.modulation") else None


def _named_features(part: Survey) -> Iterable[str]:
    """Features that show below the first component of a name."""
    if any(part.shape(name) for name in ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos")):
        yield "pos_embed"
    if part.shape("condition_embedder.image_embedder.norm1.weight"):
        yield "image_embedder"
    if part.shape("condition_embedder.delta_embedder.linear_1.weight"):
        yield "delta"
    for root in part.roots:
        if root.startswith("action"):
            yield "action"  # robot policies on Wan: action_embedder and the like
    if "audio_proj" in part.roots and not {"casual_audio_encoder", "audio_injector"} & part.roots:
        yield "humo" if any(name.startswith("audio_proj.audio_proj_glob") for name in part.tensors) else "audio"


def _dimension(part: Survey, style: KeyStyle) -> int | None:
    """Return the width, from the tensors that quantisation leaves alone first."""
    query = {"diffusers": "attn1.to_q", "animate2": "self_attn.to_q", "animate2_original": "block.self_attn.q"}
    name = query.get(style, "self_attn.q")
    for shape in (
        part.shape("patch_embedding.bias"),
        part.block_shape(f"{name}.bias"),
        part.block_shape(f"{name}.weight"),
        part.shape("patch_embedding.weight"),
    ):
        if shape:
            return shape[0]
    table = part.first("head.modulation", "scale_shift_table")
    return table[-1] if table else None


def _in_channels(patch: tuple[int, ...], dim: int | None) -> int | None:
    if len(patch) == 5 and patch[0] == dim:
        return patch[1]
    # GGUF converters squeeze the five dimensions into four or two, in different ways: the count remains.
    values, known = math.prod(patch), 4 * (dim or 0)
    return values // known if known and values and values % known == 0 else None


def _first_side(shape: tuple[int, ...]) -> int | None:
    return shape[0] if shape else None


def _read_vae(part: Survey) -> HeaderTraits | None:
    encoder = part.first("encoder.conv_in.weight", "encoder.conv1.weight", "encoder.conv_in.conv.weight")
    decoder = part.first("decoder.conv_in.weight", "decoder.conv1.weight", "decoder.conv_in.conv.weight")
    if not encoder and not decoder:
        return None
    dimensions = {4: 2, 5: 3}.get(len(encoder or decoder), 0)
    # RMS norms called gamma and one fused to_qkv: Wan's VAE (and Qwen-Image's, which shares even its shapes).
    original = (
        "decoder.middle.0.residual.0.gamma" in part.tensors or "encoder.middle.0.residual.0.gamma" in part.tensors
    )
    own = original or any(f"{half}.mid_block.resnets.0.norm1.gamma" in part.tensors for half in ("encoder", "decoder"))
    z_dim = decoder[1] if len(decoder) >= 2 else None
    return HeaderTraits(
        "vae",
        family="wan" if own and dimensions == 3 else "another",
        key_style="original" if original else "diffusers",
        z_dim=z_dim,
        base_dim=_first_side(encoder),
        in_channels=encoder[1] if len(encoder) >= 2 else None,
        latent_dimensions=3 if dimensions == 3 else 2 if dimensions == 2 else 0,
        has_ends=bool(encoder) and bool(decoder),
    )


def _read_text_encoder(part: Survey) -> HeaderTraits | None:
    for embedding, block, family in (
        ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight", "transformers"),
        ("encoder.embed_tokens.weight", "encoder.block.0.layer.0.SelfAttention.q.weight", "transformers"),
        ("token_embedding.weight", "blocks.0.attn.q.weight", "original"),
        ("token_embd.weight", "enc.blk.0.attn_q.weight", "original"),
    ):
        shape = part.shape(embedding)
        if len(shape) == 2 and part.shape(block):
            # UMT5's vocabulary has 256,384 entries and a position bias in every layer; T5's has 32,128 and one bias.
            multilingual = any(
                part.shape(name)
                for name in (
                    "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
                    "blocks.1.pos_embedding.embedding.weight",
                    "enc.blk.1.attn_rel_b.weight",
                )
            )
            return HeaderTraits(
                "text_encoder",
                family="umt5" if multilingual or shape[0] > 200_000 else "t5",
                key_style="transformers" if family == "transformers" else "original",
                dim=shape[1],
                text_dim=shape[1],
                num_layers=len(part.blocks.get("encoder.block", ()) or part.blocks.get("blocks", ())) or None,
                has_ends=True,
            )
    if "text_model" in part.roots and "vision_model" not in part.roots:
        return HeaderTraits("text_encoder", family="clip", key_style="transformers")
    return None


def _read_language_model(part: Survey) -> HeaderTraits | None:
    if {"embed_tokens", "layers"} <= part.roots or {"token_embd", "blk"} <= part.roots:
        return HeaderTraits("text_encoder", family="language model", dim=_last(part.shape("embed_tokens.weight")))
    return None


def _read_other_encoder(part: Survey) -> HeaderTraits | None:
    # transformers 5 saves CLIPVisionModel without the `vision_model.` that earlier ones and the projection model have.
    embedding = part.first(
        "vision_model.embeddings.class_embedding",
        "embeddings.class_embedding",
        "visual.cls_embedding",
        "visual.class_embedding",
    )
    if embedding or "vision_model" in part.roots or "visual" in part.roots:
        style: KeyStyle = "original" if "visual" in part.roots else "transformers"
        return HeaderTraits("image_encoder", family="clip", key_style=style, dim=_last(embedding))
    if "wav2vec2" in part.roots or {"feature_extractor", "feature_projection"} <= part.roots:
        return HeaderTraits("audio_encoder", family="wav2vec2", key_style="transformers")
    return None


def _last(shape: tuple[int, ...]) -> int | None:
    return shape[-1] if shape else None


def _read_foreign(part: Survey, metadata: Mapping[str, object]) -> HeaderTraits | None:
    family = foreign_family(part, metadata)
    return None if family is None else HeaderTraits("denoiser", family=family)


def _dtypes(part: Survey) -> dict[str, int]:
    found: Counter[str] = Counter()
    for tensor in part.tensors.values():
        found[tensor.dtype] += tensor.bytes
    return dict(found)


def _quantization(part: Survey) -> frozenset[str]:
    found = {_PACKED[ending] for ending in part.endings if ending in _PACKED}
    types = {tensor.dtype for tensor in part.tensors.values()}
    scaled = "scaled_fp8" in part.roots or any(ending in _SCALES for ending in part.endings)
    if any(dtype.startswith("F8") for dtype in types):
        found.add("fp8_scaled" if scaled else "fp8")
    elif scaled:
        found.add("fp8_scaled" if "scaled_fp8" in part.roots else "int8")
    if types - _PLAIN_DTYPES - _INTEGERS:
        found.add("gguf")
    return frozenset(found)
