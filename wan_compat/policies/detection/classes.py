"""Tables of classes: which denoisers are Wan's, which are its relatives', which only look alike, and what VAEs are.

A class name proves something only together with its library: Gen3R calls its own class `WanTransformer3DModel`.
Compared with diffusers 0.42.1 by tests/policies/detection/test_classes.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Role = Literal["denoiser", "vae", "text_encoder", "image_encoder", "audio_encoder", "lora", "other"]

# The libraries whose classes mean what their name says.
KNOWN_LIBRARIES = ("diffusers", "transformers")

# Wan's denoisers and those of its relatives in diffusers -> what kind of model they are (rules.py).
DIFFUSERS_TRANSFORMERS: Mapping[str, str] = {
    "WanTransformer3DModel": "wan",
    "WanVACETransformer3DModel": "vace",
    "WanAnimateTransformer3DModel": "animate",
    "WanAnimate2Transformer3DModel": "animate2",
    "SkyReelsV2Transformer3DModel": "skyreels",
    "ChronoEditTransformer3DModel": "chronoedit",
    "AnyFlowTransformer3DModel": "anyflow",
    "AnyFlowFARTransformer3DModel": "anyflow_far",
    "HeliosTransformer3DModel": "helios",
}

# Known classes that no release of diffusers has: pre-release names, open pull requests, other programs.
OTHER_TRANSFORMERS: Mapping[str, str] = {
    "WanxTransformer3DModel": "wan",  # diffusers' pull request before the name was Wan
    "KreaCausalWanTransformer3DModel": "krea",
    "CausalWanTransformer3DModel": "causal",  # FastVideo
    "WanS2VTransformer3DModel": "s2v",  # diffusers pull request 12258
    # Wan's own repositories
    "WanModel": "wan",
    "VaceWanModel": "vace",
    "WanModel_S2V": "s2v",
    "WanAnimateModel": "animate",
    # VideoX-Fun
    "CausalWanModel": "causal",
    "VaceWanTransformer3DModel": "vace",
    "Wan2_2Transformer3DModel": "wan",
    "Wan2_2Transformer3DModel_S2V": "s2v",
    "Wan2_2Transformer3DModel_Animate": "animate",
}

KIND_OF_CLASS: Mapping[str, str] = {**DIFFUSERS_TRANSFORMERS, **OTHER_TRANSFORMERS}
WAN_FAMILY_TRANSFORMERS = frozenset(KIND_OF_CLASS)

# Denoisers of other families -> the family's name. Several use Wan's VAE or text encoder.
OTHER_FAMILIES: Mapping[str, str] = {
    "AceStepTransformer1DModel": "ACE-Step",
    "AllegroTransformer3DModel": "Allegro",
    "AudioLDM2UNet2DConditionModel": "AudioLDM",
    "AuraFlowTransformer2DModel": "AuraFlow",
    "BriaFibo2Transformer2DModel": "Bria FIBO",
    "BriaFiboTransformer2DModel": "Bria FIBO",
    "BriaTransformer2DModel": "Bria",
    "ChromaTransformer2DModel": "Chroma",
    "CogVideoXTransformer3DModel": "CogVideoX",
    "CogView3PlusTransformer2DModel": "CogView",
    "CogView4Transformer2DModel": "CogView",
    "ConsisIDTransformer3DModel": "ConsisID",
    "Cosmos3OmniTransformer": "Cosmos",
    "CosmosTransformer3DModel": "Cosmos",
    "DiTTransformer2DModel": "DiT",
    "DreamLiteTransformer2DModel": "DreamLite",
    "EasyAnimateTransformer3DModel": "EasyAnimate",
    "ErnieImageTransformer2DModel": "ERNIE-Image",
    "Flux2Transformer2DModel": "Flux",
    "Flux3Transformer2DModel": "Flux",
    "FluxTransformer2DModel": "Flux",
    "GlmImageTransformer2DModel": "GLM-Image",
    "HiDreamImageTransformer2DModel": "HiDream",
    "HunyuanDiT2DModel": "Hunyuan",
    "HunyuanImageTransformer2DModel": "Hunyuan",
    "HunyuanVideo15Transformer3DModel": "Hunyuan",
    "HunyuanVideoFramepackTransformer3DModel": "Hunyuan",
    "HunyuanVideoTransformer3DModel": "Hunyuan",
    "Ideogram4Transformer2DModel": "Ideogram",
    "JoyImageEditPlusTransformer3DModel": "JoyAI-Image",
    "JoyImageEditTransformer3DModel": "JoyAI-Image",
    "Kandinsky3UNet": "Kandinsky",
    "Kandinsky5Transformer3DModel": "Kandinsky",
    "Kandinsky6SRTransformer3DModel": "Kandinsky",
    "Kandinsky6Transformer3DModel": "Kandinsky",
    "Krea2Transformer2DModel": "Krea 2",
    "LTX2VideoTransformer3DModel": "LTX",
    "LTXVideoTransformer3DModel": "LTX",
    "LatteTransformer3DModel": "Latte",
    "LongCatAudioDiTTransformer": "LongCat",
    "LongCatImageTransformer2DModel": "LongCat",
    "LongCatVideoTransformer3DModel": "LongCat",
    "Lumina2Transformer2DModel": "Lumina",
    "LuminaNextDiT2DModel": "Lumina",
    "MiniMaxH3Transformer3DModel": "MiniMax",
    "MiniMaxMusic3Transformer1DModel": "MiniMax",
    "MochiTransformer3DModel": "Mochi",
    "MotifVideoTransformer3DModel": "MotifVideo",
    "NucleusMoEImageTransformer2DModel": "Nucleus",
    "OmniGenTransformer2DModel": "OmniGen",
    "OvisImageTransformer2DModel": "Ovis",
    "PRXTransformer2DModel": "PRX",
    "PixArtTransformer2DModel": "PixArt",
    "PriorTransformer": "a diffusion prior",
    "QwenImage21Transformer2DModel": "Qwen-Image",
    "QwenImageTransformer2DModel": "Qwen-Image",
    "RFD4ProteinaTransformer": "RFdiffusion",
    "SD3Transformer2DModel": "Stable Diffusion 3",
    "SanaTransformer2DModel": "Sana",
    "SanaVideoTransformer3DModel": "SANA-Video",
    "SanaWMLTX2RefinerTransformer3DModel": "SANA-WM",
    "SanaWMTransformer3DModel": "SANA-WM",
    "StableAudio3DiTModel": "Stable Audio",
    "StableAudioDiTModel": "Stable Audio",
    "StableCascadeUNet": "Stable Cascade",
    "T5FilmDecoder": "a spectrogram diffusion",
    "Transformer2DModel": "a transformer of diffusers' older pipelines",
    "UNet1DModel": "a 1-D diffusion",
    "UNet2DConditionModel": "Stable Diffusion",
    "UNet2DModel": "an unconditional diffusion",
    "UNet3DConditionModel": "ModelScope text-to-video",
    "UNetMotionModel": "AnimateDiff",
    "UNetSpatioTemporalConditionModel": "Stable Video Diffusion",
    "DreamLiteUNetModel": "DreamLite",
    "I2VGenXLUNet": "I2VGen-XL",
    "UVit2DModel": "aMUSEd",
    "ZImageTransformer2DModel": "Z-Image",
}

# Only these are `stable_diffusion`: SD 1.x, 2.x, XL and 3.
STABLE_DIFFUSION = frozenset({"Stable Diffusion", "Stable Diffusion XL", "Stable Diffusion 3"})

# UNet2DConditionModel serves other families too; their pipelines tell.
OTHER_UNET_PIPELINES: Mapping[str, str] = {
    "Kandinsky": "Kandinsky",
    "Kolors": "Kolors",
    "AudioLDM": "AudioLDM",
    "MusicLDM": "MusicLDM",
    "IF": "DeepFloyd IF",
    "Wuerstchen": "Wuerstchen",
    "Marigold": "Marigold",
    "UnCLIP": "unCLIP",
    "TextToVideoSD": "ModelScope text-to-video",
    "AnimateDiff": "AnimateDiff",
}

# Pipelines of their own around Wan's parts: the whole is no Wan model, whatever its transformer is called.
LOOK_ALIKE_PIPELINES: Mapping[str, str] = {
    "KiwiEditPipeline": "Kiwi-Edit",
    "Gen3RPipeline": "Gen3R",
    "LongCatVideoPipeline": "LongCat",
}
LOOK_ALIKE_LIBRARIES: Mapping[str, str] = {"gen3r": "Gen3R", "longcat_video": "LongCat", "wan_video_vae": "Kiwi-Edit"}

# Samplers of other programs under Wan's weights: diffusers would load the folders and sample wrongly.
FOREIGN_WAN_PIPELINES = frozenset(
    {
        "WanDMDPipeline",
        "WanCausalDMDPipeline",
        "WanImageToVideoDMDPipeline",
        "KreaWanCausalPipeline",
        "WanRTStreamingPipeline",
        "WanSpeechToVideoPipeline",
    }
)
NOT_IN_DIFFUSERS = FOREIGN_WAN_PIPELINES | {"WanI2VPipeline"}

# Classes of pipelines that diffusers runs for Wan and its relatives, with the variants that each was made for: a hint
# that may choose among candidates, never more.
WAN_PIPELINES: Mapping[str, tuple[str, ...]] = {
    "WanPipeline": ("wan2.1-t2v", "wan2.2-t2v", "wan2.2-ti2v", "bernini"),
    "WanVideoToVideoPipeline": ("wan2.1-t2v",),
    "WanImageToVideoPipeline": ("wan2.1-i2v", "wan2.1-flf2v", "wan2.2-i2v", "wan2.2-ti2v"),
    "WanI2VPipeline": ("wan2.1-i2v",),  # before the release
    "WanVACEPipeline": ("wan2.1-vace", "wan2.2-vace"),
    "WanAnimatePipeline": ("wan2.2-animate-14b",),
    "SkyReelsV2Pipeline": ("skyreels-v2-t2v",),
    "SkyReelsV2ImageToVideoPipeline": ("skyreels-v2-i2v",),
    "SkyReelsV2DiffusionForcingPipeline": ("skyreels-v2-df",),
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": ("skyreels-v2-df",),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": ("skyreels-v2-df",),
    "ChronoEditPipeline": ("chronoedit",),
    "LucyEditPipeline": ("lucy-edit",),
    "AnyFlowPipeline": ("anyflow-wan",),
    "AnyFlowFARPipeline": ("anyflow-far",),
    "HeliosPipeline": ("helios-base",),
    "HeliosPyramidPipeline": ("helios-mid", "helios-distilled"),
    "WanModularPipeline": ("wan2.1-t2v",),
    "WanImage2VideoModularPipeline": ("wan2.1-i2v",),
    "Wan22ModularPipeline": ("wan2.2-t2v",),
    "Wan22Image2VideoModularPipeline": ("wan2.2-i2v",),
    "Wan22VaceModularPipeline": ("wan2.2-vace",),
    "WanAnimate2ModularPipeline": ("wan2.2-animate-2-14b",),
    "WanAnimate2DistilledModularPipeline": ("wan2.2-animate-2-14b-distilled",),
    "HeliosModularPipeline": ("helios-base",),
    "HeliosPyramidModularPipeline": ("helios-mid",),
    "HeliosPyramidDistilledModularPipeline": ("helios-distilled",),
    # Not in diffusers; they still tell whose weights these are.
    "WanDMDPipeline": ("fastwan",),
    "WanCausalDMDPipeline": ("causalwan",),
    "KreaWanCausalPipeline": ("krea",),
    "WanRTStreamingPipeline": ("krea",),
}
MODULAR_PIPELINES = frozenset(name for name in WAN_PIPELINES if name.endswith("ModularPipeline"))

THREE_DIMENSIONAL_VAES = frozenset(
    {
        "AutoencoderKLAllegro",
        "AutoencoderKLCogVideoX",
        "AutoencoderKLCosmos",
        "AutoencoderKLHunyuanImageRefiner",
        "AutoencoderKLHunyuanVideo",
        "AutoencoderKLHunyuanVideo15",
        "AutoencoderKLKVAEVideo",
        "AutoencoderKLLTX2Video",
        "AutoencoderKLLTXVideo",
        "AutoencoderKLMagvit",
        "AutoencoderKLMiniMaxH3",
        "AutoencoderKLMochi",
        "AutoencoderKLQwenImage",
        "AutoencoderKLQwenImage21",
        "AutoencoderKLTemporalDecoder",
        "AutoencoderKLWan",
        "AutoencoderVidTok",
    }
)
TWO_DIMENSIONAL_VAES = frozenset(
    {
        "AsymmetricAutoencoderKL",
        "AutoencoderDC",
        "AutoencoderKL",
        "AutoencoderKLFlux2",
        "AutoencoderKLHunyuanImage",
        "AutoencoderKLKVAE",
        "AutoencoderRAE",
        "AutoencoderTiny",
        "ConsistencyDecoderVAE",
        "VQModel",
    }
)
# Audio and other latents: neither 2-D nor 3-D images.
OTHER_VAES = frozenset(
    {
        "AutoencoderKLKVAEAudio",
        "AutoencoderKLLTX2Audio",
        "AutoencoderKLMiniMaxH3Audio",
        "AutoencoderOobleck",
        "AutoencoderSAME",
        "Cosmos3AVAEAudioTokenizer",
        "Kandinsky6SRVAE",
        "LongCatAudioDiTVae",
        "MMAudioVAE",
        "RFD4ProteinaAutoencoder",
    }
)
VAES = THREE_DIMENSIONAL_VAES | TWO_DIMENSIONAL_VAES | OTHER_VAES

TEXT_ENCODERS = frozenset(
    {
        "UMT5EncoderModel",
        "UMT5Model",
        "T5EncoderModel",
        "MT5EncoderModel",
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "LlamaForCausalLM",
        "LlamaModel",
        "Gemma2Model",
        "Gemma2PreTrainedModel",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3Model",
        "Qwen3ForCausalLM",
    }
)
IMAGE_ENCODERS = frozenset(
    {"CLIPVisionModel", "CLIPVisionModelWithProjection", "SiglipVisionModel", "Siglip2VisionModel"}
)
AUDIO_ENCODERS = frozenset({"Wav2Vec2Model", "Wav2Vec2ForCTC", "WhisperModel"})


def family_of_class(class_name: str | None) -> str | None:
    """Return "wan" for Wan and its relatives, another family's name, None for what is no known denoiser."""
    if class_name is None:
        return None
    return "wan" if class_name in KIND_OF_CLASS else OTHER_FAMILIES.get(class_name)


def role_of_class(class_name: str | None) -> Role | None:
    """Return what a component of this class is for, None where the name alone does not tell."""
    if class_name is None:
        return None
    if family_of_class(class_name) is not None:
        return "denoiser"
    return next((role for role, names in _ROLES if class_name in names), None)


_ROLES: tuple[tuple[Role, frozenset[str]], ...] = (
    ("vae", VAES),
    ("text_encoder", TEXT_ENCODERS),
    ("image_encoder", IMAGE_ENCODERS),
    ("audio_encoder", AUDIO_ENCODERS),
)
