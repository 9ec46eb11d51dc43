"""Repositories of the Wan family: one builder per entry of `tests/assets/variants.json`.

Where an entry's files were not seen when the data was collected, the builder says "assumed"; nothing is measured on such
a file but what the entry proves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.assets.corpus import configs
from tests.assets.corpus.files import (
    typed,
    write_gguf,
    write_hole,
    write_json,
    write_pickle,
    write_safetensors,
    write_weights,
)
from tests.assets.corpus.layouts import (
    CLIP_PLAIN,
    NONE,
    TOKENIZER,
    UMT5,
    VAE21,
    VAE22,
    Builder,
    Part,
    diffusers_repository,
    image_to_video,
    modular_reference,
    original_repository,
    single_file,
    text_to_video,
    unipc,
    wan,
    wan_model,
)
from tests.assets.corpus.tables import Tensors, recorded_tensors
from tests.assets.corpus.tensors import (
    animate_2_original,
    fp8_scaled,
    lora,
    original_names,
    with_control_adapter,
    with_ref_conv,
)


def _krea(folder: Path) -> Path:
    tensors = original_names("wan-t2v-14b")
    (folder / "transformer").mkdir(parents=True)
    for name in ("modular_blocks", "before_denoise", "denoise", "decoders", "encoders"):
        (folder / f"{name}.py").write_text("import torch\n\n\nclass WanRTStreamingBlocks:\n    pass\n")
    for name in ("causal_model", "model", "attention"):
        (folder / "transformer" / f"{name}.py").write_text(
            "import torch\n\n\nclass CausalWanModel(torch.nn.Module):\n    pass\n"
        )
    config = configs.original_config(wan_model("wan-t2v-14b", "t2v"))
    config |= {"_class_name": "CausalWanModel", "auto_map": {"AutoModel": "causal_model.CausalWanModel"}}
    write_json(folder / "transformer" / "config.json", config)
    write_weights(folder / "transformer", tensors, "BF16", shards=3)
    reference = {"repo": "krea/krea-realtime-video", "revision": None, "subfolder": "transformer", "type_hint": None}
    index = {
        "_blocks_class_name": "WanRTStreamingBlocks", "_class_name": "WanModularPipeline",
        "_diffusers_version": "0.36.0.dev0", "transformer": [None, None, reference],
    }  # fmt: skip
    write_json(folder / "modular_model_index.json", index)
    auto_map = {"ModularPipelineBlocks": "modular_blocks.WanRTStreamingBlocks"}
    write_json(folder / "modular_config.json", {"_class_name": "WanRTStreamingBlocks", "auto_map": auto_map})
    write_safetensors(folder / "krea-realtime-video-14b.safetensors", typed(tensors, "BF16"))
    return folder


def _chronoedit_modular(folder: Path) -> Path:
    parts = image_to_video(wan("chronoedit-14b"))
    modular_reference("WanModularPipeline", "nvidia/ChronoEdit-14B-Diffusers", parts, absent=True)(folder)
    write_json(
        folder / "modular_config.json", {"auto_map": {"ModularPipelineBlocks": "modular_blocks.ChronoEditBlocks"}}
    )
    (folder / "modular_blocks.py").write_text("class ChronoEditBlocks:\n    pass\n")
    return folder


def _flashpack(folder: Path) -> Path:
    parts = image_to_video(wan("chronoedit-14b", weights=False))
    diffusers_repository("ChronoEditPipeline", parts, version="0.36.0.dev0")(folder)
    write_hole(folder / "transformer" / "model.flashpack", b"\x00\x00\x00\x00", 32_790_000_000)
    return folder


def _rose(folder: Path) -> Path:
    fields = {
        "_class_name": "WanTransformer3DModel", "hidden_size": 1536, "in_channels": 36, "window_size": [-1, -1],
    }  # fmt: skip
    write_json(
        folder / "transformer" / "config.json", configs.original_config(wan_model("wan-fun-1.3b-inp", "i2v") | fields)
    )
    write_weights(folder / "transformer", original_names("wan-fun-1.3b-inp"), "BF16")
    return folder


def _skyreels_v3(folder: Path) -> Path:
    wan("wan-t2v-14b", shards=7).write(folder / "transformer", "0.34.0")
    write_pickle(folder / "Wan2.1_VAE.pth", configs.VAE_PTH_BYTES["Wan2.1_VAE.pth"])
    write_pickle(folder / "models_t5_umt5-xxl-enc-bf16.pth", configs.UMT5_BF16_PTH_BYTES)
    configs.write_tokenizer(folder / "google" / "umt5-xxl")
    return folder


def _wan_va(folder: Path) -> Path:
    document = configs.class_config("wan-ti2v-5b", "0.35.0") | {"action_dim": 30}
    write_json(folder / "config.json", document)
    write_weights(folder, recorded_tensors("wan-ti2v-5b"), "BF16", shards=2)
    return folder


def _loras(names: Mapping[str, str], style: str, prefix: str, rank: int) -> Builder:
    def build(folder: Path) -> Path:
        for name, table in names.items():
            tensors = lora(original_names(table), rank=rank, style=style, prefix=prefix)
            write_safetensors(folder / name, typed(tensors, "BF16"), {})
        return folder

    return build


def _any_lora(folder: Path) -> Path:
    tensors = lora(recorded_tensors("wan-t2v-1.3b"), rank=32, style="peft", prefix="transformer.")
    write_safetensors(folder / "pytorch_lora_weights.safetensors", typed(tensors, "F32"))
    return folder / "pytorch_lora_weights.safetensors"


def _umt5_file(folder: Path) -> Path:
    path = folder / "umt5_xxl_fp16.safetensors"
    tensors = recorded_tensors("umt5-xxl") | {"spiece_model": (4_548_313,)}
    types = {name: ("U8" if name == "spiece_model" else "F16", shape) for name, shape in tensors.items()}
    write_safetensors(path, types, {})
    return path


def _gguf(folder: Path) -> Path:
    for quantization in ("Q4_1", "Q8_0"):
        path = folder / f"wan2.1-i2v-14b-480p-{quantization}.gguf"
        scalars = {"general.quantization_version": 2, "general.file_type": 7 if quantization == "Q8_0" else 3}
        write_gguf(path, original_names("wan-i2v-14b"), quantization, "wan", scalars)
    return path


def _fp8_file(folder: Path) -> Path:
    path = folder / "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors"
    write_safetensors(path, fp8_scaled(original_names("wan-i2v-a14b")), {})
    return path


def _s2v_extras(build: Builder) -> Builder:
    def build_all(folder: Path) -> Path:
        build(folder)
        write_json(folder / "configuration.json", {"framework": "pytorch", "task": "speech-to-video"})
        audio = folder / "wav2vec2-large-xlsr-53-english"
        write_json(audio / "config.json", {"architectures": ["Wav2Vec2ForCTC"], "model_type": "wav2vec2"})
        write_pickle(audio / "pytorch_model.bin", 1_262_069_143)
        return folder

    return build_all


_TINY_VACE = {
    "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 3, "text_dim": 32,
    "rope_max_seq_len": 32, "vace_layers": [0, 2],
}  # fmt: skip


def _tiny_vace_tensors() -> Tensors:
    """The 14B's tensors with the tiny sizes: blocks 0 to 2, vace blocks 0 and 1."""
    sizes = {5120: 24, 13824: 32, 4096: 32, 30720: 144}
    found: Tensors = {}
    for name, shape in recorded_tensors("wan-vace-14b").items():
        words = name.split(".")
        limit = {"blocks": 3, "vace_blocks": 2}.get(words[0])
        if limit is None or int(words[1]) < limit:
            found[name] = tuple(sizes.get(side, side) for side in shape)
    return found


