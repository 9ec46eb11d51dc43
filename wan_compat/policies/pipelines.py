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
from typing import Literal

from wan_compat.policies.admission import Kind
from wan_compat.protocol.media import MediaRole
from wan_compat.protocol.values import TaskName

# What a transformer was trained to be given beside the noise.
Weights = Literal[
    "text",  # Wan 2.1 text to video: one transformer, latents in, latents out
    "text_only",  # the same where WanVideoToVideoPipeline cannot follow: two experts, or a VAE of another factor
    "text_image",  # TI2V-5B: a picture takes the place of the first latent frame (expand_timesteps)
    "image_clip",  # Wan 2.1 image to video: mask and picture as channels, and CLIP's embedding of the picture
    "image_pair",  # Wan 2.1 first and last frame: CLIP's embeddings of both, with a position for each
    "image",  # Wan 2.2 image to video: channels only, for one picture or two
    "vace",  # control video, mask and references through blocks of their own
]
Option = Literal["strength", "conditioning_scale"]

# transformers 5 saves a T5 tokenizer as TokenizersBackend, real Wan repositories say T5TokenizerFast or T5Tokenizer:
# all three are the same file format.
_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast", "TokenizersBackend", "PreTrainedTokenizerFast")
_SCHEDULERS = (
    "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "FlowMatchHeunDiscreteScheduler",
)
_IMAGE_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")


@dataclasses.dataclass(frozen=True)
class Slot:
    """A part that a pipeline takes: by whose rules it is loaded, and the classes that are imported for it."""

    library: Literal["diffusers", "transformers"]
    kind: Kind
    classes: tuple[str, ...]
    optional: bool = False

    @property
    def has_weights(self) -> bool:
        return self.kind in ("diffusers", "transformers")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A class of diffusers. `settings` are those of its index that are handed over; `streams` says that frames may
    leave the VAE one by one; `min_diffusers` is the first release that has it."""

    slots: Mapping[str, Slot]
    settings: frozenset[str] = frozenset()
    streams: bool = True
    min_diffusers: str = "0.33.0"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Pictures and videos of a task: all of `needs`, one of `one_of` at least, and `takes` besides.

    A role in `only_with` makes no sense without the other one; `options` are the numbers that a user may set.
    """

    needs: tuple[MediaRole, ...] = ()
    takes: tuple[MediaRole, ...] = ()
    one_of: tuple[MediaRole, ...] = ()
    only_with: Mapping[MediaRole, MediaRole] = dataclasses.field(default_factory=dict)
    options: tuple[Option, ...] = ()

    @property
    def known(self) -> frozenset[MediaRole]:
        return frozenset((*self.needs, *self.takes, *self.one_of))


@dataclasses.dataclass(frozen=True)
class Way:
    """One thing that weights of a kind can be made to do, and the class that does it."""

    weights: Weights
    task: TaskName
    pipeline: str
    inputs: Inputs = Inputs()


_BASE: Mapping[str, Slot] = {
    "tokenizer": Slot("transformers", "tokenizer", _TOKENIZERS),
    "text_encoder": Slot("transformers", "transformers", ("UMT5EncoderModel",)),
    "vae": Slot("diffusers", "diffusers", ("AutoencoderKLWan",)),
    "scheduler": Slot("diffusers", "scheduler", _SCHEDULERS),
}
# One of the two must be there (model_fit.py): diffusers takes either as None.
_EXPERTS: Mapping[str, Slot] = {
    "transformer": Slot("diffusers", "diffusers", ("WanTransformer3DModel",), optional=True),
    "transformer_2": Slot("diffusers", "diffusers", ("WanTransformer3DModel",), optional=True),
}
_VACE_EXPERTS: Mapping[str, Slot] = {
    name: dataclasses.replace(slot, classes=("WanVACETransformer3DModel",)) for name, slot in _EXPERTS.items()
}
_CLIP: Mapping[str, Slot] = {
    "image_encoder": Slot(
        "transformers", "transformers", ("CLIPVisionModel", "CLIPVisionModelWithProjection"), optional=True
    ),
    "image_processor": Slot("transformers", "image_processor", _IMAGE_PROCESSORS, optional=True),
}
_EXPERT_SETTINGS = frozenset({"boundary_ratio"})

PIPELINES: Mapping[str, Pipeline] = {
    "WanPipeline": Pipeline({**_BASE, **_EXPERTS}, _EXPERT_SETTINGS | {"expand_timesteps"}),
    "WanImageToVideoPipeline": Pipeline({**_BASE, **_EXPERTS, **_CLIP}, _EXPERT_SETTINGS | {"expand_timesteps"}),
    "WanVideoToVideoPipeline": Pipeline(
        {**_BASE, "transformer": dataclasses.replace(_EXPERTS["transformer"], optional=False)}
    ),
    "WanVACEPipeline": Pipeline({**_BASE, **_VACE_EXPERTS}, _EXPERT_SETTINGS, min_diffusers="0.34.0"),
}

_ONE_IMAGE = Inputs(needs=("image",))
_TWO_IMAGES = Inputs(needs=("image", "last_image"))
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
    Way("text_image", "i2v", "WanImageToVideoPipeline", _ONE_IMAGE),
    Way("text_image", "ti2v", "WanImageToVideoPipeline", _ONE_IMAGE),
    Way("text_image", "ti2v", "WanPipeline"),
    Way("text_image", "t2i", "WanPipeline"),
    Way("image_clip", "i2v", "WanImageToVideoPipeline", _ONE_IMAGE),
    Way("image_pair", "flf2v", "WanImageToVideoPipeline", _TWO_IMAGES),
    Way("image", "i2v", "WanImageToVideoPipeline", _ONE_IMAGE),
    Way("image", "flf2v", "WanImageToVideoPipeline", _TWO_IMAGES),
    Way("vace", "t2v", "WanVACEPipeline"),
    Way("vace", "vace", "WanVACEPipeline", _CONTROL),
    Way("vace", "t2i", "WanVACEPipeline"),
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
