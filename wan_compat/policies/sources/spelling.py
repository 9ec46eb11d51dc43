"""From the names that diffusers and transformers give tensors back to the original program's, by the same tables.

What a part is, and what its configuration must be, is read from original names, once (`conversion/components.py`);
a file in the other spelling is translated first.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping

from wan_compat.policies.conversion import renames
from wan_compat.policies.facts import TensorFact
from wan_compat.protocol.sources import as_templates, looked_up

Tensors = Mapping[str, TensorFact]

CLIP_PREFIX = "vision_model."
_SHARED, _EMBEDDED = "shared.weight", "encoder.embed_tokens.weight"


# Dimensions of one that the original has before what the libraries keep.
_LEADING_ONES = {"visual.cls_embedding": 2, "visual.pos_embedding": 1}


class AnySize(dict[str, int]):
    """Sizes where only the names of a table are wanted."""

    def __missing__(self, key: str) -> int:
        return 1


def original_names(tensors: Tensors) -> dict[str, tuple[str, TensorFact]] | None:
    """Return original name -> (name here, its fact) for a part in the libraries' spelling, None for any other.

    A tensor that is in no table keeps its name, for the caller to refuse. Three that are one in the original (queries,
    keys and values of the image encoder) are put together, as far as a shape goes.
    """
    for marks, table in _spellings():
        if all(mark in tensors for mark in marks):
            return _translated(tensors, table)
    if "decoder.conv_in.weight" in tensors and "post_quant_conv.weight" in tensors:
        return {_vae_name(name, tensors): (name, tensor) for name, tensor in tensors.items()}
    return None


def _translated(tensors: Tensors, table: Mapping[str, str]) -> dict[str, tuple[str, TensorFact]]:
    found: dict[str, tuple[str, TensorFact]] = {}
    for name, tensor in tensors.items():
        old = looked_up(name, table) or name
        if old in _LEADING_ONES:
            tensor = dataclasses.replace(tensor, shape=(*[1] * _LEADING_ONES[old], *tensor.shape))
        if old in found and old.endswith((".to_qkv.weight", ".to_qkv.bias")):
            before = found[old][1]
            rows = (before.shape[0] + tensor.shape[0], *tensor.shape[1:])
            found[old] = (found[old][0], TensorFact(tensor.dtype, rows, before.bytes + tensor.bytes))
        else:
            found[old] = (name, tensor)
    return found


@functools.cache
def _spellings() -> tuple[tuple[tuple[str, ...], Mapping[str, str]], ...]:
    sizes = AnySize()
    transformer = renames.transformer_renames(sizes, layers=1, vace_layers=2, image=True, image_positions=True)
    text = renames.text_encoder_renames(sizes, layers=1)
    clip = renames.image_encoder_renames(sizes, layers=1)
    block = "encoder.block.0.layer.0.SelfAttention.q.weight"
    return (
        (("patch_embedding.weight", "blocks.0.attn1.to_q.weight"), _backwards(transformer)),
        ((_SHARED, block), _backwards(text)),
        ((_EMBEDDED, block), _backwards(text) | {_EMBEDDED: "token_embedding.weight"}),
        ((f"{CLIP_PREFIX}embeddings.class_embedding",), _backwards(clip)),
        (
            ("embeddings.class_embedding", "encoder.layers.0.self_attn.q_proj.weight"),
            {new.removeprefix(CLIP_PREFIX): old for new, old in _backwards(clip).items()},
        ),
    )


def _backwards(table: Iterable[renames.Rename]) -> dict[str, str]:
    return as_templates((rename.new, rename.old) for rename in table)


# ---- the VAE ---------------------------------------------------------------------------------------------------------
# Only the names that tell its sizes: its table follows from them (conversion/vae.py).

_VAE_ENDS = {
    "encoder.conv_in.weight": "encoder.conv1.weight",
    "decoder.conv_in.weight": "decoder.conv1.weight",
    "post_quant_conv.weight": "conv2.weight",
}
_FLAT = re.compile(r"encoder\.down_blocks\.(\d{1,2})\.(conv1\.weight|resample\.1\.weight|time_conv\.weight)")
_STAGED = re.compile(r"encoder\.down_blocks\.(\d{1,2})\.resnets\.(\d{1,2})\.conv1\.weight")
_SAMPLER = re.compile(r"encoder\.down_blocks\.(\d{1,2})\.downsampler\.(resample\.1|time_conv)\.weight")


def _vae_name(name: str, tensors: Tensors) -> str:
    if name in _VAE_ENDS:
        return _VAE_ENDS[name]
    if (flat := _FLAT.fullmatch(name)) is not None:
        return f"encoder.downsamples.{flat[1]}.{flat[2].replace('conv1.weight', 'residual.2.weight')}"
    if (staged := _STAGED.fullmatch(name)) is not None:
        return f"encoder.downsamples.{staged[1]}.downsamples.{staged[2]}.residual.2.weight"
    if (sampler := _SAMPLER.fullmatch(name)) is not None:
        blocks = sum(
            f"encoder.down_blocks.{sampler[1]}.resnets.{number}.conv1.weight" in tensors for number in range(16)
        )
        return f"encoder.downsamples.{sampler[1]}.downsamples.{blocks}.{sampler[2]}.weight"
    return name