_S2V_CONFIG = {
    "_class_name": "WanModel_S2V", "model_type": "s2v", "dim": 5120, "in_dim": 16, "out_dim": 16, "num_layers": 40,
    "num_heads": 40, "ffn_dim": 13824, "cond_dim": 16, "audio_dim": 1024, "num_audio_token": 4,
    "audio_inject_layers": [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39], "enable_framepack": True,
    "enable_adain": True, "enable_motioner": False, "adain_mode": "attn_norm", "zero_timestep": True,
    "motion_frames": 73,
}  # fmt: skip
_EXPERTS_T2V = {"transformer": wan("wan-t2v-14b"), "transformer_2": wan("wan-t2v-14b")}
_EXPERTS_I2V = {"transformer": wan("wan-i2v-a14b"), "transformer_2": wan("wan-i2v-a14b")}
_NO_IMAGE = {"image_encoder": NONE, "image_processor": NONE}
_T2V_14B = wan("wan-t2v-14b")
_I2V_14B = wan("wan-i2v-14b", shards=14)
_SMALL = {"shards": 2}


def _two_experts(experts: Mapping[str, Part], **more: Part) -> dict[str, Part]:
    return text_to_video(experts["transformer"], transformer_2=experts["transformer_2"], **more)


def _fun(table: str, tensors: Tensors, model_type: str | None, **more: Any) -> Builder:
    fields = wan_model(table, model_type or "i2v", **{k: v for k, v in more.items() if k in _FUN_FIELDS})
    if model_type is None:
        del fields["model_type"]
    rest = {key: value for key, value in more.items() if key not in _FUN_FIELDS}
    return original_repository(fields, tensors, **({"dtype": "BF16", "shards": 1} | rest))


