"""Decision table: from a denoiser's kind, size and channels to the variants that it can be.

Kind first (class and extra layers), then channels, then the rest. A row that leaves a column None does not look at it;
a fact that is not known fits every row, so that little knowledge gives many candidates instead of a wrong answer.
"""

from __future__ import annotations

import dataclasses

from wan_compat.policies.architecture import ArchitectureType
from wan_compat.policies.detection.traits import Traits

# Width -> size; blocks that such a model has.
SIZES = {1536: ("1.3b", 30), 3072: ("5b", 30), 5120: ("14b", 40)}


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """What the rows look at. None: not known."""

    kind: str
    dim: int | None
    in_channels: int | None
    out_channels: int | None
    experts: int
    image: bool | None
    last_image: bool | None
    reference: bool | None

    @property
    def size(self) -> str | None:
        """The size that the width stands for; "other" for a width that no known model has."""
        return None if self.dim is None else SIZES.get(self.dim, ("other", 0))[0]


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of model. `slugs` cannot be told apart by files, likeliest first; `named` joins them only when a name
    or a foreign pipeline speaks of it: fine-tunes of which there is no end."""

    kind: str
    size: str | None
    channels: tuple[int | None, int | None]
    slugs: tuple[str, ...]
    named: tuple[str, ...] = ()
    experts: int | None = None
    image: bool | None = None
    last_image: bool | None = None
    reference: bool | None = None


_T2V_14B = ("wan2.1-t2v-14b", "wan2.2-t2v-a14b", "krea-realtime-video", "bernini-r")
_T2V_14B_NAMED = (
    "fastwan2.1-t2v-14b",
    "wan2.1-vsa-t2v-14b-720p",
    "skyreels-v2-t2v-14b-540p",
    "skyreels-v2-t2v-14b-720p",
    "skyreels-v2-df-14b-540p",
    "skyreels-v2-df-14b-720p",
    "skyreels-v3-v2v-14b",
)
_I2V_14B = ("wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p", "chronoedit-14b", "wan2.1-fun-14b-inp")
_I2V_14B_NAMED = ("skyreels-v2-i2v-14b-540p", "skyreels-v2-i2v-14b-720p", "chronoedit-14b-flashpack")
_SKYREELS_T2V = (
    "skyreels-v2-df-14b-540p",
    "skyreels-v2-df-14b-720p",
    "skyreels-v2-t2v-14b-540p",
    "skyreels-v2-t2v-14b-720p",
)
_TURBO = ("turbowan2.2-i2v-a14b", "causalwan2.2-i2v-a14b-preview")

ROWS = (
    Row("wan", "1.3b", (16, 16), ("wan2.1-t2v-1.3b",), ("fastwan2.1-t2v-1.3b", "skyreels-v2-df-1.3b-540p")),
    Row("wan", "14b", (16, 16), _T2V_14B, _T2V_14B_NAMED, experts=1),
    Row("wan", "14b", (16, 16), ("wan2.2-t2v-a14b",), experts=2),
    Row("wan", "14b", (36, 16), _I2V_14B, _I2V_14B_NAMED, experts=1, image=True, last_image=False),
    Row("wan", "14b", (36, 16), ("wan2.1-flf2v-14b-720p",), experts=1, image=True, last_image=True),
    Row("wan", "14b", (36, 16), ("wan2.2-i2v-a14b",), _TURBO, experts=1, image=False),
    Row("wan", "14b", (36, 16), ("wan2.2-i2v-a14b",), _TURBO, experts=2),
    Row("wan", "1.3b", (36, 16), ("wan2.1-fun-1.3b-inp", "skyreels-v2-i2v-1.3b-540p"), ("rose",)),
    Row("wan", "5b", (48, 48), ("wan2.2-ti2v-5b", "fastwan2.2-ti2v-5b-fullattn")),
    Row("wan", "5b", (96, 48), ("lucy-edit-dev",), ("lucy-edit-1.1-dev",)),
    Row("wan", "5b", (100, 48), ("wan2.2-fun-5b-inp",)),
    Row("vace", "1.3b", (None, 16), ("wan2.1-vace-1.3b",)),
    Row("vace", "14b", (None, 16), ("wan2.1-vace-14b", "wan2.2-vace-fun-14b"), experts=1),
    Row("vace", "14b", (None, 16), ("wan2.2-vace-fun-14b",), experts=2),
    Row("animate", "14b", (36, 16), ("wan2.2-animate-14b",)),
    Row("animate2", "14b", (36, 16), ("wan2.2-animate-2-14b", "wan2.2-animate-2-14b-distilled")),
    Row("s2v", "14b", (16, 16), ("wan2.2-s2v-14b",)),
    Row("control", "1.3b", (48, 16), ("wan2.1-fun-1.3b-control",), reference=False),
    Row("control", "1.3b", (48, 16), ("wan2.1-fun-v1.1-1.3b-control",), reference=True),
    Row("control", "14b", (48, 16), ("wan2.1-fun-14b-control",), reference=False),
    Row("control", "14b", (48, 16), ("wan2.1-fun-v1.1-14b-control",), reference=True),
    Row("control", "14b", (52, 16), ("wan2.2-fun-a14b-control",)),
    Row("control", "5b", (None, 48), ("wan2.2-fun-5b-control",)),
    Row("camera", "14b", (32, 16), ("wan2.1-fun-v1.1-14b-control-camera",)),
    Row("camera", "14b", (36, 16), ("wan2.2-fun-a14b-control-camera",)),
    Row("camera", "5b", (100, 48), ("wan2.2-fun-5b-control-camera",)),
    Row("skyreels", "1.3b", (16, 16), ("skyreels-v2-df-1.3b-540p",)),
    Row("skyreels", "14b", (16, 16), _SKYREELS_T2V),
    Row("skyreels", "14b", (36, 16), ("skyreels-v2-i2v-14b-540p", "skyreels-v2-i2v-14b-720p")),
    Row("skyreels", "1.3b", (36, 16), ("skyreels-v2-i2v-1.3b-540p",)),
    Row("chronoedit", "14b", (36, 16), ("chronoedit-14b",), ("chronoedit-14b-flashpack",)),
    Row("anyflow", "1.3b", (16, 16), ("anyflow-wan2.1-t2v-1.3b",)),
    Row("anyflow", "14b", (16, 16), ("anyflow-wan2.1-t2v-14b",)),
    Row("anyflow_far", "1.3b", (16, 16), ("anyflow-far-wan2.1-1.3b",)),
    Row("anyflow_far", "14b", (16, 16), ("anyflow-far-wan2.1-14b",)),
    Row("helios", None, (16, 16), ("helios-base", "helios-mid", "helios-distilled")),
    Row("krea", None, (16, 16), ("krea-realtime-video",)),
    Row("causal", "14b", (16, 16), ("krea-realtime-video",)),
    Row("causal", "14b", (36, 16), ("causalwan2.2-i2v-a14b-preview",)),
    Row("action", None, (None, None), ("wan-va",)),
)


@dataclasses.dataclass(frozen=True)
class Outline:
    """What the shape says where no known variant has it: a relation of channels instead of their number."""

    architecture_type: ArchitectureType
    version: str | None
    model: str | None  # the variant whose pipeline and capabilities it shares


def denoiser_of(traits: Traits, experts: int, *, clip_beside: bool | None) -> Denoiser:
    """Return the facts that the rows look at. `clip_beside`: whether an image encoder stands beside it, where known."""
    image = traits.feature("image_embedder")
    if image is None and clip_beside:
        image = True
    kind, reference = traits.kind, traits.feature("ref_conv")
    into, out = traits.size("in_channels"), traits.size("out_channels")
    if kind in ("wan", "control"):
        # By channels alone: control latents beside the noise, without extra layers.
        if into == 32 and out == 16:
            kind = "camera"
        elif (into in (48, 52) and out == 16) or (out == 48 and into is not None and into > 100):
            kind = "control"
    return Denoiser(
        kind=kind,
        dim=traits.size("dim"),
        in_channels=into,
        out_channels=out,
        experts=experts,
        image=image,
        last_image=traits.feature("pos_embed"),
        reference=False if reference is None and traits.config is not None else reference,
    )


def rows_of(denoiser: Denoiser) -> tuple[Row, ...]:
    """Return the rows that fit all that is known."""
    return tuple(row for row in ROWS if _fits(row, denoiser))


def _fits(row: Row, denoiser: Denoiser) -> bool:
    if row.kind != denoiser.kind or (row.experts is not None and row.experts != denoiser.experts):
        return False
    for wanted, known in (
        (row.size, denoiser.size),
        (row.channels[0], denoiser.in_channels),
        (row.channels[1], denoiser.out_channels),
        (row.image, denoiser.image),
        (row.last_image, denoiser.last_image),
        (row.reference, denoiser.reference),
    ):
        if wanted is not None and known is not None and wanted != known:
            return False
    return True


_OUTLINES: dict[str, Outline] = {
    "vace": Outline("wan_vace", "2.1", "wan2.1-vace-14b"),
    "animate": Outline("wan_animate", "2.2", "wan2.2-animate-14b"),
    "animate2": Outline("wan_animate", "2.2", "wan2.2-animate-2-14b"),
    "s2v": Outline("wan_s2v", "2.2", "wan2.2-s2v-14b"),
    "skyreels": Outline("wan_family", "2.1", "skyreels-v2-t2v-14b-540p"),
    "chronoedit": Outline("wan_family", "2.1", "chronoedit-14b"),
    "anyflow": Outline("wan_family", "2.1", "anyflow-wan2.1-t2v-14b"),
    "anyflow_far": Outline("wan_family", "2.1", "anyflow-far-wan2.1-14b"),
    "helios": Outline("wan_family", "2.1", "helios-base"),
    "camera": Outline("wan_family", None, "wan2.1-fun-v1.1-14b-control-camera"),
    "control": Outline("wan_family", None, "wan2.1-fun-14b-control"),
}


def outline_of(denoiser: Denoiser, *, expand_timesteps: bool) -> Outline:
    """Return what a Wan denoiser of unknown size is, from the relation of its channels.

    Text to video takes the noise only (in = out); image to video adds a mask of 4 and the image's latents
    (in = 2 * out + 4); Lucy adds the video's latents (in = 2 * out).
    """
    if denoiser.kind != "wan":
        outline = _OUTLINES.get(denoiser.kind, Outline("wan_family", None, None))
        if denoiser.kind == "vace" and denoiser.experts == 2:
            return Outline("wan_vace", "2.2", "wan2.2-vace-fun-14b")
        return outline
    into, out = denoiser.in_channels, denoiser.out_channels
    if into is None or out is None:
        return Outline("wan_family", None, None)
    if into == out:
        if expand_timesteps or out == 48:
            return Outline("wan_ti2v", "2.2", "wan2.2-ti2v-5b")
        return Outline("wan_t2v", *(("2.2", "wan2.2-t2v-a14b") if denoiser.experts == 2 else ("2.1", "wan2.1-t2v-14b")))
    if into == 2 * out + 4:
        if denoiser.experts == 2 or denoiser.image is False:
            return Outline("wan_i2v", "2.2", "wan2.2-i2v-a14b")
        if denoiser.last_image:
            return Outline("wan_flf2v", "2.1", "wan2.1-flf2v-14b-720p")
        return Outline("wan_i2v", "2.1", "wan2.1-i2v-14b-480p")
    return Outline("wan_family", None, "lucy-edit-dev" if into == 2 * out else None)
