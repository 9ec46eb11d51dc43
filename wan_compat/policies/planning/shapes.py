"""From configurations and headers to the sizes that the walks need. The header wins where both speak."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from wan_compat.policies.facts import TensorFact
from wan_compat.policies.planning.denoiser import IMAGE_TOKENS, DenoiserShape
from wan_compat.policies.planning.encoders import TextEncoderShape
from wan_compat.policies.planning.vae import VaeShape
from wan_compat.policies.planning.weights import ComponentWeights
from wan_compat.protocol.sources import Quantization

_MAX = 1 << 20
_MAX_RES_BLOCKS = 64  # of a level of the VAE; they are walked through one by one, and a model may say any number
_CHUNKS = (1, 3, 3, 3, 3, 3, 3, 2)
# Of WanAnimate2Transformer3DModel, for what the others have.
_OTHER_WORDS = {
    "num_heads": "num_attention_heads",
    "ffn_dim": "ffn_dim",
    "num_layers": "num_layers",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "patch_size": "patch_size",
    "text_dim": "text_dim",
    "head_dim": "attention_head_dim",
}
EXPERTS = ("transformer", "transformer_2")


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """All that planning knows of a model. `weights` has the components with tensors; `experts` those that denoise, in
    the order in which they run."""

    pipeline_class: str
    weights: Mapping[str, ComponentWeights]
    denoiser: DenoiserShape
    vae: VaeShape
    text: TextEncoderShape | None
    copied: bool = True  # tensors become weights by copying, so that they could stay in their files
    streams: bool = True  # frames leave the VAE, and not the pipeline
    size_multiple: int = 16  # of heights and widths that it makes

    @property
    def is_modular(self) -> bool:
        """Whether its pipeline is made of modular blocks."""
        return self.pipeline_class.endswith("ModularPipeline")

    @functools.cached_property
    def cast(self) -> ModelShape:
        """The same model with the layers of its experts stored in 8 bits (layerwise casting)."""
        experts = {name: dataclasses.replace(self.weights[name], cast=True) for name in self.experts}
        return dataclasses.replace(self, weights={**self.weights, **experts})

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(name for name in EXPERTS if name in self.weights)

    @property
    def encoders(self) -> tuple[str, ...]:
        """What makes embeddings of prompt and picture: all that is neither an expert nor the VAE."""
        return tuple(name for name in self.weights if name not in (*EXPERTS, "vae"))


def model_shape(
    pipeline_class: str,
    classes: Mapping[str, str],
    tensors: Mapping[str, Mapping[str, TensorFact]],
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    *,
    expand_timesteps: bool = False,
    quantized: Mapping[str, Quantization] | None = None,
    laid_over: Mapping[str, int] | None = None,
    copied: bool = True,
    streams: bool = True,
    size_multiple: int = 16,
) -> ModelShape:
    """Return the shape of a model.

    Args:
        classes: Component -> class, for those that have tensors.
        tensors: Component -> what its headers say.
        transformer, vae: Their configurations; keys that are absent have diffusers' defaults.
        expand_timesteps: The pipeline gives each token a timestep of its own.
        quantized: Component -> what folds its weights while they are loaded.
        laid_over: Component -> numbers of the LoRAs over it.
        copied: Tensors become weights by copying.
        streams: Frames leave the VAE, and not the pipeline.
        size_multiple: Of heights and widths that it makes.
    """
    quantized, laid_over = quantized or {}, laid_over or {}
    weights = {
        name: ComponentWeights(name, class_name, tensors.get(name, {}), quantized.get(name), laid_over.get(name, 0))
        for name, class_name in classes.items()
    }
    return ModelShape(
        pipeline_class=pipeline_class,
        weights=weights,
        denoiser=denoiser_shape(transformer, classes.get("transformer", ""), expand_timesteps=expand_timesteps),
        vae=vae_shape(vae),
        text=text_shape(tensors.get("text_encoder", {})),
        copied=copied and not any(part.is_packed for part in weights.values()),
        streams=streams,
        size_multiple=size_multiple,
    )


def denoiser_shape(config: Mapping[str, Any], class_name: str, *, expand_timesteps: bool) -> DenoiserShape:
    """Return the sizes of a transformer of that class by its configuration."""
    if class_name == "WanAnimate2Transformer3DModel":
        head_dim = _size(config, "dim", 5120) // _size(config, "num_heads", 40)
        config = {**config, "head_dim": head_dim}
        config = {name: config[key] for key, name in _OTHER_WORDS.items() if key in config} | {
            # CLIP's pictures are attended to besides the text.
            "image_dim": True if config.get("use_img_emb", True) else None
        }
    heads = _size(config, "num_attention_heads", 40)
    channels_in = _size(config, "in_channels", 16)
    patch = _sizes(config, "patch_size", (1, 2, 2))
    vace = config.get("vace_layers")
    shrunk = _sizes(config, "compressed_patch_size", (1, 4, 4))
    pictures = config.get("image_dim") is not None
    return DenoiserShape(
        dim=heads * _size(config, "attention_head_dim", 128),
        heads=heads,
        ffn_dim=_size(config, "ffn_dim", 13824),
        layers=_size(config, "num_layers", 40),
        in_channels=channels_in,
        out_channels=_size(config, "out_channels", channels_in),
        patch_size=(patch[0], patch[1], patch[2]) if len(patch) == 3 else (1, 2, 2),
        text_dim=_size(config, "text_dim", 4096),
        vace_blocks=len(vace) if isinstance(vace, list) else (8 if class_name == "WanVACETransformer3DModel" else 0),
        image_tokens=IMAGE_TOKENS * (2 if config.get("pos_embed_seq_len") is not None else 1) if pictures else 0,
        timestep_per_token=expand_timesteps,
        face_size=_size(config, "motion_encoder_size", 512) if class_name == "WanAnimateTransformer3DModel" else 0,
        chunks=_sizes(config, "chunk_partition", _CHUNKS, 64) if class_name == "AnyFlowFARTransformer3DModel" else (),
        full_chunks=_size(config, "full_chunk_limit", 3),
        shrunk_patch=(shrunk[0], shrunk[1], shrunk[2]) if len(shrunk) == 3 else (1, 4, 4),
        # Animate's own: tokens of poses, and what its faces add.
        kept_units=2 if class_name == "WanAnimateTransformer3DModel" else 0,
    )


def vae_shape(config: Mapping[str, Any]) -> VaeShape:
    base = _size(config, "base_dim", 96)
    factors = _sizes(config, "dim_mult", (1, 2, 4, 4))
    downwards = config.get("temperal_downsample")
    known = isinstance(downwards, list) and len(downwards) >= len(factors) - 1
    return VaeShape(
        base_dim=base,
        decoder_base_dim=_size(config, "decoder_base_dim", base),
        z_dim=_size(config, "z_dim", 16),
        dim_mult=factors,
        num_res_blocks=_size(config, "num_res_blocks", 2, _MAX_RES_BLOCKS),
        temperal_downsample=tuple(bool(item) for item in downwards)
        if known and isinstance(downwards, list)
        else tuple(index > 0 for index in range(len(factors) - 1)),
        is_residual=config.get("is_residual") is True,
        in_channels=_size(config, "in_channels", 3),
        out_channels=_size(config, "out_channels", 3),
        patch_size=_size(config, "patch_size", 1),
        scale_factor_spatial=_size(config, "scale_factor_spatial", 8),
        scale_factor_temporal=_size(config, "scale_factor_temporal", 4),
    )


def text_shape(tensors: Mapping[str, TensorFact]) -> TextEncoderShape | None:
    """Return the sizes of a T5 encoder by its header, None where it is none."""
    inside = "encoder.block.0.layer.0.SelfAttention."
    query = tensors.get(f"{inside}q.weight")
    bias = tensors.get(f"{inside}relative_attention_bias.weight")
    inner = tensors.get("encoder.block.0.layer.1.DenseReluDense.wi_0.weight") or tensors.get(
        "encoder.block.0.layer.1.DenseReluDense.wi.weight"
    )
    if query is None or bias is None or inner is None or len(query.shape) != 2 or len(bias.shape) != 2:
        return None
    heads = max(1, bias.shape[1])
    return TextEncoderShape(
        d_model=query.shape[1],
        d_ff=inner.shape[0],
        d_kv=query.shape[0] // heads,
        num_heads=heads,
        num_layers=len({name.split(".")[2] for name in tensors if name.startswith("encoder.block.")}),
    )


def _size(config: Mapping[str, Any], key: str, default: int, at_most: int = _MAX) -> int:
    """Return a size; what is no sensible number is refused by model_fit.py, and counts as the default here."""
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= at_most else default


def _sizes(config: Mapping[str, Any], key: str, default: tuple[int, ...], at_most: int = 8) -> tuple[int, ...]:
    value = config.get(key)
    if isinstance(value, list | tuple) and 1 <= len(value) <= at_most:
        sizes = tuple(item for item in value if isinstance(item, int) and not isinstance(item, bool) and item >= 1)
        if len(sizes) == len(value):
            return sizes
    return default