_FUN_FIELDS = {
    "add_ref_conv",
    "has_ref_conv",
    "add_control_adapter",
    "in_dim_control_adapter",
    "downscale_factor_control_adapter",
}
_CAMERA = {"add_control_adapter": True, "in_dim_control_adapter": 24}


def _skyreels(index_class: str, table: str, **more: Any) -> Builder:
    parts = (
        image_to_video(wan(table), scheduler=unipc(5.0))
        if "i2v" in table
        else text_to_video(wan(table), scheduler=unipc(8.0))
    )
    return diffusers_repository(index_class, parts | more, version="0.35.0.dev0")


def _anyflow(index_class: str, table: str) -> Builder:
    scheduler = Part("diffusers", "FlowMapEulerDiscreteScheduler")
    return diffusers_repository(index_class, text_to_video(wan(table), scheduler=scheduler), version="0.39.0")


def _helios(index_class: str, scheduler: str) -> Builder:
    parts = text_to_video(wan("helios-14b", shards=6), scheduler=Part("diffusers", scheduler))
    return diffusers_repository(index_class, parts, version="0.37.0")


_TI2V = wan("wan-ti2v-5b", shards=3)
_ANIMATE_2 = {
    "image_encoder": CLIP_PLAIN, "scheduler": unipc(5.0), "text_encoder": UMT5,
    "tokenizer": Part("transformers", "AutoTokenizer"), "transformer": wan("wan-animate-2-14b"), "vae": VAE21,
}  # fmt: skip

