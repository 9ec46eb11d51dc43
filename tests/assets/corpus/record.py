"""Record `tables.json` from the installed diffusers and transformers: `python -m tests.assets.corpus.record`.

`--originals FOLDER` records the parts of the original layout too, from a checkout of github.com/Wan-Video/Wan2.2;
without it they are kept as they are.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

from tests.assets.corpus.tables import PATH, compress

_VAE22 = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2, "in_channels": 12,
    "out_channels": 12, "scale_factor_spatial": 16,
}  # fmt: skip
_SD_BLOCKS = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
}  # fmt: skip
_SDXL = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True,
}  # fmt: skip
_SVD = {"num_attention_heads": [5, 10, 20, 20]}
_UMT5 = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 64,
    "vocab_size": 256384, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
_CLIP_VISION = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu",
}  # fmt: skip
_T5 = _UMT5 | {"vocab_size": 32128}
_CLIP_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}

_1B = {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960}
_5B = {"num_layers": 30, "num_attention_heads": 24, "ffn_dim": 14336}
_14B = {"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824}
_IMAGE = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
_VACE = {"in_channels": 16, "vace_in_channels": 96}

# Table name: class and the arguments that differ from its defaults. The defaults are those of the published models.
DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "wan-t2v-1.3b": ("WanTransformer3DModel", _1B),
    "wan-t2v-14b": ("WanTransformer3DModel", _14B),
    "wan-i2v-14b": ("WanTransformer3DModel", _14B | _IMAGE),
    "wan-flf2v-14b": ("WanTransformer3DModel", _14B | _IMAGE | {"pos_embed_seq_len": 514}),
    "wan-i2v-a14b": ("WanTransformer3DModel", _14B | {"in_channels": 36}),
    "wan-ti2v-5b": ("WanTransformer3DModel", _5B | {"in_channels": 48, "out_channels": 48}),
    "wan-lucy-edit": ("WanTransformer3DModel", _5B | {"in_channels": 96, "out_channels": 48}),
    # Not published in diffusers' names: what the class would be, from which the original names are derived.
    "wan-fun-1.3b-inp": ("WanTransformer3DModel", _1B | _IMAGE | {"added_kv_proj_dim": 1536}),
    "wan-fun-1.3b-control": ("WanTransformer3DModel", _1B | _IMAGE | {"added_kv_proj_dim": 1536, "in_channels": 48}),
    "wan-fun-14b-control": ("WanTransformer3DModel", _14B | _IMAGE | {"in_channels": 48}),
    "wan-fun-14b-camera": ("WanTransformer3DModel", _14B | _IMAGE | {"in_channels": 32}),
    "wan-fun-a14b-control": ("WanTransformer3DModel", _14B | {"in_channels": 52}),
    "wan-fun-5b-inp": ("WanTransformer3DModel", _5B | {"in_channels": 100, "out_channels": 48}),
    "wan-fun-5b-control": ("WanTransformer3DModel", _5B | {"in_channels": 148, "out_channels": 48}),
    "wan-vace-1.3b": ("WanVACETransformer3DModel", _1B | _VACE | {"vace_layers": list(range(0, 30, 2))}),
    "wan-vace-14b": ("WanVACETransformer3DModel", _14B | _VACE | {"vace_layers": list(range(0, 40, 5))}),
    "wan-animate-14b": ("WanAnimateTransformer3DModel", _14B | {"added_kv_proj_dim": 5120}),
    "wan-animate-2-14b": ("WanAnimate2Transformer3DModel", {}),
    "skyreels-df-1.3b": ("SkyReelsV2Transformer3DModel", _1B | {"inject_sample_info": True}),
    "skyreels-14b": ("SkyReelsV2Transformer3DModel", _14B),
    "skyreels-i2v-14b": ("SkyReelsV2Transformer3DModel", _14B | _IMAGE),
    "skyreels-i2v-1.3b": ("SkyReelsV2Transformer3DModel", _1B | _IMAGE | {"added_kv_proj_dim": 1536}),
    "chronoedit-14b": ("ChronoEditTransformer3DModel", _14B | _IMAGE),
    "anyflow-1.3b": ("AnyFlowTransformer3DModel", _1B),
    "anyflow-14b": ("AnyFlowTransformer3DModel", _14B),
    "anyflow-far-1.3b": ("AnyFlowFARTransformer3DModel", _1B),
    "anyflow-far-14b": ("AnyFlowFARTransformer3DModel", _14B),
    "helios-14b": ("HeliosTransformer3DModel", _14B),
    "vae-wan2.1": ("AutoencoderKLWan", {}),
    "vae-wan2.2": ("AutoencoderKLWan", _VAE22),
    "vae-sd": ("AutoencoderKL", _SD_BLOCKS | {"latent_channels": 4, "sample_size": 512}),
    "vae-16": ("AutoencoderKL", _SD_BLOCKS | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}),
    "vae-svd": ("AutoencoderKLTemporalDecoder", {"block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "layers_per_block": 2}),
    "vae-ltx": ("AutoencoderKLLTXVideo", {}),
    "vae-hunyuan-video": ("AutoencoderKLHunyuanVideo", {}),
    "vae-cogvideox": ("AutoencoderKLCogVideoX", {"block_out_channels": [128, 256, 256, 512], "latent_channels": 16}),
    "vae-mochi": ("AutoencoderKLMochi", {}),
    "vae-allegro": ("AutoencoderKLAllegro", {}),
    "vae-qwen-image": ("AutoencoderKLQwenImage", {}),
    "vae-dc": ("AutoencoderDC", {}),
    "unet-sd1.5": ("UNet2DConditionModel", {"cross_attention_dim": 768, "sample_size": 64}),
    "unet-sd2": ("UNet2DConditionModel", {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True, "sample_size": 96}),
    "unet-sdxl": ("UNet2DConditionModel", _SDXL),
    "unet-svd": ("UNetSpatioTemporalConditionModel", _SVD),
    "motion-adapter": ("MotionAdapter", {}),
    "transformer-sd3": ("SD3Transformer2DModel", {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}),
    "transformer-flux": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "transformer-ltx": ("LTXVideoTransformer3DModel", {}),
    "transformer-hunyuan-video": ("HunyuanVideoTransformer3DModel", {}),
    "transformer-cogvideox": ("CogVideoXTransformer3DModel", {}),
    "transformer-mochi": ("MochiTransformer3DModel", {}),
    "transformer-allegro": ("AllegroTransformer3DModel", {}),
    "transformer-kandinsky5": ("Kandinsky5Transformer3DModel", {}),
    "transformer-pixart": ("PixArtTransformer2DModel", {"sample_size": 128, "caption_channels": 4096}),
    "transformer-sana": ("SanaTransformer2DModel", {}),
    "transformer-lumina2": ("Lumina2Transformer2DModel", {}),
    "transformer-hidream": ("HiDreamImageTransformer2DModel", {"patch_size": 2, "num_layers": 16, "num_single_layers": 32, "num_attention_heads": 20, "attention_head_dim": 128, "caption_channels": [4096, 4096], "text_emb_dim": 2048, "num_routed_experts": 4, "llama_layers": list(range(32)), "max_resolution": [128, 128], "axes_dims_rope": [64, 32, 32]}),
    "transformer-chroma": ("ChromaTransformer2DModel", {}),
    "transformer-cosmos": ("CosmosTransformer3DModel", {}),
    "transformer-cosmos3": ("Cosmos3OmniTransformer", {}),
    "transformer-sana-video": ("SanaVideoTransformer3DModel", {}),
    "transformer-bria-fibo": ("BriaFiboTransformer2DModel", {}),
    "transformer-motif-video": ("MotifVideoTransformer3DModel", {}),
    "transformer-joyimage": ("JoyImageEditTransformer3DModel", {}),
    "transformer-qwen-image": ("QwenImageTransformer2DModel", {}),
}  # fmt: skip
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "umt5-xxl": ("UMT5Config", "UMT5EncoderModel", _UMT5),
    "t5-xxl": ("T5Config", "T5EncoderModel", _T5),
    "clip-text": ("CLIPTextConfig", "CLIPTextModel", _CLIP_TEXT),
    "clip": ("CLIPConfig", "CLIPModel", {}),
    "clip-vision": ("CLIPVisionConfig", "CLIPVisionModel", _CLIP_VISION),
    "clip-vision-projection": ("CLIPVisionConfig", "CLIPVisionModelWithProjection", _CLIP_VISION),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "gemma2": ("Gemma2Config", "Gemma2Model", {}),
}
# Of the original layout: module of Wan2.2, class, arguments.
_S2V = {
    "cond_dim": 16, "audio_dim": 1024, "num_audio_token": 4, "enable_adain": True, "adain_mode": "attn_norm",
    "audio_inject_layers": [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39], "zero_init": True, "zero_timestep": True,
    "enable_motioner": False, "enable_framepack": True, "dim": 5120, "ffn_dim": 13824, "num_heads": 40,
    "num_layers": 40,
}  # fmt: skip
ORIGINALS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "original-vae-wan2.1": ("vae2_1", "WanVAE_", {"dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}),
    "original-vae-wan2.2": ("vae2_2", "WanVAE_", {"dim": 160, "dec_dim": 256, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}),
    "original-umt5": ("t5", "T5Encoder", {"vocab": 256384, "dim": 4096, "dim_attn": 4096, "dim_ffn": 10240, "num_heads": 64, "num_layers": 24, "num_buckets": 32, "shared_pos": False}),
    "original-s2v": ("s2v.model_s2v", "WanModel_S2V", _S2V),
    "original-animate": ("animate.model_animate", "WanAnimateModel", {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40, "in_dim": 36, "motion_encoder_dim": 512, "use_img_emb": True}),
    "original-wan": ("model", "WanModel", {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}),
}  # fmt: skip


def record_diffusers(name: str) -> dict[str, Any]:
    import diffusers
    import torch

    class_name, arguments = DIFFUSERS[name]
    with torch.device("meta"):
        model = getattr(diffusers, class_name)(**arguments)
    config = json.loads(model.to_json_string())
    return _entry(config, model)


def record_transformers(name: str) -> dict[str, Any]:
    import torch
    import transformers

    config_name, class_name, arguments = TRANSFORMERS[name]
    config = getattr(transformers, config_name)(**arguments)
    with torch.device("meta"):
        model = getattr(transformers, class_name)(config)
    document = {"architectures": [class_name]} | json.loads(config.to_json_string())
    entry = _entry(document, model)
    if class_name in ("UMT5EncoderModel", "T5EncoderModel"):
        # Stored once: `encoder.embed_tokens.weight` is tied to it.
        entry["tensors"].pop("encoder.embed_tokens.weight", None)
    return entry


def record_original(name: str, root: Path) -> dict[str, Any]:
    import torch

    module_name, class_name, arguments = ORIGINALS[name]
    # Its packages without their __init__, which import far more than the classes need.
    for package in ("", ".modules", ".modules.s2v", ".modules.animate", ".distributed"):
        module = types.ModuleType(f"wan_original{package}")
        module.__path__ = [str(root / "wan" / package.strip(".").replace(".", "/"))]
        sys.modules[module.__name__] = module
    model_class = getattr(importlib.import_module(f"wan_original.modules.{module_name}"), class_name)
    with torch.device("meta"):
        model = model_class(**arguments)
    return _entry({}, model)


def _entry(config: dict[str, Any], model: Any) -> dict[str, Any]:
    return {
        "config": config,
        "tensors": compress({key: list(value.shape) for key, value in model.state_dict().items()}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--originals", type=Path)
    arguments = parser.parse_args()
    tables = json.loads(PATH.read_text()) if PATH.exists() else {}
    for name in DIFFUSERS:
        tables[name] = record_diffusers(name)
        print(name, len(tables[name]["tensors"]), flush=True)
    for name in TRANSFORMERS:
        tables[name] = record_transformers(name)
        print(name, len(tables[name]["tensors"]), flush=True)
    if arguments.originals:
        for name in ORIGINALS:
            tables[name] = record_original(name, arguments.originals)
            print(name, len(tables[name]["tensors"]), flush=True)
    tables = {name: tables[name] for name in sorted(tables)}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in tables.items())
    PATH.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
