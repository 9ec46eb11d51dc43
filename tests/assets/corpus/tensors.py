"""Names and shapes of the Wan family beyond diffusers' classes: original names, Fun's extra parts, LoRAs, quantisations.

Everything is derived from the recorded tables, so that a shape is written down once. Sources of the names:
`convert_wan_transformer_to_diffusers` in diffusers' single_file_utils.py, which a test runs over `original_names`
backwards; VideoX-Fun's wan_transformer3d.py and wan_camera_adapter.py for the control parts.
"""

from __future__ import annotations

import re

from tests.assets.corpus.tables import Shape, Tensors, recorded_tensors

# diffusers' name -> original name, in this order; the inverse of diffusers' own table.
_TO_ORIGINAL = (
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^condition_embedder\.image_embedder\.pos_embed$", "img_emb.emb_pos"),
    (r"^condition_embedder\.image_embedder\.norm1\.", "img_emb.proj.0."),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.", "img_emb.proj.1."),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2\.", "img_emb.proj.3."),
    (r"^condition_embedder\.image_embedder\.norm2\.", "img_emb.proj.4."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.proj_in\.", ".before_proj."),
    (r"\.proj_out\.", ".after_proj."),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_q\.", ".q."),
    (r"\.to_k\.", ".k."),
    (r"\.to_v\.", ".v."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.add_k_proj\.", ".k_img."),
    (r"\.add_v_proj\.", ".v_img."),
    (r"\.norm_added_k\.", ".norm_k_img."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.norm2\.", ".norm3."),
)


def original_names(name: str) -> Tensors:
    """Return a recorded Wan transformer under the names of the original repositories."""
    return {_original(key): shape for key, shape in recorded_tensors(name).items()}


def _original(key: str) -> str:
    if key.startswith("condition_embedder.image_embedder."):
        for pattern, replacement in _TO_ORIGINAL[:10]:
            key = re.sub(pattern, replacement, key)
        return key
    for pattern, replacement in _TO_ORIGINAL:
        key = re.sub(pattern, replacement, key)
    return key


def animate_2_original() -> Tensors:
    """Return Animate-2's official names: its blocks are wrapped once more, its attention keeps the old names."""
    renames = _TO_ORIGINAL[17:24]
    found: Tensors = {}
    for key, shape in recorded_tensors("wan-animate-2-14b").items():
        if key.startswith("blocks."):
            key = re.sub(r"^(blocks\.\d+)\.", r"\1.block.", key)
            for pattern, replacement in renames:
                key = re.sub(pattern, replacement, key)
        found[key] = shape
    return found


def with_control_adapter(tensors: Tensors, downscale: int) -> Tensors:
    """Add VideoX-Fun's camera adapter: pixel unshuffle of 24 channels, one convolution, one residual block."""
    dim = tensors["patch_embedding.weight"][0]
    convolutions = {f"residual_blocks.0.conv{index}": (dim, dim, 3, 3) for index in (1, 2)}
    convolutions["conv"] = (dim, 24 * downscale * downscale, 2, 2)
    extra: Tensors = {}
    for name, shape in convolutions.items():
        extra[f"control_adapter.{name}.weight"] = shape
        extra[f"control_adapter.{name}.bias"] = (dim,)
    return tensors | extra


def with_ref_conv(tensors: Tensors, channels: int = 16) -> Tensors:
    """Add VideoX-Fun's reference convolution (Fun V1.1 and later)."""
    dim = tensors["patch_embedding.weight"][0]
    return tensors | {"ref_conv.weight": (dim, channels, 2, 2), "ref_conv.bias": (dim,)}


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + key: shape for key, shape in tensors.items()}


def lora(tensors: Tensors, *, rank: int, style: str, prefix: str) -> Tensors:
    """Return a LoRA over the linear layers of the blocks.

    `style` is "peft" (`X.lora_A.weight`), "kohya" (`lora_unet_X.lora_down.weight` with underscores and `.alpha`) or
    "lightx2v" (`X.lora_down.weight`, as Wan's distillations are published).
    """
    found: Tensors = {}
    for key, shape in tensors.items():
        if not (key.startswith("blocks.") and key.endswith(".weight") and len(shape) == 2):
            continue
        stem = key.removesuffix(".weight")
        down, up = (rank, shape[1]), (shape[0], rank)
        if style == "peft":
            found |= {f"{prefix}{stem}.lora_A.weight": down, f"{prefix}{stem}.lora_B.weight": up}
        elif style == "kohya":
            flat = "lora_unet_" + stem.replace(".", "_")
            found |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": ()}
        elif style == "lightx2v":
            found |= {f"{prefix}{stem}.lora_down.weight": down, f"{prefix}{stem}.lora_up.weight": up}
            found[f"{prefix}{stem}.alpha"] = ()
        else:
            raise ValueError(style)
    return found


def fp8_scaled(tensors: Tensors) -> dict[str, tuple[str, Shape]]:
    """Return name -> (dtype, shape) of ComfyUI's scaled fp8: linear weights in F8_E4M3 with a scale each, and a marker."""
    found: dict[str, tuple[str, Shape]] = {"scaled_fp8": ("F8_E4M3", (2,))}
    for key, shape in tensors.items():
        if key.endswith(".weight") and len(shape) == 2 and "blocks." in key:
            found[key] = ("F8_E4M3", shape)
            found[key.removesuffix("weight") + "scale_weight"] = ("F32", ())
        else:
            found[key] = ("F16", shape)
    return found