BUILDERS: dict[str, Builder] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": diffusers_repository("WanPipeline", text_to_video(wan("wan-t2v-1.3b", **_SMALL)), version="0.33.0.dev0"),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": diffusers_repository("WanPipeline", text_to_video(_T2V_14B, scheduler=Part("diffusers", "FlowMatchEulerDiscreteScheduler")), version="0.33.0.dev0"),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": diffusers_repository("WanImageToVideoPipeline", image_to_video(_I2V_14B), version="0.33.0.dev0"),
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": diffusers_repository("WanImageToVideoPipeline", image_to_video(_I2V_14B), version="0.33.0.dev0"),
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers": diffusers_repository("WanImageToVideoPipeline", image_to_video(wan("wan-flf2v-14b", shards=14), scheduler=unipc(16.0)), version="0.34.0.dev0"),
    "Wan-AI/Wan2.1-VACE-1.3B-diffusers": diffusers_repository("WanVACEPipeline", text_to_video(wan("wan-vace-1.3b", shards=2)), version="0.34.0.dev0"),
    "Wan-AI/Wan2.1-VACE-14B-diffusers": diffusers_repository("WanVACEPipeline", text_to_video(wan("wan-vace-14b", shards=14)), version="0.34.0.dev0"),
    # As saved by that pipeline: the repositories themselves all say WanPipeline.
    "use: video-to-video on any Wan 2.1 T2V repository": diffusers_repository("WanVideoToVideoPipeline", text_to_video(wan("wan-t2v-1.3b", **_SMALL)), version="0.42.1"),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": diffusers_repository("WanPipeline", _two_experts(_EXPERTS_T2V), version="0.35.0.dev0", boundary_ratio=0.875, expand_timesteps=False),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": diffusers_repository("WanImageToVideoPipeline", _two_experts(_EXPERTS_I2V, **_NO_IMAGE), version="0.35.0.dev0", boundary_ratio=0.9, expand_timesteps=False),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": diffusers_repository("WanPipeline", text_to_video(_TI2V, vae=VAE22, scheduler=unipc(5.0), transformer_2=NONE), version="0.35.0.dev0", boundary_ratio=None, expand_timesteps=True),
    "Wan-AI/Wan2.2-Animate-14B-Diffusers": diffusers_repository("WanAnimatePipeline", image_to_video(wan("wan-animate-14b", shards=15), image_encoder=CLIP_PLAIN, scheduler=unipc(5.0)), version="0.36.0.dev0"),
    "linoyts/Wan2.2-VACE-Fun-14B-diffusers": diffusers_repository("WanVACEPipeline", _two_experts({"transformer": wan("wan-vace-14b", shards=14), "transformer_2": wan("wan-vace-14b", shards=14)}), version="0.36.0.dev0", boundary_ratio=0.875),
    "Wan-AI/Wan2.2-S2V-14B": _s2v_extras(original_repository(_S2V_CONFIG, recorded_tensors("original-s2v"), shards=4, dtype="BF16")),
    # Assumed: classes of the unmerged pull request 12258 of diffusers.
    "FastVideo/Wan2.2-S2V-14B-Diffusers": diffusers_repository("WanSpeechToVideoPipeline", text_to_video(Part("diffusers", "WanS2VTransformer3DModel", "wan-t2v-14b", "BF16", 4, config={"audio_dim": 1024, "num_audio_token": 4}, tensors=recorded_tensors("original-s2v")))),
    "alibaba-pai/Wan2.1-Fun-1.3B-InP": _fun("wan-fun-1.3b-inp", original_names("wan-fun-1.3b-inp"), "i2v", clip=True),
    "alibaba-pai/Wan2.1-Fun-14B-InP": _fun("wan-i2v-14b", original_names("wan-i2v-14b"), "i2v", clip=True, shards=7),
    "alibaba-pai/Wan2.1-Fun-1.3B-Control": _fun("wan-fun-1.3b-control", original_names("wan-fun-1.3b-control"), "i2v", clip=True),
    "alibaba-pai/Wan2.1-Fun-14B-Control": _fun("wan-fun-14b-control", original_names("wan-fun-14b-control"), "i2v", clip=True, shards=7),
    "alibaba-pai/Wan2.1-Fun-V1.1-1.3B-Control": _fun("wan-fun-1.3b-control", with_ref_conv(original_names("wan-fun-1.3b-control")), "i2v", clip=True, add_ref_conv=True),
    "alibaba-pai/Wan2.1-Fun-V1.1-14B-Control": _fun("wan-fun-14b-control", with_ref_conv(original_names("wan-fun-14b-control")), "i2v", clip=True, shards=7, add_ref_conv=True),
    "alibaba-pai/Wan2.1-Fun-V1.1-14B-Control-Camera": _fun("wan-fun-14b-camera", with_control_adapter(original_names("wan-fun-14b-camera"), 8), "i2v", clip=True, shards=7, **_CAMERA),
    "alibaba-pai/Wan2.2-Fun-A14B-Control": _fun("wan-fun-a14b-control", with_ref_conv(original_names("wan-fun-a14b-control")), None, experts=True, shards=3, has_ref_conv=True),
    "alibaba-pai/Wan2.2-Fun-A14B-Control-Camera": _fun("wan-i2v-a14b", with_control_adapter(original_names("wan-i2v-a14b"), 8), None, experts=True, shards=3, **_CAMERA),
    "alibaba-pai/Wan2.2-Fun-5B-InP": _fun("wan-fun-5b-inp", original_names("wan-fun-5b-inp"), "i2v", vae="Wan2.2_VAE.pth"),
    # Assumed: 148 input channels, 48 noise + 48 control + 4 mask + 48 image, as the A14B's 52 = 16 + 16 + 4 + 16.
    "alibaba-pai/Wan2.2-Fun-5B-Control": _fun("wan-fun-5b-control", with_ref_conv(original_names("wan-fun-5b-control"), 48), "ti2v", vae="Wan2.2_VAE.pth", has_ref_conv=True),
    "Bmyy02/Wan2.2-Fun-5B-Control-Camera-Diffusers": diffusers_repository("WanImageToVideoPipeline", text_to_video(wan("wan-fun-5b-inp", shards=1, dtype="BF16", config=_CAMERA | {"downscale_factor_control_adapter": 16}, tensors=with_control_adapter(recorded_tensors("wan-fun-5b-inp"), 16)), vae=VAE22), expand_timesteps=True),
    "Kunbyte/ROSE": _rose,
    "Wan-AI/Wan2.2-Animate-2-14B-Diffusers": diffusers_repository("WanAnimate2ModularPipeline", _ANIMATE_2, version="0.40.0", index="modular_model_index.json", _blocks_class_name="WanAnimate2Blocks"),
    "Wan-AI/Wan2.2-Animate-2-14B-Distilled-Diffusers": diffusers_repository("WanAnimate2DistilledModularPipeline", _ANIMATE_2, version="0.40.0", index="modular_model_index.json", _blocks_class_name="WanAnimate2DistilledBlocks"),
    "Wan-Animate-2 official checkpoint": single_file("wan_animate_2_14B.safetensors", animate_2_original(), "BF16"),
    "diffusers-internal-dev/modular-wan-t2v": modular_reference("WanModularPipeline", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", text_to_video(wan("wan-t2v-1.3b"))),
    "diffusers-internal-dev/Modular-Wan-I2V-14B-720P-Diffusers": modular_reference("WanModularPipeline", "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", image_to_video(_I2V_14B)),
    "akshan-main/tiny-wan22-vace-modular-pipe": diffusers_repository("Wan22VaceModularPipeline", {name: wan("wan-vace-14b", shards=1, config=_TINY_VACE, tensors=_tiny_vace_tensors()) for name in ("transformer", "transformer_2")} | {"vae": VAE21, "scheduler": unipc(3.0), "tokenizer": TOKENIZER, "text_encoder": UMT5}, version="0.42.0.dev0", index="modular_model_index.json", _blocks_class_name="Wan22VaceBlocks", boundary_ratio=0.875),
    "krea/krea-realtime-video": _krea,
    "IPostYellow/krea-realtime-video-diffusers": diffusers_repository("KreaWanCausalPipeline", text_to_video(Part("diffusers", "KreaCausalWanTransformer3DModel", "wan-t2v-14b", "BF16", 3), transformer_2=NONE), version="0.36.0", boundary_ratio=None, expand_timesteps=False),
    "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers": _skyreels("SkyReelsV2DiffusionForcingPipeline", "skyreels-df-1.3b"),
    "Skywork/SkyReels-V2-DF-14B-540P-Diffusers": _skyreels("SkyReelsV2DiffusionForcingPipeline", "skyreels-14b"),
    "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers": _skyreels("SkyReelsV2Pipeline", "skyreels-14b"),
    "Skywork/SkyReels-V2-I2V-14B-540P-Diffusers": _skyreels("SkyReelsV2ImageToVideoPipeline", "skyreels-i2v-14b", image_processor=Part("transformers", "CLIPProcessor")),
    "Skywork/SkyReels-V2-DF-14B-720P-Diffusers": _skyreels("SkyReelsV2DiffusionForcingPipeline", "skyreels-14b"),
    "Skywork/SkyReels-V2-T2V-14B-720P-Diffusers": _skyreels("SkyReelsV2Pipeline", "skyreels-14b"),
    "Skywork/SkyReels-V2-I2V-14B-720P-Diffusers": _skyreels("SkyReelsV2ImageToVideoPipeline", "skyreels-i2v-14b", image_processor=Part("transformers", "CLIPProcessor")),
    "Skywork/SkyReels-V2-I2V-1.3B-540P-Diffusers": _skyreels("SkyReelsV2ImageToVideoPipeline", "skyreels-i2v-1.3b", image_processor=Part("transformers", "CLIPProcessor")),
    "SkyReels-V3-V2V-14B (layout)": _skyreels_v3,
    "nvidia/ChronoEdit-14B-Diffusers": diffusers_repository("WanImageToVideoPipeline", image_to_video(wan("wan-i2v-14b", shards=14)), version="0.36.0.dev0"),
    "fal/ChronoEdit-14B-FlashPack": _flashpack,
    "diffusers-internal-dev/chronoedit-modular": _chronoedit_modular,
    "decart-ai/Lucy-Edit-Dev": diffusers_repository("LucyEditPipeline", text_to_video(wan("wan-lucy-edit", shards=5), vae=VAE22, transformer_2=NONE), version="0.36.0.dev0", boundary_ratio=None, expand_timesteps=True),
    # Assumed: as its predecessor.
    "decart-ai/Lucy-Edit-1.1-Dev": diffusers_repository("LucyEditPipeline", text_to_video(wan("wan-lucy-edit", shards=5), vae=VAE22, transformer_2=NONE), version="0.36.0", boundary_ratio=None, expand_timesteps=True),
    "nvidia/AnyFlow-Wan2.1-T2V-1.3B-Diffusers": _anyflow("AnyFlowPipeline", "anyflow-1.3b"),
    "nvidia/AnyFlow-Wan2.1-T2V-14B-Diffusers": _anyflow("AnyFlowPipeline", "anyflow-14b"),
    "nvidia/AnyFlow-FAR-Wan2.1-1.3B-Diffusers": _anyflow("AnyFlowFARPipeline", "anyflow-far-1.3b"),
    "nvidia/AnyFlow-FAR-Wan2.1-14B-Diffusers": _anyflow("AnyFlowFARPipeline", "anyflow-far-14b"),
    "BestWishYsh/Helios-Base": _helios("HeliosPipeline", "HeliosScheduler"),
    "BestWishYsh/Helios-Mid": _helios("HeliosPyramidPipeline", "HeliosScheduler"),
    "BestWishYsh/Helios-Distilled": _helios("HeliosPyramidPipeline", "HeliosDMDScheduler"),
    "FastVideo/FastWan2.1-T2V-1.3B-Diffusers": diffusers_repository("WanDMDPipeline", text_to_video(wan("wan-t2v-1.3b", **_SMALL)), version="0.33.0.dev0"),
    "FastVideo/FastWan2.1-T2V-14B-Diffusers": diffusers_repository("WanDMDPipeline", text_to_video(_T2V_14B), version="0.33.0.dev0"),
    "FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers": diffusers_repository("WanDMDPipeline", text_to_video(_TI2V, vae=VAE22, transformer_2=NONE), version="0.35.0.dev0", boundary_ratio=None, expand_timesteps=True),
    # Assumed: FastVideo's causal classes around the A14B's shapes.
    "FastVideo/CausalWan2.2-I2V-A14B-Preview-Diffusers": diffusers_repository("WanCausalDMDPipeline", _two_experts({name: Part("diffusers", "CausalWanTransformer3DModel", "wan-i2v-a14b", "F32", 12) for name in _EXPERTS_I2V}), boundary_ratio=0.9),
    # Assumed: plain components.
    "FastVideo/Wan2.1-VSA-T2V-14B-720P-Diffusers": diffusers_repository("WanPipeline", text_to_video(_T2V_14B), version="0.34.0"),
    "IPostYellow/TurboWan2.2-I2V-A14B-Diffusers": diffusers_repository("WanImageToVideoPipeline", _two_experts(_EXPERTS_I2V, **_NO_IMAGE), version="0.36.0", boundary_ratio=0.9),
    "ByteDance/Bernini-R-Diffusers": diffusers_repository("WanPipeline", text_to_video(_T2V_14B, transformer_2=NONE), version="0.36.0", boundary_ratio=None),
    "lightx2v/Wan2.2-Distill-Loras": _loras({f"wan2.2_i2v_A14b_{noise}_noise_lora_rank64_lightx2v_4step_1022.safetensors": "wan-i2v-a14b" for noise in ("high", "low")}, "lightx2v", "diffusion_model.", 64),
    "Kijai/WanVideo_comfy Wan22-Lightning": _loras({f"Wan2.2-Lightning_T2V-A14B-4steps-lora_{noise}_fp16.safetensors": "wan-t2v-14b" for noise in ("HIGH", "LOW")}, "lightx2v", "diffusion_model.", 64),
    "any Wan LoRA file": _any_lora,
    "Wan-AI/Wan2.1-T2V-1.3B": original_repository(wan_model("wan-t2v-1.3b", "t2v"), original_names("wan-t2v-1.3b"), shards=1),
    "Wan-AI/Wan2.1-T2V-14B": original_repository(wan_model("wan-t2v-14b", "t2v"), original_names("wan-t2v-14b")),
    "Wan-AI/Wan2.1-I2V-14B-480P": original_repository(wan_model("wan-i2v-14b", "i2v"), original_names("wan-i2v-14b"), shards=7, clip=True),
    "Wan-AI/Wan2.1-I2V-14B-720P": original_repository(wan_model("wan-i2v-14b", "i2v"), original_names("wan-i2v-14b"), shards=7, clip=True),
    "Wan-AI/Wan2.1-FLF2V-14B-720P": original_repository(wan_model("wan-flf2v-14b", "flf2v"), original_names("wan-flf2v-14b"), shards=7, clip=True),
    "Wan-AI/Wan2.1-VACE-1.3B": original_repository(wan_model("wan-vace-1.3b", "vace", vace_layers=list(range(0, 30, 2)), vace_in_dim=96), original_names("wan-vace-1.3b"), shards=1),
    "Wan-AI/Wan2.1-VACE-14B": original_repository(wan_model("wan-vace-14b", "vace", vace_layers=list(range(0, 40, 5)), vace_in_dim=96), original_names("wan-vace-14b"), shards=7),
    "Wan-AI/Wan2.2-T2V-A14B": original_repository(wan_model("wan-t2v-14b", "t2v"), original_names("wan-t2v-14b"), experts=True),
    "Wan-AI/Wan2.2-I2V-A14B": original_repository(wan_model("wan-i2v-a14b", "i2v"), original_names("wan-i2v-a14b"), experts=True),
    "Wan-AI/Wan2.2-TI2V-5B": original_repository(wan_model("wan-ti2v-5b", "ti2v"), original_names("wan-ti2v-5b"), shards=3, vae="Wan2.2_VAE.pth"),
    "Wan-AI/Wan2.2-Animate-14B": original_repository({key: value for key, value in wan_model("wan-i2v-14b", "i2v", use_face_encoder=True, motion_encoder_dim=512).items() if key != "model_type"}, recorded_tensors("original-animate"), shards=4, dtype="BF16", clip=True, extra={"relighting_lora.ckpt": 1_436_000_000}),
    "MAGREF-Video/MAGREF, Runware/multitalk-14B-480P (I2V derivatives in the original layout)": original_repository(wan_model("wan-i2v-14b", "i2v"), original_names("wan-i2v-14b"), shards=7, clip=True),
    "wan_va fine-tune (action-conditioned)": _wan_va,
    "Comfy single file: wan2.1_i2v_480p_14B_fp16": single_file("wan2.1_i2v_480p_14B_fp16.safetensors", original_names("wan-i2v-14b")),
    "Comfy single file: wan2.1_flf2v_720p_14B_fp16": single_file("wan2.1_flf2v_720p_14B_fp16.safetensors", original_names("wan-flf2v-14b"), prefix="model.diffusion_model."),
    "Comfy single file: wan2.1_fun_inp_1.3B_bf16": single_file("wan2.1_fun_inp_1.3B_bf16.safetensors", original_names("wan-fun-1.3b-inp"), "BF16"),
    "Comfy single file: wan2.2_t2v_high_noise_14B_fp16": single_file("wan2.2_t2v_high_noise_14B_fp16.safetensors", original_names("wan-t2v-14b"), prefix="diffusion_model."),
    "Comfy single file: wan2.2_i2v_high_noise_14B_fp16": single_file("wan2.2_i2v_high_noise_14B_fp16.safetensors", original_names("wan-i2v-a14b")),
    "Comfy single file: wan2.2_i2v_high_noise_14B_fp8_scaled": _fp8_file,
    "Comfy single file: wan2.2_ti2v_5B_fp16": single_file("wan2.2_ti2v_5B_fp16.safetensors", original_names("wan-ti2v-5b")),
    "Comfy single file: wan2.2_s2v_14B_bf16": single_file("wan2.2_s2v_14B_bf16.safetensors", recorded_tensors("original-s2v"), "BF16"),
    "Comfy single file: chrono_edit_14B_fp16": single_file("chrono_edit_14B_fp16.safetensors", original_names("wan-i2v-14b"), prefix="model.diffusion_model."),
    "Comfy single file: wan_2.1_vae": single_file("wan_2.1_vae.safetensors", recorded_tensors("original-vae-wan2.1"), "F32"),
    "Comfy single file: wan2.2_vae": single_file("wan2.2_vae.safetensors", recorded_tensors("original-vae-wan2.2"), "F32"),
    "Comfy single file: umt5_xxl": _umt5_file,
    "city96/Wan2.1-I2V-14B-480P-gguf": _gguf,
    # Names of classes before the first release with Wan; the tensors' names did not change.
    "StevenZhang/Wan2.1-I2V-14B-720P-Diff, ypyp/wan2.1_i2v (pre-release names)": diffusers_repository("WanI2VPipeline", image_to_video(wan("wan-i2v-14b", shards=14, config_class="WanxTransformer3DModel", config={"add_img_emb": True, "qk_norm": True, "window_size": [-1, -1]}), image_encoder=CLIP_PLAIN), version="0.33.0.dev0"),
}  # fmt: skip


def build_sharded_14b(folder: Path) -> Path:
    """Write Wan2.2-T2V-A14B as published: two experts of twelve float32 shards, 126 GB of holes."""
    return BUILDERS["Wan-AI/Wan2.2-T2V-A14B-Diffusers"](folder)
