"""Denoisers of other families, told by tensor names: so that their files are named instead of "unknown".

Each row: the family, roots that must all be there, and names of which at least one must be there (where given).
Specific rows come first. Names are those of diffusers' CHECKPOINT_KEY_NAMES (loaders/single_file_utils.py) for original
checkpoints, and of the classes' state dicts for diffusers'.
"""

from __future__ import annotations

from collections.abc import Mapping

from wan_compat.policies.detection.survey import Survey

# What is certainly no Wan transformer, and not told apart further.
GENERIC = "a transformer of another family"

_ROWS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    # Stable Diffusion and what shares its UNet
    ("AnimateDiff", ("down_blocks", "up_blocks"), ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",)),
    ("Stable Video Diffusion", ("input_blocks",), ("input_blocks.1.0.time_stack.emb_layers.1.weight",)),
    (
        "Stable Video Diffusion",
        ("down_blocks", "up_blocks"),
        ("down_blocks.0.resnets.0.temporal_res_block.norm1.weight",),
    ),
    ("Stable Diffusion XL", ("input_blocks", "label_emb"), ()),
    ("Stable Diffusion", ("input_blocks",), ()),
    ("Stable Diffusion XL", ("down_blocks", "up_blocks", "conv_in", "add_embedding"), ()),
    ("Stable Diffusion", ("down_blocks", "up_blocks", "conv_in", "time_embedding"), ()),
    ("Stable Diffusion 3", ("joint_blocks",), ()),
    (
        "Stable Diffusion 3",
        ("transformer_blocks", "pos_embed", "context_embedder", "time_text_embed"),
        ("pos_embed.pos_embed",),
    ),
    ("Stable Cascade", ("down_blocks", "clip_mapper"), ()),
    ("Stable Cascade", ("clip_txt_mapper",), ()),
    # video
    ("Hunyuan", ("txt_in", "double_blocks"), ("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias",)),
    (
        "Hunyuan",
        ("x_embedder", "context_embedder"),
        ("context_embedder.token_refiner.refiner_blocks.0.norm1.weight", "context_embedder.proj_in.weight"),
    ),
    ("LTX", ("patchify_proj", "transformer_blocks"), ()),
    ("LTX", ("proj_in", "proj_out", "transformer_blocks", "caption_projection"), ()),
    ("CogVideoX", ("patch_embed", "transformer_blocks"), ("patch_embed.text_proj.weight",)),
    ("CogVideoX", ("mixins",), ()),
    ("Mochi", ("blocks",), ("blocks.0.attn.qkv_x.weight",)),
    ("Mochi", ("pos_frequencies", "transformer_blocks"), ()),
    (
        "Cosmos",
        ("x_embedder", "blocks"),
        (
            "x_embedder.proj.1.weight",
            "blocks.0.self_attn.q_proj.weight",
            "blocks.block0.blocks.0.block.attn.to_q.0.weight",
        ),
    ),
    ("Cosmos", ("patch_embed", "transformer_blocks"), ("time_embed.t_embedder.linear_1.weight",)),
    ("Cosmos", ("layers", "embed_tokens"), ("layers.0.self_attn.to_add_out.weight",)),
    ("SANA-Video", ("patch_embedding", "caption_norm", "transformer_blocks"), ()),
    ("Sana", ("patch_embed", "caption_norm", "transformer_blocks"), ()),
    ("LongCat", ("blocks",), ("blocks.0.ffn.w1.weight",)),
    ("Sana", ("blocks",), ("blocks.0.cross_attn.q_linear.weight",)),
    ("Kandinsky", ("visual_transformer_blocks", "text_transformer_blocks"), ()),
    ("JoyAI-Image", ("double_blocks", "condition_embedder"), ()),
    ("MiniMax", ("token_refiner",), ("token_refiner.blocks.0.attn.qkv_proj.weight",)),
    ("EasyAnimate", ("transformer_blocks", "text_proj", "proj_in"), ()),
    # images
    ("Qwen-Image", ("transformer_blocks", "txt_norm", "img_in", "txt_in"), ()),
    ("Chroma", ("distilled_guidance_layer",), ()),
    ("Flux", ("double_blocks", "single_blocks"), ()),
    ("Flux", ("transformer_blocks", "single_transformer_blocks"), ()),
    ("AuraFlow", ("double_layers",), ()),
    ("AuraFlow", ("joint_transformer_blocks",), ()),
    ("HiDream", ("double_stream_blocks",), ()),
    ("Lumina", ("noise_refiner", "context_refiner", "layers"), ()),
    ("OmniGen", ("input_x_embedder", "llm"), ()),
    ("PixArt", ("adaln_single", "pos_embed", "transformer_blocks"), ()),
    ("PixArt", ("x_embedder", "y_embedder", "t_embedder", "blocks"), ()),
    ("Krea 2", ("txtfusion",), ()),
    ("Qwen-Image", ("transformer_blocks", "txt_in", "img_in"), ()),
    (GENERIC, ("transformer_blocks",), ()),
)

# `general.architecture` of GGUF files of image and video models (city96/ComfyUI-GGUF, tools/convert.py).
_GGUF_ARCHITECTURES: Mapping[str, str] = {
    "flux": "Flux",
    "sd1": "Stable Diffusion",
    "sdxl": "Stable Diffusion XL",
    "sd3": "Stable Diffusion 3",
    "aura": "AuraFlow",
    "ltxv": "LTX",
    "hyvid": "Hunyuan",
    "cosmos": "Cosmos",
    "hidream": "HiDream",
    "lumina2": "Lumina",
    "qwen_image": "Qwen-Image",
}


def foreign_family(part: Survey, metadata: Mapping[str, object]) -> str | None:
    """Return the name of the other family that these tensors belong to, None where none is recognised."""
    for family, roots, names in _ROWS:
        if part.roots.issuperset(roots) and (not names or any(name in part.tensors for name in names)):
            return family
    named = metadata.get("general.architecture")
    return _GGUF_ARCHITECTURES.get(named) if isinstance(named, str) else None
