"""The pipelines of diffusers that run here: their parts, what each does with which weights, and what it is given.

    PIPELINES   class -> the parts it takes, each with the classes that are admitted, and its settings
    WAYS        weights, task -> class, with the pictures and videos that it needs or takes

Weights are told apart by the transformer alone (`Weights`): the same file layout runs in several classes, and one class
runs several kinds of weights. docs/tasks.md shows the table for people; tests compare the two, and the parts with the
signatures of diffusers' classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wan_compat.policies import modular_pipelines, relatives
from wan_compat.policies.admission import Kind
from wan_compat.policies.pipeline_parts import BASE, CLIP, ONE_IMAGE, TWO_IMAGES
from wan_compat.policies.pipeline_parts import Inputs as Inputs
from wan_compat.policies.pipeline_parts import Option as Option
from wan_compat.policies.pipeline_parts import Pipeline as Pipeline
from wan_compat.policies.pipeline_parts import Slot as Slot
from wan_compat.policies.pipeline_parts import Way as Way
from wan_compat.policies.pipeline_parts import Weights as Weights

# One of the two must be there (model_fit.py): diffusers takes either as None.
_EXPERTS: Mapping[str, Slot] = {
    "transformer": Slot("diffusers", "diffusers", ("WanTransformer3DModel",), optional=True),
    "transformer_2": Slot("diffusers", "diffusers", ("WanTransformer3DModel",), optional=True),
}
_VACE_EXPERTS: Mapping[str, Slot] = {
    name: dataclasses.replace(slot, classes=("WanVACETransformer3DModel",)) for name, slot in _EXPERTS.items()
}
_EXPERT_SETTINGS = frozenset({"boundary_ratio"})

PIPELINES: Mapping[str, Pipeline] = {
    "WanPipeline": Pipeline({**BASE, **_EXPERTS}, _EXPERT_SETTINGS | {"expand_timesteps"}),
    "WanImageToVideoPipeline": Pipeline({**BASE, **_EXPERTS, **CLIP}, _EXPERT_SETTINGS | {"expand_timesteps"}),
    "WanVideoToVideoPipeline": Pipeline(
        {**BASE, "transformer": dataclasses.replace(_EXPERTS["transformer"], optional=False)}
    ),
    "WanVACEPipeline": Pipeline({**BASE, **_VACE_EXPERTS}, _EXPERT_SETTINGS, min_diffusers="0.34.0"),
    **relatives.PIPELINES,
    **modular_pipelines.PIPELINES,
}

_SOURCE_VIDEO = Inputs(needs=("video",), options=("strength",))
_CONTROL = Inputs(
    takes=("mask",), one_of=("video", "reference"), only_with={"mask": "video"}, options=("conditioning_scale",)
)

# For each kind of weights, the usual task first: it is what runs where neither task nor media were given.
WAYS: tuple[Way, ...] = (
    Way("text", "t2v", "WanPipeline"),
    Way("text", "v2v", "WanVideoToVideoPipeline", _SOURCE_VIDEO),
    Way("text", "t2i", "WanPipeline"),
    Way("text_only", "t2v", "WanPipeline"),
    Way("text_only", "t2i", "WanPipeline"),
    Way("text_image", "t2v", "WanPipeline"),
    Way("text_image", "i2v", "WanImageToVideoPipeline", ONE_IMAGE),
    Way("text_image", "ti2v", "WanImageToVideoPipeline", ONE_IMAGE),
    Way("text_image", "ti2v", "WanPipeline"),
    Way("text_image", "t2i", "WanPipeline"),
    Way("image_clip", "i2v", "WanImageToVideoPipeline", ONE_IMAGE),
    Way("image_pair", "flf2v", "WanImageToVideoPipeline", TWO_IMAGES),
    Way("image", "i2v", "WanImageToVideoPipeline", ONE_IMAGE),
    Way("image", "flf2v", "WanImageToVideoPipeline", TWO_IMAGES),
    Way("vace", "t2v", "WanVACEPipeline"),
    Way("vace", "vace", "WanVACEPipeline", _CONTROL),
    Way("vace", "t2i", "WanVACEPipeline"),
    *relatives.WAYS,
    *modular_pipelines.WAYS,
)


def _by_name() -> Mapping[str, tuple[str, tuple[str, ...]]]:
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for pipeline in PIPELINES.values():
        for name, slot in pipeline.slots.items():
            _, before = found.get(name, (slot.library, ()))
            found[name] = (slot.library, tuple(dict.fromkeys((*before, *slot.classes))))
    return found


# Component -> its library and the classes that it has in any pipeline.
ADMITTED_CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = _by_name()
# Library and class -> by whose rules a part of this class is loaded, whatever the pipeline.
KNOWN_CLASSES: Mapping[tuple[str, str], Kind] = {
    (slot.library, name): slot.kind
    for pipeline in PIPELINES.values()
    for slot in pipeline.slots.values()
    for name in slot.classes
    if name not in slot.instead
}


def ways_of(weights: Weights) -> tuple[Way, ...]:
    """Return what weights of this kind can do, the usual first."""
    return tuple(way for way in WAYS if way.weights == weights)


def ways_through(pipeline: str) -> tuple[Way, ...]:
    """Return what a class does, each task once: for weights whose kind cannot be told (a repository's own classes)."""
    found: dict[tuple[str, tuple[str, ...]], Way] = {}
    for way in WAYS:
        if way.pipeline == pipeline:
            found.setdefault((way.task, way.inputs.needs), way)
    return tuple(found.values())
