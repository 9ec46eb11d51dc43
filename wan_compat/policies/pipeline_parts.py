"""What the table of pipelines.py consists of, and the parts that most pipelines have in common."""

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
    "animate",  # a character's picture, with videos of poses and of a face
    "skyreels",  # SkyReels-V2 text to video
    "skyreels_image",  # SkyReels-V2 image to video, as image_clip
    "skyreels_df",  # SkyReels-V2 diffusion forcing: any frame may be given, so it continues pictures and videos
    "chronoedit",  # as image_clip: a picture, and the frames that lead to its edited form
    "lucy",  # the latents of a video to edit as channels
    "anyflow",  # few steps; given frames stay as they are
    "anyflow_far",  # the same, chunk by chunk
    "helios",  # chunk by chunk, with the history at three resolutions
    "helios_pyramid",  # the same, each chunk from coarse to fine
    "helios_distilled",  # the same in two steps for each size
    # As text, text_only, image_clip, image_pair, image, vace and Helios' three, through diffusers' modular blocks.
    "modular_text",
    "modular_text_2",
    "modular_image",
    "modular_pair",
    "modular_image_2",
    "modular_vace",
    "modular_helios",
    "modular_helios_pyramid",
    "modular_helios_distilled",
    "animate2",  # a character's picture and the video that it follows
    "animate2_distilled",  # the same in 10 steps without guidance
]
Option = Literal["strength", "conditioning_scale"]

# transformers 5 saves a T5 tokenizer as TokenizersBackend, real Wan repositories say T5TokenizerFast or T5Tokenizer:
# all three are the same file format.
TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast", "TokenizersBackend", "PreTrainedTokenizerFast")
SCHEDULERS = (
    "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "FlowMatchHeunDiscreteScheduler",
)
IMAGE_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")


@dataclasses.dataclass(frozen=True)
class Slot:
    """A part that a pipeline takes: by whose rules it is loaded, and the classes that are imported for it.

    `instead` has the classes in whose place another one is imported that reads the same file.
    """

    library: Literal["diffusers", "transformers"]
    kind: Kind
    classes: tuple[str, ...]
    optional: bool = False
    instead: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def has_weights(self) -> bool:
        return self.kind in ("diffusers", "transformers")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A class of diffusers. `settings` are those of its index that are handed over; `min_diffusers` is the first
    release that has it; height and width must divide by `size_multiple`.

    `streams` says that frames may leave the VAE one by one. Others decode on their way, in segments that the next one
    begins with, or several times: their frames are those that they return.
    """

    slots: Mapping[str, Slot]
    settings: frozenset[str] = frozenset()
    streams: bool = True
    min_diffusers: str = "0.33.0"
    size_multiple: int = 16


@dataclasses.dataclass(frozen=True)
class Context:
    """How many frames of a video are taken from its end: `at_least`, and no more than `at_most`."""

    at_least: int
    at_most: int


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Pictures and videos of a task: all of `needs`, one of `one_of` at least, and `takes` besides.

    A role in `only_with` makes no sense without the other one; `options` are the numbers that a user may set;
    `context` says that a video is what goes before: its last frames are taken, and not one for each frame.
    """

    needs: tuple[MediaRole, ...] = ()
    takes: tuple[MediaRole, ...] = ()
    one_of: tuple[MediaRole, ...] = ()
    only_with: Mapping[MediaRole, MediaRole] = dataclasses.field(default_factory=dict)
    options: tuple[Option, ...] = ()
    context: Context | None = None

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


BASE: Mapping[str, Slot] = {
    "tokenizer": Slot("transformers", "tokenizer", TOKENIZERS),
    "text_encoder": Slot("transformers", "transformers", ("UMT5EncoderModel",)),
    "vae": Slot("diffusers", "diffusers", ("AutoencoderKLWan",)),
    "scheduler": Slot("diffusers", "scheduler", SCHEDULERS),
}
CLIP: Mapping[str, Slot] = {
    "image_encoder": Slot(
        "transformers", "transformers", ("CLIPVisionModel", "CLIPVisionModelWithProjection"), optional=True
    ),
    "image_processor": Slot("transformers", "image_processor", IMAGE_PROCESSORS, optional=True),
}

ONE_IMAGE = Inputs(needs=("image",))
TWO_IMAGES = Inputs(needs=("image", "last_image"))
