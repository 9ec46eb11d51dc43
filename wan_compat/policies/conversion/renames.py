"""Where each tensor of an original checkpoint goes: both names, both shapes, for every part but the VAE (`vae.py`).

The tables are complete. What they do not name has no place in the converted model, and what they name must be there,
in this very shape: a tensor that is silently left out would show as noise an hour later.

    d width   f feed-forward   t text width   q frequencies   i image width   c channels in   o channels out times patch

Sources: `convert_wan_transformer_to_diffusers` of diffusers (single_file_utils.py); wan/modules/{model,vace_model,t5,
clip}.py of Wan-Video/Wan2.1 for the original names, transformers' UMT5 and CLIP for the new ones. Tests hold the
first against diffusers' own function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rename:
    """One tensor of the converted model: `old` in the original, of shape `old_shape`, becomes `new`.

    Where `parts` is more than 1, `new` is the `part`-th of so many equal runs of rows of `old`. `new_shape` has as many
    elements as its rows; they lie in the same order in both.
    """

    old: str
    old_shape: Shape
    new: str
    new_shape: Shape
    part: int = 0
    parts: int = 1


# old name, new name, shape. A line without an ending in a known suffix stands for a weight and a bias (`+`).
_TRANSFORMER = """
patch_embedding.weight      patch_embedding.weight                          d c p0 p1 p2
patch_embedding.bias        patch_embedding.bias                            d
text_embedding.0+           condition_embedder.text_embedder.linear_1       d t
text_embedding.2+           condition_embedder.text_embedder.linear_2       d d
time_embedding.0+           condition_embedder.time_embedder.linear_1       d q
time_embedding.2+           condition_embedder.time_embedder.linear_2       d d
time_projection.1+          condition_embedder.time_proj                    6d d
head.modulation             scale_shift_table                               1 2 d
head.head+                  proj_out                                        o d
"""
_IMAGE_EMBEDDING = """
img_emb.proj.0.weight       condition_embedder.image_embedder.norm1.weight  i
img_emb.proj.0.bias         condition_embedder.image_embedder.norm1.bias    i
img_emb.proj.1+             condition_embedder.image_embedder.ff.net.0.proj i i
img_emb.proj.3+             condition_embedder.image_embedder.ff.net.2      d i
img_emb.proj.4.weight       condition_embedder.image_embedder.norm2.weight  d
img_emb.proj.4.bias         condition_embedder.image_embedder.norm2.bias    d
"""
_IMAGE_POSITIONS = """
img_emb.emb_pos             condition_embedder.image_embedder.pos_embed     1 n i
"""
_BLOCK = """
modulation                  scale_shift_table       1 6 d
self_attn.q+                attn1.to_q              d d
self_attn.k+                attn1.to_k              d d
self_attn.v+                attn1.to_v              d d
self_attn.o+                attn1.to_out.0          d d
self_attn.norm_q.weight     attn1.norm_q.weight     d
self_attn.norm_k.weight     attn1.norm_k.weight     d
norm3.weight                norm2.weight            d
norm3.bias                  norm2.bias              d
cross_attn.q+               attn2.to_q              d d
cross_attn.k+               attn2.to_k              d d
cross_attn.v+               attn2.to_v              d d
cross_attn.o+               attn2.to_out.0          d d
cross_attn.norm_q.weight    attn2.norm_q.weight     d
cross_attn.norm_k.weight    attn2.norm_k.weight     d
ffn.0+                      ffn.net.0.proj          f d
ffn.2+                      ffn.net.2               d f
"""
_BLOCK_WITH_IMAGE = """
cross_attn.k_img+           attn2.add_k_proj        d d
cross_attn.v_img+           attn2.add_v_proj        d d
cross_attn.norm_k_img.weight attn2.norm_added_k.weight d
"""
_VACE = """
vace_patch_embedding.weight vace_patch_embedding.weight  d e p0 p1 p2
vace_patch_embedding.bias   vace_patch_embedding.bias    d
"""
_VACE_FIRST = "before_proj+ proj_in d d"
_VACE_EACH = "after_proj+ proj_out d d"

_T5 = """
token_embedding.weight      shared.weight                                   v d
norm.weight                 encoder.final_layer_norm.weight                 d
"""
_T5_BLOCK = """
norm1.weight                layer.0.layer_norm.weight                               d
attn.q.weight               layer.0.SelfAttention.q.weight                          a d
attn.k.weight               layer.0.SelfAttention.k.weight                          a d
attn.v.weight               layer.0.SelfAttention.v.weight                          a d
attn.o.weight               layer.0.SelfAttention.o.weight                          d a
pos_embedding.embedding.weight layer.0.SelfAttention.relative_attention_bias.weight b h
norm2.weight                layer.1.layer_norm.weight                               d
ffn.gate.0.weight           layer.1.DenseReluDense.wi_0.weight                      f d
ffn.fc1.weight              layer.1.DenseReluDense.wi_1.weight                      f d
ffn.fc2.weight              layer.1.DenseReluDense.wo.weight                        d f
"""

_CLIP = """
patch_embedding.weight      embeddings.patch_embedding.weight               d c k k
pre_norm.weight             pre_layrnorm.weight                             d
pre_norm.bias               pre_layrnorm.bias                               d
post_norm.weight            post_layernorm.weight                           d
post_norm.bias              post_layernorm.bias                             d
"""
_CLIP_LAYER = """
norm1.weight                layer_norm1.weight          d
norm1.bias                  layer_norm1.bias            d
attn.proj+                  self_attn.out_proj          d d
norm2.weight                layer_norm2.weight          d
norm2.bias                  layer_norm2.bias            d
mlp.0+                      mlp.fc1                     f d
mlp.2+                      mlp.fc2                     d f
"""
# What the image encoder's file has besides: the text half of CLIP, and the head behind the layers that Wan looks at.
CLIP_DROPPED = ("textual.", "log_scale", "visual.head")


def transformer_renames(
    sizes: Mapping[str, int], *, layers: int, vace_layers: int, image: bool, image_positions: bool
) -> tuple[Rename, ...]:
    """Return every tensor of a Wan transformer of these sizes (keys as in the drawing above, and `p0` to `p2`)."""
    found = list(_expand(_TRANSFORMER, sizes))
    block = _BLOCK + (_BLOCK_WITH_IMAGE if image else "")
    if image:
        found += _expand(_IMAGE_EMBEDDING, sizes)
    if image_positions:
        found += _expand(_IMAGE_POSITIONS, sizes)
    for number in range(layers):
        found += _expand(block, sizes, f"blocks.{number}.", f"blocks.{number}.")
    if vace_layers:
        found += _expand(_VACE, sizes)
    for number in range(vace_layers):
        own = _VACE_EACH if number else f"{_VACE_FIRST}\n{_VACE_EACH}"
        found += _expand(f"{block}\n{own}", sizes, f"vace_blocks.{number}.", f"vace_blocks.{number}.")
    return tuple(found)


def text_encoder_renames(sizes: Mapping[str, int], *, layers: int) -> tuple[Rename, ...]:
    """Return every tensor of the UMT5 encoder. `a` attention width, `b` buckets, `h` heads, `v` vocabulary."""
    found = list(_expand(_T5, sizes))
    for number in range(layers):
        found += _expand(_T5_BLOCK, sizes, f"blocks.{number}.", f"encoder.block.{number}.")
    return tuple(found)


def image_encoder_renames(sizes: Mapping[str, int], *, layers: int) -> tuple[Rename, ...]:
    """Return every tensor of the vision half of CLIP. `k` side of a patch, `n` positions."""
    d, n = sizes["d"], sizes["n"]
    new = "vision_model."
    found = list(_expand(_CLIP, sizes, "visual.", new))
    found.append(Rename("visual.cls_embedding", (1, 1, d), f"{new}embeddings.class_embedding", (d,)))
    found.append(Rename("visual.pos_embedding", (1, n, d), f"{new}embeddings.position_embedding.weight", (n, d)))
    for number in range(layers):
        old, layer = f"visual.transformer.{number}.", f"{new}encoder.layers.{number}."
        found += _expand(_CLIP_LAYER, sizes, old, layer)
        for part, letter in enumerate("qkv"):
            name = f"{layer}self_attn.{letter}_proj"
            found.append(Rename(f"{old}attn.to_qkv.weight", (3 * d, d), f"{name}.weight", (d, d), part, 3))
            found.append(Rename(f"{old}attn.to_qkv.bias", (3 * d,), f"{name}.bias", (d,), part, 3))
    return tuple(found)


def _expand(table: str, sizes: Mapping[str, int], old_prefix: str = "", new_prefix: str = "") -> Iterator[Rename]:
    for line in table.strip().splitlines():
        if not line.strip():
            continue
        old, new, *letters = line.split()
        shape = tuple(_size(letter, sizes) for letter in letters)
        for ending, own in _endings(old, shape):
            name = old.removesuffix("+") + ending
            yield Rename(f"{old_prefix}{name}", own, f"{new_prefix}{new}{ending}", own)


def _endings(old: str, shape: Shape) -> Iterable[tuple[str, Shape]]:
    return ((".weight", shape), (".bias", shape[:1])) if old.endswith("+") else (("", shape),)


def _size(letter: str, sizes: Mapping[str, int]) -> int:
    if letter.isdigit():
        return int(letter)
    if letter[0].isdigit():
        return int(letter[0]) * sizes[letter[1:]]
    return sizes[letter]
