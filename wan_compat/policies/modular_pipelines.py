"""diffusers' pipelines of modular blocks for Wan: rows of pipelines.py's tables, and which ordinary class each is like.

A modular pipeline takes the parts of an ordinary one, and guiders, which are settings alone. Where there is an ordinary
pipeline for the same parts (`LIKE`), what must fit together is judged by that one's rules; Animate-2 has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wan_compat.policies.pipeline_parts import (
    BASE,
    CLIP,
    ONE_IMAGE,
    TWO_IMAGES,
    Context,
    Inputs,
    Pipeline,
    Slot,
    Way,
    Weights,
)

# Guiders that work with any Wan transformer and have a scale; others want to know the layers to leave out.
GUIDER_CLASSES = (
    "ClassifierFreeGuidance",
    "ClassifierFreeZeroStarGuidance",
    "TangentialClassifierFreeGuidance",
    "AdaptiveProjectedGuidance",
)
_GUIDER = Slot("diffusers", "guider", GUIDER_CLASSES, optional=True)
# Every repository's tokenizer_config.json says which class it is; AutoTokenizer would follow it anywhere.
_BASE: Mapping[str, Slot] = {
    **BASE,
    "tokenizer": dataclasses.replace(
        BASE["tokenizer"],
        classes=(*BASE["tokenizer"].classes, "AutoTokenizer"),
        instead={"AutoTokenizer": "T5TokenizerFast"},
    ),
    "guider": _GUIDER,
}
_CLIP: Mapping[str, Slot] = {name: dataclasses.replace(slot, optional=False) for name, slot in CLIP.items()}


def _transformer(class_name: str) -> Slot:
    return Slot("diffusers", "diffusers", (class_name,))


_ONE = {"transformer": _transformer("WanTransformer3DModel")}
_TWO = {**_ONE, "transformer_2": _transformer("WanTransformer3DModel"), "guider_2": _GUIDER}
_TWO_VACE = {
    "transformer": _transformer("WanVACETransformer3DModel"),
    "transformer_2": _transformer("WanVACETransformer3DModel"),
    "guider_2": _GUIDER,
}
_ANIMATE2 = {
    # Those that take a generator at each step, as the blocks give them one.
    "scheduler": Slot(
        "diffusers",
        "scheduler",
        (
            "FlowMatchEulerDiscreteScheduler",
            "FlowMatchLCMScheduler",
            "FlowMatchHeunDiscreteScheduler",
            "DPMSolverMultistepScheduler",
        ),
    ),
    "image_encoder": _CLIP["image_encoder"],
    "transformer": _transformer("WanAnimate2Transformer3DModel"),
}
_HELIOS = {
    "scheduler": Slot("diffusers", "scheduler", ("HeliosScheduler", "HeliosDMDScheduler")),
    "transformer": _transformer("HeliosTransformer3DModel"),
}
_BOUNDARY = frozenset({"boundary_ratio"})


def _pipeline(
    slots: Mapping[str, Slot], settings: frozenset[str], min_diffusers: str, size_multiple: int = 16
) -> Pipeline:
    return Pipeline(
        {**_BASE, **slots}, settings, streams=False, min_diffusers=min_diffusers, size_multiple=size_multiple
    )


PIPELINES: Mapping[str, Pipeline] = {
    "WanModularPipeline": _pipeline(_ONE, frozenset(), "0.35.0"),
    "Wan22ModularPipeline": _pipeline(_TWO, _BOUNDARY, "0.37.0"),
    "WanImage2VideoModularPipeline": _pipeline({**_ONE, **_CLIP}, frozenset(), "0.37.0"),
    "Wan22Image2VideoModularPipeline": _pipeline(_TWO, _BOUNDARY, "0.37.0"),
    "Wan22VaceModularPipeline": _pipeline(_TWO_VACE, _BOUNDARY, "0.42.0"),  # not in 0.40.0
    "HeliosModularPipeline": _pipeline(_HELIOS, frozenset(), "0.38.0"),  # not in 0.37.0
    "HeliosPyramidModularPipeline": _pipeline(_HELIOS, frozenset(), "0.38.0", size_multiple=64),
    "HeliosPyramidDistilledModularPipeline": _pipeline(_HELIOS, frozenset(), "0.38.0", size_multiple=64),
    "WanAnimate2ModularPipeline": _pipeline(_ANIMATE2, frozenset(), "0.40.0"),
    "WanAnimate2DistilledModularPipeline": _pipeline(_ANIMATE2, frozenset(), "0.40.0"),
}
# The blocks that each class is made of; an index may name others, which would be another pipeline.
BLOCKS: Mapping[str, str] = {
    "WanModularPipeline": "WanBlocks",
    "Wan22ModularPipeline": "Wan22Blocks",
    "WanImage2VideoModularPipeline": "WanImage2VideoAutoBlocks",
    "Wan22Image2VideoModularPipeline": "Wan22Image2VideoBlocks",
    "Wan22VaceModularPipeline": "Wan22VaceBlocks",
    "HeliosModularPipeline": "HeliosAutoBlocks",
    "HeliosPyramidModularPipeline": "HeliosPyramidAutoBlocks",
    "HeliosPyramidDistilledModularPipeline": "HeliosPyramidDistilledAutoBlocks",
    "WanAnimate2ModularPipeline": "WanAnimate2Blocks",
    "WanAnimate2DistilledModularPipeline": "WanAnimate2DistilledBlocks",
}
# The ordinary pipeline of the same parts.
LIKE: Mapping[str, str] = {
    "WanModularPipeline": "WanPipeline",
    "Wan22ModularPipeline": "WanPipeline",
    "WanImage2VideoModularPipeline": "WanImageToVideoPipeline",
    "Wan22Image2VideoModularPipeline": "WanImageToVideoPipeline",
    "Wan22VaceModularPipeline": "WanVACEPipeline",
    "HeliosModularPipeline": "HeliosPipeline",
    "HeliosPyramidModularPipeline": "HeliosPyramidPipeline",
    "HeliosPyramidDistilledModularPipeline": "HeliosPyramidPipeline",
}
# What an ordinary index says besides the parts, and the modular one by its class.
LIKE_SETTINGS: Mapping[str, Mapping[str, bool]] = {"HeliosPyramidDistilledModularPipeline": {"is_distilled": True}}
# Weights are those of the ordinary pipelines; these ways are the modular classes' own, told apart by the class.
KINDS: Mapping[tuple[str, Weights], Weights] = {
    ("WanModularPipeline", "text"): "modular_text",
    ("Wan22ModularPipeline", "text_only"): "modular_text_2",
    ("WanImage2VideoModularPipeline", "image_clip"): "modular_image",
    ("WanImage2VideoModularPipeline", "image_pair"): "modular_pair",
    ("Wan22Image2VideoModularPipeline", "image"): "modular_image_2",
    ("Wan22VaceModularPipeline", "vace"): "modular_vace",
    ("HeliosModularPipeline", "helios"): "modular_helios",
    ("HeliosPyramidModularPipeline", "helios_pyramid"): "modular_helios_pyramid",
    ("HeliosPyramidDistilledModularPipeline", "helios_distilled"): "modular_helios_distilled",
}
_CONTROL = Inputs(
    takes=("mask",), one_of=("video", "reference"), only_with={"mask": "video"}, options=("conditioning_scale",)
)
_DRIVEN = Inputs(needs=("image", "video"))
_HELIOSES: tuple[tuple[Weights, str], ...] = (
    ("modular_helios", "HeliosModularPipeline"),
    ("modular_helios_pyramid", "HeliosPyramidModularPipeline"),
    ("modular_helios_distilled", "HeliosPyramidDistilledModularPipeline"),
)

WAYS: tuple[Way, ...] = (
    Way("modular_text", "t2v", "WanModularPipeline"),
    Way("modular_text_2", "t2v", "Wan22ModularPipeline"),
    Way("modular_image", "i2v", "WanImage2VideoModularPipeline", ONE_IMAGE),
    Way("modular_pair", "flf2v", "WanImage2VideoModularPipeline", TWO_IMAGES),
    Way("modular_image_2", "i2v", "Wan22Image2VideoModularPipeline", ONE_IMAGE),
    Way("modular_vace", "t2v", "Wan22VaceModularPipeline"),
    Way("modular_vace", "vace", "Wan22VaceModularPipeline", _CONTROL),
    *(
        way
        for weights, pipeline in _HELIOSES
        for way in (
            Way(weights, "t2v", pipeline),
            Way(weights, "i2v", pipeline, ONE_IMAGE),
            Way(weights, "v2v", pipeline, Inputs(needs=("video",), context=Context(33, 99))),
        )
    ),
    Way("animate2", "animate", "WanAnimate2ModularPipeline", _DRIVEN),
    Way("animate2_distilled", "animate", "WanAnimate2DistilledModularPipeline", _DRIVEN),
)
