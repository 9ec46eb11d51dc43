"""Tiny checkpoints of Animate and of Wan's relatives, with random weights: rows of tiny_models.py's kinds.

animate    Wan 2.2 Animate                 chronoedit   an edited picture, and the way to it
skyreels   SkyReels-V2 text to video       lucy         an edited video, on the 5B's latents
skyreels_i2v   the same from a picture     anyflow      few steps
skyreels_df    diffusion forcing           anyflow_far  few steps, chunk by chunk
helios     chunk by chunk                  helios_pyramid, helios_distilled   from coarse to fine
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_SIZES: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 256,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "rope_max_seq_len": 1024,
}
_NORMED = {**_SIZES, "qk_norm": "rms_norm_across_heads"}
_PICTURE = {"in_channels": 36, "image_dim": 32, "added_kv_proj_dim": 24}
# Frames of the clips: 1, 13 and 21.
_CHUNKS = (1, 3, 2)


def build_relative(kind: str, common: Callable[..., dict[str, Any]], clip: Callable[[], dict[str, Any]]) -> Any:
    """Return the pipeline of `kind`. `common` makes what all have, `clip` image encoder and processor."""
    return _BUILDERS[kind](common, clip)


def _animate(common: Any, clip: Any) -> Any:
    import diffusers

    sizes = {"motion_encoder_size": 16, "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 16}
    faces = {"face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2, "inject_face_latents_blocks": 2}
    transformer = diffusers.WanAnimateTransformer3DModel(
        **_NORMED,
        **{**_PICTURE, "latent_channels": 16},
        **sizes,
        **faces,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
    )
    return diffusers.WanAnimatePipeline(**common(), **clip(), transformer=transformer)


def _skyreels(common: Any, _clip: Any) -> Any:
    import diffusers

    return diffusers.SkyReelsV2Pipeline(**common(), transformer=_skyreels_transformer(in_channels=16))


def _skyreels_i2v(common: Any, clip: Any) -> Any:
    import diffusers

    return diffusers.SkyReelsV2ImageToVideoPipeline(**common(), **clip(), transformer=_skyreels_transformer(**_PICTURE))


def _skyreels_df(common: Any, _clip: Any) -> Any:
    import diffusers

    transformer = _skyreels_transformer(in_channels=16, inject_sample_info=True)
    return diffusers.SkyReelsV2DiffusionForcingPipeline(**common(), transformer=transformer)


def _skyreels_transformer(**changes: Any) -> Any:
    import diffusers

    return diffusers.SkyReelsV2Transformer3DModel(**_NORMED, **changes)


def _chronoedit(common: Any, clip: Any) -> Any:
    import diffusers

    transformer = diffusers.ChronoEditTransformer3DModel(**_NORMED, **_PICTURE)
    return diffusers.ChronoEditPipeline(**common(), **clip(), transformer=transformer)


def _lucy(common: Any, _clip: Any) -> Any:
    import diffusers

    from wan_compat.workers.tiny_models import VAE_5B

    sizes = {**_NORMED, "in_channels": 96, "out_channels": 48}
    transformer = diffusers.WanTransformer3DModel(**sizes)
    return diffusers.LucyEditPipeline(**common(vae=VAE_5B), transformer=transformer, expand_timesteps=True)


def _anyflow(common: Any, _clip: Any) -> Any:
    import diffusers

    transformer = diffusers.AnyFlowTransformer3DModel(**_SIZES, in_channels=16)
    return diffusers.AnyFlowPipeline(**_with_flow_map(common()), transformer=transformer)


def _anyflow_far(common: Any, _clip: Any) -> Any:
    import diffusers

    transformer = diffusers.AnyFlowFARTransformer3DModel(**_SIZES, in_channels=16, chunk_partition=_CHUNKS)
    return diffusers.AnyFlowFARPipeline(**_with_flow_map(common()), transformer=transformer)


def _with_flow_map(parts: dict[str, Any]) -> dict[str, Any]:
    import diffusers

    return {**parts, "scheduler": diffusers.FlowMapEulerDiscreteScheduler(shift=5.0)}


def _helios(common: Any, _clip: Any) -> Any:
    import diffusers

    scheduler = diffusers.HeliosScheduler(stages=1, stage_range=[0, 1], gamma=1 / 3)
    return diffusers.HeliosPipeline(**{**common(), "scheduler": scheduler}, transformer=_helios_transformer())


def _helios_pyramid(common: Any, _clip: Any) -> Any:
    import diffusers

    parts = {**common(), "scheduler": diffusers.HeliosScheduler()}
    return diffusers.HeliosPyramidPipeline(**parts, transformer=_helios_transformer(), is_cfg_zero_star=True)


def _helios_distilled(common: Any, _clip: Any) -> Any:
    import diffusers

    parts = {**common(), "scheduler": diffusers.HeliosDMDScheduler()}
    return diffusers.HeliosPyramidPipeline(**parts, transformer=_helios_transformer(), is_distilled=True)


def _helios_transformer() -> Any:
    import diffusers

    sizes = {name: value for name, value in _NORMED.items() if name != "rope_max_seq_len"}
    return diffusers.HeliosTransformer3DModel(**sizes, in_channels=16, rope_dim=(4, 4, 4))


_BUILDERS: Mapping[str, Callable[[Any, Any], Any]] = {
    "animate": _animate,
    "skyreels": _skyreels,
    "skyreels_i2v": _skyreels_i2v,
    "skyreels_df": _skyreels_df,
    "chronoedit": _chronoedit,
    "lucy": _lucy,
    "anyflow": _anyflow,
    "anyflow_far": _anyflow_far,
    "helios": _helios,
    "helios_pyramid": _helios_pyramid,
    "helios_distilled": _helios_distilled,
}
KINDS = tuple(_BUILDERS)
