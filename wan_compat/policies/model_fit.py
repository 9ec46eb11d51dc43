"""Do the parts that a pipeline would be built from fit together, and what kind of weights are they?

Every number comes from a repository's configuration and is checked before it is compared: a text where a number should
be is a broken file, not a surprise in the arithmetic.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.findings import Severity
from wan_compat.policies.judgement.structure import judge_boundary
from wan_compat.policies.pipelines import Weights
from wan_compat.protocol.errors import ModelCorrupt, ModelInvalid

EXPERTS = ("transformer", "transformer_2")
# As WanVACEPipeline builds its mask: every pixel of a latent's square becomes a channel (pipeline_wan_vace.py).
_MASK_CHANNELS = 8 * 8
# What must be equal for one latent to pass through both experts.
_SHARED = ("in_channels", "out_channels", "text_dim", "patch_size", "vace_in_channels", "image_dim")

# Classes that run one kind of weights alone; the others share theirs, and channels tell.
_OF_PIPELINE: Mapping[str, Weights] = {
    "WanVACEPipeline": "vace",
    "WanAnimatePipeline": "animate",
    "SkyReelsV2Pipeline": "skyreels",
    "SkyReelsV2ImageToVideoPipeline": "skyreels_image",
    "SkyReelsV2DiffusionForcingPipeline": "skyreels_df",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": "skyreels_df",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": "skyreels_df",
    "ChronoEditPipeline": "chronoedit",
    "LucyEditPipeline": "lucy",
    "AnyFlowPipeline": "anyflow",
    "AnyFlowFARPipeline": "anyflow_far",
    "HeliosPipeline": "helios",
    "HeliosPyramidPipeline": "helios_pyramid",
}
# Weights whose transformer takes latents, a mask with a channel for each frame of a latent frame, and the latents of a
# picture; and those that take the latents of a video beside their own.
_WITH_PICTURE: tuple[Weights, ...] = (
    *("image", "image_clip", "image_pair"),
    *("animate", "skyreels_image", "chronoedit"),
)
_WITH_VIDEO: tuple[Weights, ...] = ("lucy",)


def main_expert(components: Collection[str]) -> str | None:
    """Return the transformer that speaks for the model: the first of the two that is there."""
    return next((name for name in EXPERTS if name in components), None)


def channels_of(transformer: Mapping[str, Any], document: str) -> tuple[int, int]:
    """Return channels in and out, with diffusers' defaults."""
    channels_in = integer(transformer, "in_channels", 16, document)
    return channels_in, integer(transformer, "out_channels", channels_in, document)


def weights_of_class(pipeline_class: str | None) -> Weights | None:
    """Return the kind of weights of a class that runs one kind alone, as far as that is known without the files."""
    return _OF_PIPELINE.get(pipeline_class or "")


def weights_of(
    facts: ModelFacts,
    components: Collection[str],
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    pipeline_class: str,
) -> Weights:
    """Return the kind of weights, where `pipeline_class` is what pipeline_choice.py chose for the transformer."""
    if pipeline_class in _OF_PIPELINE:
        distilled = pipeline_class == "HeliosPyramidPipeline" and facts.index.get("is_distilled") is True
        return "helios_distilled" if distilled else _OF_PIPELINE[pipeline_class]
    channels_in, channels_out = channels_of(transformer, "transformer/config.json")
    if channels_in != channels_out:
        if transformer.get("pos_embed_seq_len") is not None:
            return "image_pair"
        return "image" if transformer.get("image_dim") is None else "image_clip"
    if facts.index.get("expand_timesteps") is True:
        return "text_image"
    # WanVideoToVideoPipeline takes one transformer, and counts on a VAE that has no patches.
    follows = list(components).count("transformer_2") == 0 and factor(vae, "scale_factor_spatial", 8) == 8
    return "text" if follows else "text_only"


