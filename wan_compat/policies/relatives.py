"""Wan Animate and the relatives of Wan, which have pipelines of their own in diffusers: rows of pipelines.py's tables.

What their pipelines are called with besides, workers/families.py says. Lucy-Edit's transformer is Wan's own class; the
others have theirs. Where a video goes before what is made (`Context`), how many of its frames are looked at is what the
pipelines can use: SkyReels-V2's authors advise 17, AnyFlow fixes whole chunks of latent frames (1 and 3), Helios keeps
the latents of 3 chunks of 33 frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wan_compat.policies.pipeline_parts import (
    BASE,
    CLIP,
    ONE_IMAGE,
    Context,
    Inputs,
    Pipeline,
    Slot,
    Way,
    Weights,
)


def _transformer(class_name: str, *, optional: bool = False) -> Slot:
    return Slot("diffusers", "diffusers", (class_name,), optional=optional)


def _schedulers(*names: str) -> Slot:
    return Slot("diffusers", "scheduler", names)


_CLIP: Mapping[str, Slot] = {name: dataclasses.replace(slot, optional=False) for name, slot in CLIP.items()}
# SkyReels-V2's repositories name CLIPProcessor, of which the pipeline uses the image half: the same settings file.
_CLIP_OF_SKYREELS: Mapping[str, Slot] = {
    "image_encoder": _CLIP["image_encoder"],
    "image_processor": dataclasses.replace(
        _CLIP["image_processor"],
        classes=(*_CLIP["image_processor"].classes, "CLIPProcessor"),
        instead={"CLIPProcessor": "CLIPImageProcessor"},
    ),
}
_SKYREELS: Mapping[str, Slot] = {
    **BASE,
    "text_encoder": Slot("transformers", "transformers", ("UMT5EncoderModel", "T5EncoderModel")),
    "transformer": _transformer("SkyReelsV2Transformer3DModel"),
}
_FLOW_MAP = {"scheduler": _schedulers("FlowMapEulerDiscreteScheduler")}
_WAN_EXPERTS = {name: _transformer("WanTransformer3DModel", optional=True) for name in ("transformer", "transformer_2")}
_HELIOS: Mapping[str, Slot] = {
    **BASE,
    "scheduler": _schedulers("HeliosScheduler", "HeliosDMDScheduler"),
    "transformer": _transformer("HeliosTransformer3DModel", optional=True),
}

PIPELINES: Mapping[str, Pipeline] = {
    "WanAnimatePipeline": Pipeline(
        {**BASE, **_CLIP, "transformer": _transformer("WanAnimateTransformer3DModel")},
        streams=False,  # a segment of 77 frames begins with the last ones of the segment before, decoded
        min_diffusers="0.36.0",
    ),
    "SkyReelsV2Pipeline": Pipeline(_SKYREELS, min_diffusers="0.35.0"),
    "SkyReelsV2ImageToVideoPipeline": Pipeline({**_SKYREELS, **_CLIP_OF_SKYREELS}, min_diffusers="0.35.0"),
    "SkyReelsV2DiffusionForcingPipeline": Pipeline(_SKYREELS, min_diffusers="0.35.0"),
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": Pipeline(_SKYREELS, min_diffusers="0.35.0"),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": Pipeline(
        _SKYREELS,
        streams=False,  # it joins the given video and the new one
        min_diffusers="0.35.0",
    ),
    "ChronoEditPipeline": Pipeline(
        {**BASE, **_CLIP, "transformer": _transformer("ChronoEditTransformer3DModel")},
        streams=False,  # the way to the edited picture and that picture are decoded apart
        min_diffusers="0.36.0",
    ),
    "LucyEditPipeline": Pipeline(
        {**BASE, **_WAN_EXPERTS}, frozenset({"boundary_ratio", "expand_timesteps"}), min_diffusers="0.36.0"
    ),
    "AnyFlowPipeline": Pipeline(
        {**BASE, **_FLOW_MAP, "transformer": _transformer("AnyFlowTransformer3DModel")}, min_diffusers="0.39.0"
    ),
    "AnyFlowFARPipeline": Pipeline(
        {**BASE, **_FLOW_MAP, "transformer": _transformer("AnyFlowFARTransformer3DModel")},
        min_diffusers="0.39.0",
        size_multiple=32,  # its history has patches of 4x4 latents
    ),
    # Both decode chunk by chunk.
    "HeliosPipeline": Pipeline(_HELIOS, streams=False, min_diffusers="0.37.0"),
    "HeliosPyramidPipeline": Pipeline(
        _HELIOS,
        frozenset({"is_cfg_zero_star", "is_distilled"}),
        streams=False,
        min_diffusers="0.37.0",
        size_multiple=64,  # the coarsest of its three sizes is a quarter
    ),
}

_DRIVEN = Inputs(
    needs=("image", "pose_video", "face_video"),
    takes=("background_video", "mask"),
    only_with={"background_video": "mask", "mask": "background_video"},
)

# AnyFlow's and Helios' kinds of weights, each with its class.
_FLOWS: tuple[tuple[Weights, str], ...] = (("anyflow", "AnyFlowPipeline"), ("anyflow_far", "AnyFlowFARPipeline"))
_HELIOSES: tuple[tuple[Weights, str], ...] = (
    ("helios", "HeliosPipeline"),
    ("helios_pyramid", "HeliosPyramidPipeline"),
    ("helios_distilled", "HeliosPyramidPipeline"),
)
_DF = "SkyReelsV2DiffusionForcing{}Pipeline"
WAYS: tuple[Way, ...] = (
    Way("animate", "animate", "WanAnimatePipeline", _DRIVEN),
    Way("skyreels", "t2v", "SkyReelsV2Pipeline"),
    Way("skyreels_image", "i2v", "SkyReelsV2ImageToVideoPipeline", ONE_IMAGE),
    Way("skyreels_df", "t2v", _DF.format("")),
    Way("skyreels_df", "i2v", _DF.format("ImageToVideo"), ONE_IMAGE),
    Way("skyreels_df", "v2v", _DF.format("VideoToVideo"), Inputs(needs=("video",), context=Context(17, 17))),
    Way("chronoedit", "edit", "ChronoEditPipeline", ONE_IMAGE),
    Way("lucy", "edit", "LucyEditPipeline", Inputs(needs=("video",))),
    *(
        way
        for weights, pipeline in _FLOWS
        for way in (
            Way(weights, "t2v", pipeline),
            Way(weights, "i2v", pipeline, ONE_IMAGE),
            Way(weights, "v2v", pipeline, Inputs(needs=("video",), context=Context(13, 13))),
        )
    ),
    *(
        way
        for weights, pipeline in _HELIOSES
        for way in (
            Way(weights, "t2v", pipeline),
            Way(weights, "i2v", pipeline, ONE_IMAGE),
            Way(weights, "v2v", pipeline, Inputs(needs=("video",), context=Context(33, 99))),
        )
    ),
)
