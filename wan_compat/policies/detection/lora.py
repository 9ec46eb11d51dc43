"""LoRA files: whose weights they adapt, told by the names of the modules and the width of a query's input.

    diffusion_model.blocks.0.self_attn.q.lora_down.weight       original naming (ComfyUI, lightx2v)
    transformer.blocks.0.attn1.to_q.lora_A.weight               diffusers, PEFT
    lora_unet_blocks_0_self_attn_q.lora_down.weight             kohya, musubi-tuner: underscores throughout

A LoRA with `k_img` belongs to a model with an image encoder (2.1 image-to-video); 2.2 has no such layer.
"""

from __future__ import annotations

import re

from wan_compat.policies.detection.headers import HeaderTraits, KeyStyle
from wan_compat.policies.detection.survey import Survey

_MARKS = frozenset({"lora_A", "lora_B", "lora_down", "lora_up", "lora", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff"})
_QUICK_MARKS = ("lora", "hada_w", "lokr_w", ".diff")
_INPUT_SIDE = ("lora_A", "lora_down", "lora.down")
_KOHYA = re.compile(r"lora_(?:unet|transformer)_+(blocks_\d+_\w+)")
_WAN_KOHYA = re.compile(r"blocks_(\d{1,4})_(self_attn|cross_attn|attn1|attn2|ffn)_(\w+)")
_WAN = re.compile(r"blocks\.(\d{1,4})\.(self_attn|cross_attn|attn1|attn2|ffn)\.(.+)")
_QUERIES = {
    "self_attn.q": "original",
    "attn1.to_q": "diffusers",
    "self_attn.to_q": "animate2",
}
_IMAGE = ("k_img", "v_img", "add_k_proj", "add_v_proj", "img_emb", "image_embedder")


def read_lora(part: Survey) -> HeaderTraits | None:
    """Return what a LoRA adapts, None if these tensors are no LoRA."""
    if not any(mark in name for name in part.tensors for mark in _QUICK_MARKS):
        return None
    adapters = 0
    blocks: set[str] = set()
    style: KeyStyle | None = None
    dim: int | None = None
    image = False
    wan = 0
    for name, tensor in part.tensors.items():
        module, mark = _split(name)
        if not mark:
            continue
        adapters += 1
        kohya = _KOHYA.match(module)
        match = _WAN_KOHYA.fullmatch(kohya[1]) if kohya else _WAN.fullmatch(module)
        if match is None:
            image = image or any(word in module for word in _IMAGE)
            continue
        wan += 1
        blocks.add(match[1])
        image = image or any(word in match[3] for word in _IMAGE)
        query = f"{match[2]}.{match[3]}"
        if query in _QUERIES:
            style = "kohya" if kohya else style or _style(query)
            if dim is None and mark in _INPUT_SIDE and len(tensor.shape) >= 2:
                dim = tensor.shape[1]
    if adapters * 3 < len(part.tensors) or not adapters:
        return None
    if not wan:
        return HeaderTraits("lora", family="another")
    return HeaderTraits(
        "lora",
        family="wan",
        key_style=style,
        dim=dim,
        num_layers=len(blocks),
        features=frozenset({"image_embedder"} if image else ()),
    )


def _style(query: str) -> KeyStyle:
    named = _QUERIES[query]
    return "diffusers" if named == "diffusers" else "animate2" if named == "animate2" else "original"


def _split(name: str) -> tuple[str, str]:
    """Return module and mark: `blocks.0.ffn.0`, `lora_A`; an empty mark for tensors that are no adapter's."""
    parts = name.split(".")
    for index in range(len(parts) - 1, 0, -1):
        if parts[index] in _MARKS:
            # The oldest spelling of diffusers has a dot where the others have an underscore.
            mark = ".".join(parts[index : index + 2]) if parts[index] == "lora" else parts[index]
            return ".".join(parts[:index]), mark
    return name, ""