def check_fit(
    facts: ModelFacts,
    components: Collection[str],
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    weights: Weights,
) -> float | None:
    """Refuse parts of library classes that do not fit together; return the boundary between two experts, if any.

    Raises:
        ModelCorrupt: A number is none.
        ModelInvalid: Parts of different models.
    """
    patch = transformer.get("patch_size", [1, 2, 2])
    if not (
        isinstance(patch, list) and len(patch) == 3 and all(isinstance(side, int) and 1 <= side <= 16 for side in patch)
    ):
        raise ModelCorrupt(f"transformer/config.json has patch_size={patch!r}")
    temporal = factor(vae, "scale_factor_temporal", 4)
    factor(vae, "scale_factor_spatial", 8)
    channels_in, channels_out = channels_of(transformer, "transformer/config.json")
    z_dim = integer(vae, "z_dim", 16, "vae/config.json")
    if channels_out != z_dim:
        raise ModelInvalid(
            f"the transformer of {facts.root} works on {channels_out} latent channels, its VAE on {z_dim}",
            hint="the parts come from different models; take transformer and VAE from one repository",
        )
    wanted = z_dim + (temporal + z_dim if weights in _WITH_PICTURE else z_dim if weights in _WITH_VIDEO else 0)
    if channels_in != wanted:
        raise ModelInvalid(
            f"the transformer of {facts.root} takes {channels_in} channels, where its VAE's latents make {wanted}"
        )
    if weights == "vace":
        control = integer(transformer, "vace_in_channels", 96, "transformer/config.json")
        if control != 2 * z_dim + _MASK_CHANNELS:
            raise ModelInvalid(
                f"the transformer of {facts.root} takes {control} control channels, "
                f"its VAE's latents make {2 * z_dim + _MASK_CHANNELS}"
            )
    _check_image_encoder(facts, components, transformer)
    _check_experts(facts, components, transformer)
    return boundary_of(facts, components)


def boundary_of(facts: ModelFacts, components: Collection[str]) -> float | None:
    boundary = facts.index.get("boundary_ratio")
    if boundary is not None and (isinstance(boundary, bool) or not isinstance(boundary, int | float)):
        raise ModelCorrupt(f"model_index.json has boundary_ratio={boundary!r}")
    if boundary is not None and not 0 <= boundary <= 1:
        raise ModelCorrupt(f"model_index.json has boundary_ratio={boundary!r}, outside 0..1")
    for item in judge_boundary(facts):
        if item.severity is Severity.ERROR:
            raise item.to_error(facts.root)
    if "transformer" not in components and boundary != 1:
        raise ModelCorrupt(
            f"{facts.root} has the low-noise expert alone, and boundary_ratio={boundary!r} leaves steps to the other",
            hint="download the repository again, all of it",
        )
    return None if boundary is None else float(boundary)


def integer(config: Mapping[str, Any], key: str, default: int, document: str) -> int:
    value = config.get(key, default)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
        raise ModelCorrupt(f"{document} has {key}={value!r}, not a sensible number", hint="download it again")
    return value


def factor(vae: Mapping[str, Any], key: str, default: int) -> int:
    return integer(vae, key, default, "vae/config.json")


def _check_image_encoder(facts: ModelFacts, components: Collection[str], transformer: Mapping[str, Any]) -> None:
    width = transformer.get("image_dim")
    if width is None:
        return
    for name in ("image_encoder", "image_processor"):
        if name not in components:
            raise ModelCorrupt(
                f"the transformer of {facts.root} is given pictures through CLIP, but model_index.json names no {name}",
                hint="download the repository again, all of it",
            )
    given = facts.configs.get("image_encoder", {}).get("hidden_size")
    if isinstance(given, int) and given != width:
        raise ModelInvalid(f"the transformer of {facts.root} takes pictures of width {width}, its CLIP gives {given}")


def _check_experts(facts: ModelFacts, components: Collection[str], transformer: Mapping[str, Any]) -> None:
    if not all(name in components for name in EXPERTS):
        return
    second = facts.configs.get("transformer_2", {})
    for key in _SHARED:
        if second.get(key) != transformer.get(key):
            raise ModelInvalid(
                f"the two experts of {facts.root} differ in {key}: {transformer.get(key)!r} and {second.get(key)!r}"
            )
