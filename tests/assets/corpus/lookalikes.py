"""What is not Wan: models that share its VAE, its text encoder, its class names or its folder names, and plain others.

The classes, configurations and tensors are diffusers' own (`tables.json`); which components a pipeline has is read off
its constructor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.assets.corpus import configs
from tests.assets.corpus.files import typed, write_hole, write_json, write_safetensors, write_weights
from tests.assets.corpus.layouts import (
    CLIP,
    IMAGE_PROCESSOR,
    TOKENIZER,
    UMT5,
    VAE21,
    VAE22,
    Builder,
    Part,
    diffusers_repository,
    single_file,
    unipc,
    wan,
)
from tests.assets.corpus.tables import Tensors, recorded_config, recorded_tensors
from tests.assets.corpus.tensors import prefixed

FLOW = Part("diffusers", "FlowMatchEulerDiscreteScheduler")
T5 = Part("transformers", "T5EncoderModel", "t5-xxl", shards=2)
CLIP_TEXT = Part("transformers", "CLIPTextModel", "clip-text", dtype="F16")
CLIP_TOKENIZER = Part("transformers", "CLIPTokenizer")
GEMMA = Part("transformers", "Gemma2Model", "gemma2")


def _part(table: str, dtype: str = "BF16", shards: int = 1) -> Part:
    return Part("diffusers", recorded_config(table)["_class_name"], table, dtype, shards)


def _vae(table: str) -> Part:
    return _part(table, "F32")


def _pipeline(index_class: str, denoiser: str, vae: Part, *, version: str = "0.32.0", **more: Part) -> Builder:
    name = "unet" if denoiser.startswith("unet") else "transformer"
    parts = {name: _part(denoiser), "vae": vae, "scheduler": FLOW, "tokenizer": TOKENIZER} | more
    return diffusers_repository(index_class, parts, version=version)


def _stable_diffusion(index_class: str, unet: str, **more: Part) -> Builder:
    parts = {
        "unet": _part(unet, "F16"), "vae": _vae("vae-sd"), "text_encoder": CLIP_TEXT, "tokenizer": CLIP_TOKENIZER,
        "scheduler": Part("diffusers", "PNDMScheduler"),
    }  # fmt: skip
    return diffusers_repository(index_class, parts | more, version="0.19.0")


def _named_only(library: str, class_name: str) -> Part:
    """A component whose class no library here has; its folder holds weights without a configuration."""
    return Part(library, class_name)


def _longcat(folder: Path) -> Path:
    parts = {
        "dit": _named_only("longcat_video.modules.longcat_video_dit", "LongCatVideoTransformer3DModel"),
        "vae": Part("longcat_video.modules.autoencoder_kl_wan", "AutoencoderKLWan", "vae-wan2.1", "F32"),
        "text_encoder": Part("longcat_video.modules.text_encoder", "UMT5EncoderModel", "umt5-xxl", shards=5),
        "tokenizer": TOKENIZER,
    }
    diffusers_repository("LongCatVideoPipeline", parts, version="0.35.1")(folder)
    config = {
        "_class_name": "LongCatVideoTransformer3DModel", "_diffusers_version": "0.35.1", "hidden_size": 4096,
        "depth": 48, "num_heads": 32, "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
        "caption_channels": 4096, "adaln_tembed_dim": 512, "frequency_embedding_size": 256,
    }  # fmt: skip
    write_json(folder / "dit" / "config.json", config)
    tensors: Tensors = {"x_embedder.proj.weight": (4096, 16, 1, 2, 2), "x_embedder.proj.bias": (4096,)}
    for index in range(48):
        tensors |= {
            f"blocks.{index}.attn.qkv.weight": (12288, 4096), f"blocks.{index}.attn.qkv.bias": (12288,),
            f"blocks.{index}.attn.proj.weight": (4096, 4096), f"blocks.{index}.attn.proj.bias": (4096,),
            f"blocks.{index}.cross_attn.q_linear.weight": (4096, 4096),
            f"blocks.{index}.cross_attn.kv_linear.weight": (8192, 4096),
        }  # fmt: skip
    write_weights(folder / "dit", tensors, "BF16", shards=6)
    return folder


def _gen3r(folder: Path) -> Path:
    package = "gen3r.models.videoxfun_wan"
    parts = {
        "transformer": Part(f"{package}.wan_transformer3d", "WanTransformer3DModel", "wan-fun-1.3b-control"),
        "wan_vae": Part(f"{package}.wan_vae", "AutoencoderKLWan", "vae-wan2.1", "F32"),
        "text_encoder": UMT5,
        "tokenizer": TOKENIZER,
        "scheduler": unipc(3.0),
    }
    return diffusers_repository("Gen3RPipeline", parts, version="0.34.0")(folder)


def _kiwi(folder: Path) -> Path:
    parts = {
        "transformer": wan("wan-ti2v-5b", shards=2, dtype="BF16"),
        "vae": Part("wan_video_vae", "VAE", "vae-wan2.2", "BF16"),
        "scheduler": FLOW,
        "mllm_encoder": _named_only("mllm_encoder", "MLLMEncoder"),
    }
    diffusers_repository(["pipeline_kiwi_edit", "KiwiEditPipeline"], parts, version="0.36.0")(folder)
    for name in ("pipeline_kiwi_edit", "wan_video_vae", "mllm_encoder"):
        (folder / f"{name}.py").write_text("class KiwiEditPipeline:\n    pass\n")
    return folder


def _cosmos3(folder: Path) -> Path:
    vae = Part(
        "diffusers",
        "AutoencoderKLWan",
        "vae-wan2.2",
        "F32",
        config={"_name_or_path": "Wan-AI/Wan2.2-TI2V-5B-Diffusers"},
    )
    parts = {"transformer": _part("transformer-cosmos3", shards=4), "vae": vae, "scheduler": unipc(5.0)}
    return diffusers_repository("Cosmos3OmniPipeline", parts, version="0.40.0")(folder)


def _flat(table: str, stem: str = "model") -> Builder:
    """A folder of one transformers model, as an LLM is published."""

    def build(folder: Path) -> Path:
        document = recorded_config(table)
        write_json(folder / "config.json", document)
        write_weights(folder, recorded_tensors(table), "BF16", stem=stem, shards=4 if table == "llama" else 1)
        configs.write_tokenizer(folder)
        return folder

    return build


def _motion_adapter(folder: Path) -> Path:
    write_json(folder / "config.json", recorded_config("motion-adapter"))
    write_weights(folder, recorded_tensors("motion-adapter"), "F16")
    return folder


def _empty(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _images(folder: Path) -> Path:
    for index in range(5):
        write_hole(folder / f"wan_i2v_input_{index}.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", 300_000)
    write_hole(folder / "wan2.2_t2v.mp4", b"\x00\x00\x00\x20ftypisom", 4_000_000)
    return folder


def _double_stream(prefix: str, blocks: int, single: int, names: Mapping[str, str]) -> Tensors:
    """The original names of Flux and HunyuanVideo: double blocks with fused qkv, then single blocks."""
    tensors: Tensors = {}
    for index in range(blocks):
        for stream in ("img", "txt"):
            block = f"double_blocks.{index}.{stream}_"
            tensors |= {
                f"{block}{names['qkv']}.weight": (9216, 3072), f"{block}{names['proj']}.weight": (3072, 3072),
                f"{block}{names['mod']}.weight": (18432, 3072), f"{block}{names['mlp']}.weight": (12288, 3072),
            }  # fmt: skip
    for index in range(single):
        tensors |= {
            f"single_blocks.{index}.linear1.weight": (21504, 3072),
            f"single_blocks.{index}.linear2.weight": (3072, 15360),
        }
    return prefixed(tensors, prefix)


_FLUX_FILE = _double_stream("", 19, 38, {"qkv": "attn.qkv", "proj": "attn.proj", "mod": "mod.lin", "mlp": "mlp.0"}) | {
    "img_in.weight": (3072, 64), "img_in.bias": (3072,), "txt_in.weight": (3072, 4096),
    "guidance_in.in_layer.weight": (3072, 256), "time_in.in_layer.weight": (3072, 256),
    "vector_in.in_layer.weight": (3072, 768), "final_layer.linear.weight": (64, 3072),
    "final_layer.adaLN_modulation.1.weight": (6144, 3072),
}  # fmt: skip
_HUNYUAN_FILE = _double_stream(
    "", 20, 40, {"qkv": "attn_qkv", "proj": "attn_proj", "mod": "mod.linear", "mlp": "mlp.fc1"}
) | {
    "img_in.proj.weight": (3072, 16, 1, 2, 2), "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias": (6144,),
    "txt_in.input_embedder.weight": (3072, 4096), "guidance_in.mlp.0.weight": (3072, 256),
    "final_layer.linear.weight": (64, 3072),
}  # fmt: skip


def _sd15_file() -> Tensors:
    """Stable Diffusion 1.5's original names: those of its first blocks, its VAE and its text encoder."""
    unet: Tensors = {
        "time_embed.0.weight": (1280, 320), "time_embed.2.weight": (1280, 1280),
        "input_blocks.0.0.weight": (320, 4, 3, 3), "input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (320, 320),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768), "out.2.weight": (4, 320, 3, 3),
    }  # fmt: skip
    rest: Tensors = {
        "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
        "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    }
    return prefixed(unet, "model.diffusion_model.") | rest


def _cosmos_file() -> Tensors:
    """Cosmos-Predict2's original names, close to Wan's: `blocks.N.self_attn.q_proj`."""
    tensors: Tensors = {
        "x_embedder.proj.1.weight": (2048, 72), "t_embedder.1.linear_1.weight": (2048, 2048),
        "t_embedding_norm.weight": (2048,), "final_layer.linear.weight": (64, 2048),
    }  # fmt: skip
    for index in range(28):
        for attention, width in (("self_attn", 2048), ("cross_attn", 1024)):
            block = f"blocks.{index}.{attention}."
            tensors |= {
                block + "q_proj.weight": (2048, 2048), block + "k_proj.weight": (2048, width),
                block + "v_proj.weight": (2048, width), block + "output_proj.weight": (2048, 2048),
                block + "q_norm.weight": (128,), block + "k_norm.weight": (128,),
            }  # fmt: skip
        tensors |= {
            f"blocks.{index}.mlp.layer1.weight": (8192, 2048), f"blocks.{index}.mlp.layer2.weight": (2048, 8192),
        }  # fmt: skip
    return prefixed(tensors, "net.")


def _mochi_file() -> Tensors:
    tensors: Tensors = {"t5_y_embedder.to_q.weight": (4096, 4096), "x_embedder.proj.weight": (3072, 12, 2, 2)}
    for index in range(48):
        block = f"blocks.{index}."
        tensors |= {
            block + "attn.qkv_x.weight": (9216, 3072), block + "attn.qkv_y.weight": (4608, 1536),
            block + "mod_x.weight": (12288, 3072), block + "mlp_x.w1.weight": (16384, 3072),
        }  # fmt: skip
    return tensors


def _sd_lora(folder: Path) -> Path:
    tensors: Tensors = {}
    for name, shape in recorded_tensors("unet-sd1.5").items():
        if name.endswith("attn1.to_q.weight") or name.endswith("attn2.to_k.weight"):
            stem = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            tensors |= {
                f"{stem}.lora_down.weight": (16, shape[1]),
                f"{stem}.lora_up.weight": (shape[0], 16),
                f"{stem}.alpha": (),
            }
    write_safetensors(folder / "style.safetensors", typed(tensors, "F16"), {"ss_base_model_version": "sd_v1"})
    return folder / "style.safetensors"


def _flux_lora(folder: Path) -> Path:
    tensors: Tensors = {}
    for name, shape in recorded_tensors("transformer-flux").items():
        if ".attn.to_" in name and name.endswith(".weight"):
            stem = "transformer." + name.removesuffix(".weight")
            tensors |= {f"{stem}.lora_A.weight": (16, shape[1]), f"{stem}.lora_B.weight": (shape[0], 16)}
    write_safetensors(folder / "pytorch_lora_weights.safetensors", typed(tensors, "BF16"))
    return folder / "pytorch_lora_weights.safetensors"


_QWEN_VL = _named_only("transformers", "Qwen2_5_VLForConditionalGeneration")
_UNIPC = unipc(3.0)

# The ids of the first eleven are those of the data in tests/assets/variants.json.
LOOKALIKES: dict[str, Builder] = {
    "Cosmos-Predict2 (Cosmos2VideoToWorldPipeline, Cosmos2TextToImagePipeline)": _pipeline("Cosmos2VideoToWorldPipeline", "transformer-cosmos", VAE21, text_encoder=T5, version="0.34.0"),
    "Cosmos-Predict2.5 / Transfer2.5": _pipeline("Cosmos2_5_PredictBasePipeline", "transformer-cosmos", VAE21, text_encoder=_QWEN_VL, scheduler=_UNIPC, version="0.37.0"),
    "nvidia/Cosmos3-Edge": _cosmos3,
    "Efficient-Large-Model/SANA-Video_2B_480p_diffusers": _pipeline("SanaVideoPipeline", "transformer-sana-video", VAE21, text_encoder=Part("transformers", "Gemma2PreTrainedModel", "gemma2"), scheduler=_UNIPC, version="0.36.0"),
    "meituan-longcat/LongCat-Video": _longcat,
    "Bria FIBO": _pipeline("BriaFiboPipeline", "transformer-bria-fibo", VAE22, version="0.36.0"),
    "MotifVideo": _pipeline("MotifVideoPipeline", "transformer-motif-video", VAE21, version="0.39.0"),
    "jdopensource/JoyAI-Image-Edit-Diffusers": _pipeline("JoyImageEditPipeline", "transformer-joyimage", VAE21, version="0.39.0"),
    "Qwen/Qwen-Image": _pipeline("QwenImagePipeline", "transformer-qwen-image", _vae("vae-qwen-image"), text_encoder=_QWEN_VL, version="0.35.0"),
    "JaceyH919/Gen3R": _gen3r,
    "linyq/kiwi-edit-5b-reference-only-diffusers": _kiwi,
    "lookalike: Stable Diffusion 1.5": _stable_diffusion("StableDiffusionPipeline", "unet-sd1.5"),
    "lookalike: Stable Diffusion 2": _stable_diffusion("StableDiffusionPipeline", "unet-sd2"),
    "lookalike: Stable Diffusion XL": _stable_diffusion("StableDiffusionXLPipeline", "unet-sdxl", text_encoder_2=CLIP_TEXT, tokenizer_2=CLIP_TOKENIZER),
    "lookalike: Stable Diffusion 3": _pipeline("StableDiffusion3Pipeline", "transformer-sd3", _vae("vae-16"), text_encoder=CLIP_TEXT, text_encoder_3=T5),
    "lookalike: Stable Diffusion 1.5 single file": single_file("v1-5-pruned-emaonly.safetensors", _sd15_file()),
    "lookalike: Stable Diffusion 1.5 LoRA": _sd_lora,
    "lookalike: Flux": _pipeline("FluxPipeline", "transformer-flux", _vae("vae-16"), text_encoder=CLIP_TEXT, text_encoder_2=T5),
    "lookalike: Flux single file": single_file("flux1-dev.safetensors", _FLUX_FILE, "BF16"),
    "lookalike: Flux LoRA": _flux_lora,
    "lookalike: LTX-Video": _pipeline("LTXPipeline", "transformer-ltx", _vae("vae-ltx"), text_encoder=T5),
    "lookalike: LTX-Video single file": single_file("ltx-video-2b-v0.9.safetensors", recorded_tensors("transformer-ltx"), "BF16", prefix="model.diffusion_model."),
    "lookalike: HunyuanVideo": _pipeline("HunyuanVideoPipeline", "transformer-hunyuan-video", _vae("vae-hunyuan-video"), text_encoder_2=CLIP_TEXT),
    "lookalike: HunyuanVideo single file": single_file("hunyuan_video_720_fp8_e4m3fn.safetensors", _HUNYUAN_FILE, "F8_E4M3"),
    "lookalike: CogVideoX": _pipeline("CogVideoXPipeline", "transformer-cogvideox", _vae("vae-cogvideox"), text_encoder=T5),
    "lookalike: Mochi": _pipeline("MochiPipeline", "transformer-mochi", _vae("vae-mochi"), text_encoder=T5),
    "lookalike: Mochi single file": single_file("mochi_preview_dit_bf16.safetensors", _mochi_file(), "BF16"),
    "lookalike: Allegro": _pipeline("AllegroPipeline", "transformer-allegro", _vae("vae-allegro"), text_encoder=T5),
    "lookalike: Kandinsky 5": _pipeline("Kandinsky5T2VPipeline", "transformer-kandinsky5", _vae("vae-hunyuan-video"), text_encoder_2=CLIP_TEXT, version="0.36.0"),
    "lookalike: PixArt-alpha": _pipeline("PixArtAlphaPipeline", "transformer-pixart", _vae("vae-sd"), text_encoder=T5),
    "lookalike: Sana": _pipeline("SanaPipeline", "transformer-sana", _vae("vae-dc"), text_encoder=GEMMA),
    "lookalike: Lumina 2": _pipeline("Lumina2Pipeline", "transformer-lumina2", _vae("vae-16"), text_encoder=GEMMA, version="0.33.0"),
    "lookalike: HiDream": _pipeline("HiDreamImagePipeline", "transformer-hidream", _vae("vae-16"), text_encoder_3=T5, version="0.33.0"),
    "lookalike: Chroma": _pipeline("ChromaPipeline", "transformer-chroma", _vae("vae-16"), text_encoder=T5, version="0.34.0"),
    "lookalike: Cosmos-Predict2 single file": single_file("cosmos_predict2_2B_video2world_480p_16fps.safetensors", _cosmos_file(), "BF16"),
    "lookalike: Stable Video Diffusion": diffusers_repository("StableVideoDiffusionPipeline", {"unet": _part("unet-svd", "F16"), "vae": _vae("vae-svd"), "image_encoder": CLIP, "feature_extractor": IMAGE_PROCESSOR, "scheduler": Part("diffusers", "EulerDiscreteScheduler")}, version="0.24.0"),
    "lookalike: AnimateDiff motion adapter": _motion_adapter,
    "lookalike: Llama": _flat("llama"),
    "lookalike: CLIP": _flat("clip"),
    "lookalike: empty folder": _empty,
    "lookalike: folder of images": _images,
}  # fmt: skip
