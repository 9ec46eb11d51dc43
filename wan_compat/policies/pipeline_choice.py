"""Which pipeline class runs a model, from the marks of its index: the transformer decides, the index' own word only
chooses among what the transformer allows.

The index may be wrong (ChronoEdit's says image-to-video, re-saved models name what they were loaded with), and for
relatives of SkyReels-V2 it is all there is.
"""

from __future__ import annotations

import dataclasses

from wan_compat.policies.architecture import ArchitectureSignature
from wan_compat.policies.detection.classes import (
    FOREIGN_WAN_PIPELINES,
    KIND_OF_CLASS,
    LOOK_ALIKE_PIPELINES,
    WAN_PIPELINES,
)

# Kinds of transformer whose pipelines differ by task only, first one the usual; the index may name any of them.
_OF_KIND = {
    "vace": ("WanVACEPipeline", "Wan22VaceModularPipeline"),
    "animate": ("WanAnimatePipeline",),
    "animate2": ("WanAnimate2ModularPipeline", "WanAnimate2DistilledModularPipeline"),
    "chronoedit": ("ChronoEditPipeline",),
    "anyflow": ("AnyFlowPipeline",),
    "anyflow_far": ("AnyFlowFARPipeline",),
    "helios": ("HeliosPipeline", *(name for name in WAN_PIPELINES if name.startswith("Helios"))),
}
# in_channels, out_channels of WanTransformer3DModel -> the same.
_OF_CHANNELS = {
    (16, 16): ("WanPipeline", "WanVideoToVideoPipeline", "WanModularPipeline", "Wan22ModularPipeline"),
    (48, 48): ("WanPipeline", "WanImageToVideoPipeline"),
    (36, 16): (
        "WanImageToVideoPipeline",
        "ChronoEditPipeline",
        "WanImage2VideoModularPipeline",
        "Wan22Image2VideoModularPipeline",
    ),
    (96, 48): ("LucyEditPipeline",),
}


@dataclasses.dataclass(frozen=True)
class PipelineChoice:
    """`pipeline_class` is None where diffusers has none; `reason` says what decided."""

    pipeline_class: str | None
    reason: str


def choose_pipeline(signature: ArchitectureSignature) -> PipelineChoice:
    """Choose the class of diffusers that runs a model with these marks."""
    transformer = signature.component_classes.get("transformer")
    kind = KIND_OF_CLASS.get(transformer or "")
    named = signature.pipeline_class
    own_name = (named or "").rpartition(".")[2]
    if own_name in LOOK_ALIKE_PIPELINES or own_name in FOREIGN_WAN_PIPELINES:
        return PipelineChoice(None, f"{own_name} is another program's pipeline: diffusers would sample wrongly")
    if kind is None:
        return PipelineChoice(None, f"the transformer {transformer or '(none)'} is neither Wan's nor a relative's")
    if kind == "skyreels":
        return _skyreels(signature)
    if kind == "wan":
        return _wan(signature)
    if kind in _OF_KIND:
        return _among(_OF_KIND[kind], named, f"the transformer is {transformer}")
    return PipelineChoice(None, f"diffusers has no pipeline for {transformer}")


def _wan(signature: ArchitectureSignature) -> PipelineChoice:
    config = signature.transformer_config
    channels = (config.get("in_channels"), config.get("out_channels"))
    if channels in _OF_CHANNELS:
        return _among(_OF_CHANNELS[channels], signature.pipeline_class, f"the transformer's channels are {channels}")
    if isinstance(channels[0], int) and channels[0] == channels[1]:  # of a size of its own, such as the demo's 12
        return _among(_OF_CHANNELS[16, 16], signature.pipeline_class, f"it gives the {channels[0]} channels it takes")
    if channels != (None, None):
        return PipelineChoice(None, f"diffusers has no pipeline for a Wan transformer with channels {channels}")
    # Without the transformer's configuration the index' word is the best there is.
    known = {name for names in _OF_CHANNELS.values() for name in names}
    if signature.pipeline_class in known:
        return PipelineChoice(signature.pipeline_class, "the index names it; the transformer's channels are not known")
    if "image_encoder" in signature.component_classes:
        return PipelineChoice("WanImageToVideoPipeline", "there is an image encoder")
    return PipelineChoice("WanPipeline", "nothing says otherwise; the transformer's channels are not known")


def _skyreels(signature: ArchitectureSignature) -> PipelineChoice:
    named = signature.pipeline_class or ""
    if named.startswith("SkyReelsV2") and named in WAN_PIPELINES:
        return PipelineChoice(named, "the index names it")
    if "image_encoder" in signature.component_classes:
        return PipelineChoice("SkyReelsV2ImageToVideoPipeline", "there is an image encoder")
    # Text-to-video and diffusion forcing have the same configuration; guessing would sample wrongly without a word.
    return PipelineChoice(None, "the index does not name the pipeline, and SkyReels-V2's files do not tell them apart")


def _among(candidates: tuple[str, ...], named: str | None, reason: str) -> PipelineChoice:
    if named in candidates:
        return PipelineChoice(named, f"{reason}, and the index names it")
    return PipelineChoice(candidates[0], reason)
