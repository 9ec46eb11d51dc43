"""What detection must say about each entry of the corpus, derived from the published data and diffusers' source.

An answer is right when every field is, or when it is honest: several variants whose files are alike (`ALIKE`) may be
answered by any of them, with its own type, version and pipeline, as long as the true one is among `candidates`.
Fine-tunes which only their name tells from an official model may carry the official one's slug.
"""

from __future__ import annotations

import dataclasses

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.variants import VARIANTS


@dataclasses.dataclass(frozen=True)
class Expected:
    """`None` in a tuple means that the field may be null; an empty tuple, that the field is not judged.

    `variant` is the truth, "" where the vocabulary has no name for it. `base` are slugs that are right as well.
    `alike` are the slugs that may stand in `candidates` at all: naming everything is no answer.
    """

    is_wan: tuple[bool | None, ...]
    types: tuple[str, ...]
    layouts: tuple[str, ...]
    variant: str = ""
    base: tuple[str, ...] = ()
    alike: frozenset[str] = frozenset()
    versions: tuple[str | None, ...] = ()
    pipelines: tuple[str | None, ...] = ()
    vae: tuple[int, ...] = ()
    loadable: bool | None = None

    def wrong(self, found: Architecture) -> list[str]:
        """Return what is wrong with an answer, in words; nothing for a right one."""
        problems = []

        def judge(name: str, value: object, allowed: tuple[object, ...]) -> None:
            if allowed and value not in allowed:
                problems.append(f"{name} {value!r}, expected {' or '.join(map(repr, allowed))}")

        judge("is_wan", found.is_wan, self.is_wan)
        judge("layout", found.layout, self.layouts)
        judge("vae_dimensions", found.vae_dimensions, self.vae)
        exact = found.variant in (self.variant or None, *self.base)
        if self.variant and not exact and self.variant in found.candidates and found.variant in found.candidates:
            # An honest choice among look-alikes: it has to be whole.
            chosen = VARIANTS[found.variant]
            judge("architecture_type", found.architecture_type, (chosen.architecture_type,))
            judge("version", found.version, (chosen.version,))
            judge("pipeline_class", found.pipeline_class, (chosen.pipeline_class, None))
        else:
            if self.variant and not exact:
                problems.append(f"variant {found.variant!r}, candidates {found.candidates}, expected {self.variant!r}")
            judge("architecture_type", found.architecture_type, self.types)
            judge("version", found.version, self.versions)
            judge("pipeline_class", found.pipeline_class, self.pipelines)
        stray = set(found.candidates) - self.alike - {self.variant, *self.base}
        if self.alike and stray:
            problems.append(f"candidates that the files rule out: {sorted(stray)}")
        if not 0 <= found.confidence <= 1:
            problems.append(f"confidence {found.confidence}")
        return problems


# Slugs that share configuration and header. Two experts, a pipeline class or an index can still tell some apart.
_SKYREELS_14B = {
    "skyreels-v2-df-14b-540p",
    "skyreels-v2-df-14b-720p",
    "skyreels-v2-t2v-14b-540p",
    "skyreels-v2-t2v-14b-720p",
}
_SKYREELS_I2V = {"skyreels-v2-i2v-14b-540p", "skyreels-v2-i2v-14b-720p"}
_T2V_14B = frozenset(
    {
        "wan2.1-t2v-14b",
        "wan2.2-t2v-a14b",
        "krea-realtime-video",
        "bernini-r",
        "fastwan2.1-t2v-14b",
        "wan2.1-vsa-t2v-14b-720p",
        "skyreels-v3-v2v-14b",
    }
    | _SKYREELS_14B
)
_I2V_14B = frozenset(
    {"wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p", "chronoedit-14b", "chronoedit-14b-flashpack", "wan2.1-fun-14b-inp"}
    | _SKYREELS_I2V
)
_I2V_A14B = frozenset({"wan2.2-i2v-a14b", "turbowan2.2-i2v-a14b", "causalwan2.2-i2v-a14b-preview"})
_T2V_1B = frozenset({"wan2.1-t2v-1.3b", "fastwan2.1-t2v-1.3b"})
_TI2V = frozenset({"wan2.2-ti2v-5b", "fastwan2.2-ti2v-5b-fullattn"})
_VACE_14B = frozenset({"wan2.1-vace-14b", "wan2.2-vace-fun-14b"})
_FUN_1B_INP = frozenset({"wan2.1-fun-1.3b-inp", "skyreels-v2-i2v-1.3b-540p", "rose"})
_HELIOS = frozenset({"helios-mid", "helios-distilled"})
_LUCY = frozenset({"lucy-edit-dev", "lucy-edit-1.1-dev"})
# A LoRA of the blocks fits every model with those blocks: what comes in through the first layer is not in it.
_LORA_14B = frozenset(
    _T2V_14B | _I2V_A14B | _VACE_14B | {"wan2.2-fun-a14b-control", "wan2.2-fun-a14b-control-camera", "wan2.2-s2v-14b"}
)


def _wan(
    slug: str,
    layout: str | tuple[str, ...] = "diffusers",
    *,
    type: str | tuple[str, ...],
    version: str | None,
    pipeline: str | tuple[str | None, ...] | None,
    alike: frozenset[str] = frozenset(),
    base: tuple[str, ...] = (),
    vae: tuple[int, ...] = (3,),
    loadable: bool | None = None,
) -> Expected:
    layouts = (layout,) if isinstance(layout, str) else layout
    # What is not in diffusers layout does not load as it is: null, or the class that runs it once converted, are both true.
    pipelines = pipeline if isinstance(pipeline, tuple) else (pipeline,)
    if layouts[0] not in ("diffusers", "modular"):
        pipelines = (*pipelines, None)
    types = (type,) if isinstance(type, str) else type
    versions = (version,) if version is not None else ("2.1", "2.2", None)
    return Expected((True,), types, layouts, slug, base, alike or frozenset({slug}), versions, pipelines, vae, loadable)


def _original(slug: str, **more: object) -> Expected:
    return _wan(slug, "original", vae=(0, 3), loadable=False, **more)  # type: ignore[arg-type]


def _file(slug: str, layout: str = "single_file", **more: object) -> Expected:
    return _wan(slug, layout, vae=(0, 3), **more)  # type: ignore[arg-type]


def _fun(slug: str, version: str, type: str = "wan_family", **more: object) -> Expected:
    pipeline = ("WanImageToVideoPipeline", None) if type == "wan_i2v" else None
    return _original(slug, type=type, version=version, pipeline=pipeline, **more)


def _skyreels(slug: str, pipeline: str, alike: set[str]) -> Expected:
    return _wan(slug, type="wan_family", version="2.1", pipeline=pipeline, alike=frozenset(alike), loadable=True)


def _relative(
    slug: str, pipeline: str | tuple[str | None, ...] | None, version: str = "2.1", **more: object
) -> Expected:
    return _wan(slug, type="wan_family", version=version, pipeline=pipeline, **more)  # type: ignore[arg-type]


def _not_wan(
    *vae: int,
    type: tuple[str, ...] = ("unknown",),
    is_wan: tuple[bool | None, ...] = (False,),
    layout: tuple[str, ...] = ("diffusers",),
) -> Expected:
    return Expected(is_wan, type, layout, versions=(None,), pipelines=(), vae=vae)


_SD = ("stable_diffusion",)
_MAYBE_SD = ("stable_diffusion", "unknown")
_FILE = ("single_file", "component", "unknown")
# Where nothing denoises, "not Wan" and "nothing to judge" are both true.
_NOTHING = (None, False)
_VACE = ("WanVACEPipeline",)
_I2V_BASE = ("wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p")

EXPECTED: dict[str, Expected] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _wan("wan2.1-t2v-1.3b", type="wan_t2v", version="2.1", pipeline="WanPipeline", alike=_T2V_1B, loadable=True),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _wan("wan2.1-t2v-14b", type="wan_t2v", version="2.1", pipeline="WanPipeline", alike=_T2V_14B, loadable=True),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": _wan("wan2.1-i2v-14b-480p", type="wan_i2v", version="2.1", pipeline="WanImageToVideoPipeline", alike=_I2V_14B, loadable=True),
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": _wan("wan2.1-i2v-14b-720p", type="wan_i2v", version="2.1", pipeline="WanImageToVideoPipeline", alike=_I2V_14B, loadable=True),
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers": _wan("wan2.1-flf2v-14b-720p", type="wan_flf2v", version="2.1", pipeline="WanImageToVideoPipeline", loadable=True),
    "Wan-AI/Wan2.1-VACE-1.3B-diffusers": _wan("wan2.1-vace-1.3b", type="wan_vace", version="2.1", pipeline="WanVACEPipeline", loadable=True),
    "Wan-AI/Wan2.1-VACE-14B-diffusers": _wan("wan2.1-vace-14b", type="wan_vace", version="2.1", pipeline="WanVACEPipeline", alike=_VACE_14B, loadable=True),
    "use: video-to-video on any Wan 2.1 T2V repository": _wan("wan2.1-t2v-1.3b", type=("wan_v2v", "wan_t2v"), version="2.1", pipeline=("WanVideoToVideoPipeline", "WanPipeline"), alike=_T2V_1B, loadable=True),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": _wan("wan2.2-t2v-a14b", type="wan_t2v", version="2.2", pipeline="WanPipeline", loadable=True),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": _wan("wan2.2-i2v-a14b", type="wan_i2v", version="2.2", pipeline="WanImageToVideoPipeline", alike=_I2V_A14B, loadable=True),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": _wan("wan2.2-ti2v-5b", type="wan_ti2v", version="2.2", pipeline="WanPipeline", alike=_TI2V, loadable=True),
    "Wan-AI/Wan2.2-Animate-14B-Diffusers": _wan("wan2.2-animate-14b", type="wan_animate", version="2.2", pipeline="WanAnimatePipeline", loadable=True),
    "linoyts/Wan2.2-VACE-Fun-14B-diffusers": _wan("wan2.2-vace-fun-14b", type="wan_vace", version="2.2", pipeline="WanVACEPipeline", loadable=True),
    "Wan-AI/Wan2.2-S2V-14B": _original("wan2.2-s2v-14b", type="wan_s2v", version="2.2", pipeline=None),
    "FastVideo/Wan2.2-S2V-14B-Diffusers": _wan("wan2.2-s2v-14b", type="wan_s2v", version="2.2", pipeline=None, loadable=False),
    "alibaba-pai/Wan2.1-Fun-1.3B-InP": _fun("wan2.1-fun-1.3b-inp", "2.1", "wan_i2v", alike=_FUN_1B_INP),
    "alibaba-pai/Wan2.1-Fun-14B-InP": _fun("wan2.1-fun-14b-inp", "2.1", "wan_i2v", alike=_I2V_14B),
    "alibaba-pai/Wan2.1-Fun-1.3B-Control": _fun("wan2.1-fun-1.3b-control", "2.1"),
    "alibaba-pai/Wan2.1-Fun-14B-Control": _fun("wan2.1-fun-14b-control", "2.1"),
    "alibaba-pai/Wan2.1-Fun-V1.1-1.3B-Control": _fun("wan2.1-fun-v1.1-1.3b-control", "2.1"),
    "alibaba-pai/Wan2.1-Fun-V1.1-14B-Control": _fun("wan2.1-fun-v1.1-14b-control", "2.1"),
    "alibaba-pai/Wan2.1-Fun-V1.1-14B-Control-Camera": _fun("wan2.1-fun-v1.1-14b-control-camera", "2.1"),
    "alibaba-pai/Wan2.2-Fun-A14B-Control": _fun("wan2.2-fun-a14b-control", "2.2"),
    "alibaba-pai/Wan2.2-Fun-A14B-Control-Camera": _fun("wan2.2-fun-a14b-control-camera", "2.2"),
    "alibaba-pai/Wan2.2-Fun-5B-InP": _fun("wan2.2-fun-5b-inp", "2.2", "wan_i2v"),
    "alibaba-pai/Wan2.2-Fun-5B-Control": _fun("wan2.2-fun-5b-control", "2.2"),
    "Bmyy02/Wan2.2-Fun-5B-Control-Camera-Diffusers": _relative("wan2.2-fun-5b-control-camera", None, "2.2", loadable=False),
    "Kunbyte/ROSE": _wan("rose", ("component", "original", "unknown"), type="wan_family", version="2.1", pipeline=None, alike=_FUN_1B_INP, vae=(0, 3), loadable=False),
    "Wan-AI/Wan2.2-Animate-2-14B-Diffusers": _wan("wan2.2-animate-2-14b", "modular", type="wan_animate", version="2.2", pipeline="WanAnimate2ModularPipeline", loadable=True),
    "Wan-AI/Wan2.2-Animate-2-14B-Distilled-Diffusers": _wan("wan2.2-animate-2-14b-distilled", "modular", type="wan_animate", version="2.2", pipeline="WanAnimate2DistilledModularPipeline", loadable=True),
    "Wan-Animate-2 official checkpoint": _file("wan2.2-animate-2-14b", type="wan_animate", version="2.2", pipeline="WanAnimate2ModularPipeline", alike=frozenset({"wan2.2-animate-2-14b", "wan2.2-animate-2-14b-distilled"})),
    # Nothing but references to other repositories: what those hold cannot be seen from here.
    "diffusers-internal-dev/modular-wan-t2v": Expected((True,), ("wan_t2v",), ("modular",), versions=("2.1", None), pipelines=("WanModularPipeline",), vae=(0, 3)),
    "diffusers-internal-dev/Modular-Wan-I2V-14B-720P-Diffusers": Expected((True,), ("wan_i2v",), ("modular",), versions=("2.1", None), pipelines=("WanModularPipeline",), vae=(0, 3)),
    "akshan-main/tiny-wan22-vace-modular-pipe": Expected((True,), ("wan_vace",), ("modular",), versions=("2.2",), pipelines=("Wan22VaceModularPipeline",), vae=(3,)),
    "krea/krea-realtime-video": _wan("krea-realtime-video", "modular", type="wan_family", version="2.1", pipeline=(None, "WanModularPipeline"), alike=_T2V_14B, vae=(0, 3), loadable=False),
    "IPostYellow/krea-realtime-video-diffusers": _relative("krea-realtime-video", None, loadable=False),
    "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers": _skyreels("skyreels-v2-df-1.3b-540p", "SkyReelsV2DiffusionForcingPipeline", {"skyreels-v2-df-1.3b-540p"}),
    "Skywork/SkyReels-V2-DF-14B-540P-Diffusers": _skyreels("skyreels-v2-df-14b-540p", "SkyReelsV2DiffusionForcingPipeline", _SKYREELS_14B),
    "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers": _skyreels("skyreels-v2-t2v-14b-540p", "SkyReelsV2Pipeline", _SKYREELS_14B),
    "Skywork/SkyReels-V2-I2V-14B-540P-Diffusers": _skyreels("skyreels-v2-i2v-14b-540p", "SkyReelsV2ImageToVideoPipeline", _SKYREELS_I2V),
    "Skywork/SkyReels-V2-DF-14B-720P-Diffusers": _skyreels("skyreels-v2-df-14b-720p", "SkyReelsV2DiffusionForcingPipeline", _SKYREELS_14B),
    "Skywork/SkyReels-V2-T2V-14B-720P-Diffusers": _skyreels("skyreels-v2-t2v-14b-720p", "SkyReelsV2Pipeline", _SKYREELS_14B),
    "Skywork/SkyReels-V2-I2V-14B-720P-Diffusers": _skyreels("skyreels-v2-i2v-14b-720p", "SkyReelsV2ImageToVideoPipeline", _SKYREELS_I2V),
    "Skywork/SkyReels-V2-I2V-1.3B-540P-Diffusers": _skyreels("skyreels-v2-i2v-1.3b-540p", "SkyReelsV2ImageToVideoPipeline", {"skyreels-v2-i2v-1.3b-540p"}),
    "SkyReels-V3-V2V-14B (layout)": _wan("skyreels-v3-v2v-14b", ("original", "component", "unknown"), type=("wan_family", "wan_t2v"), version=None, pipeline=(None, "WanPipeline"), alike=_T2V_14B, base=("wan2.1-t2v-14b",), vae=(0, 3), loadable=False),
    "nvidia/ChronoEdit-14B-Diffusers": _wan("chronoedit-14b", type="wan_family", version="2.1", pipeline="ChronoEditPipeline", alike=_I2V_14B, loadable=True),
    "fal/ChronoEdit-14B-FlashPack": _wan("chronoedit-14b-flashpack", type="wan_family", version="2.1", pipeline="ChronoEditPipeline", alike=_I2V_14B, base=("chronoedit-14b",)),
    "diffusers-internal-dev/chronoedit-modular": Expected((True,), ("wan_family", "wan_i2v"), ("modular",), versions=("2.1", None), pipelines=("WanModularPipeline", None), vae=(0, 3)),
    "decart-ai/Lucy-Edit-Dev": _relative("lucy-edit-dev", "LucyEditPipeline", "2.2", alike=_LUCY, loadable=True),
    "decart-ai/Lucy-Edit-1.1-Dev": _relative("lucy-edit-1.1-dev", ("LucyEditPipeline", None), "2.2", alike=_LUCY, base=("lucy-edit-dev",)),
    "nvidia/AnyFlow-Wan2.1-T2V-1.3B-Diffusers": _relative("anyflow-wan2.1-t2v-1.3b", "AnyFlowPipeline", loadable=True),
    "nvidia/AnyFlow-Wan2.1-T2V-14B-Diffusers": _relative("anyflow-wan2.1-t2v-14b", "AnyFlowPipeline", loadable=True),
    "nvidia/AnyFlow-FAR-Wan2.1-1.3B-Diffusers": _relative("anyflow-far-wan2.1-1.3b", "AnyFlowFARPipeline", loadable=True),
    "nvidia/AnyFlow-FAR-Wan2.1-14B-Diffusers": _relative("anyflow-far-wan2.1-14b", "AnyFlowFARPipeline", loadable=True),
    "BestWishYsh/Helios-Base": _relative("helios-base", "HeliosPipeline", loadable=True),
    "BestWishYsh/Helios-Mid": _relative("helios-mid", "HeliosPyramidPipeline", alike=_HELIOS, loadable=True),
    "BestWishYsh/Helios-Distilled": _relative("helios-distilled", "HeliosPyramidPipeline", alike=_HELIOS, loadable=True),
    "FastVideo/FastWan2.1-T2V-1.3B-Diffusers": _wan("fastwan2.1-t2v-1.3b", type="wan_t2v", version="2.1", pipeline=None, alike=_T2V_1B, loadable=False),
    "FastVideo/FastWan2.1-T2V-14B-Diffusers": _wan("fastwan2.1-t2v-14b", type="wan_t2v", version="2.1", pipeline=None, alike=_T2V_14B, loadable=False),
    "FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers": _wan("fastwan2.2-ti2v-5b-fullattn", type="wan_ti2v", version="2.2", pipeline=None, alike=_TI2V, loadable=False),
    "FastVideo/CausalWan2.2-I2V-A14B-Preview-Diffusers": _wan("causalwan2.2-i2v-a14b-preview", type="wan_family", version="2.2", pipeline=None, alike=_I2V_A14B, loadable=False),
    "FastVideo/Wan2.1-VSA-T2V-14B-720P-Diffusers": _wan("wan2.1-vsa-t2v-14b-720p", type="wan_t2v", version="2.1", pipeline=("WanPipeline", None), alike=_T2V_14B, base=("wan2.1-t2v-14b",)),
    "IPostYellow/TurboWan2.2-I2V-A14B-Diffusers": _wan("turbowan2.2-i2v-a14b", type="wan_i2v", version="2.2", pipeline=("WanImageToVideoPipeline", None), alike=_I2V_A14B, base=("wan2.2-i2v-a14b",)),
    "ByteDance/Bernini-R-Diffusers": _wan("bernini-r", type="wan_t2v", version=None, pipeline=("WanPipeline", None), alike=_T2V_14B, base=("wan2.1-t2v-14b",)),
    "lightx2v/Wan2.2-Distill-Loras": _wan("wan2.2-i2v-a14b", "lora", type="wan_i2v", version=None, pipeline=("WanImageToVideoPipeline", None), alike=_LORA_14B, vae=(0, 3)),
    "Kijai/WanVideo_comfy Wan22-Lightning": _wan("wan2.2-t2v-a14b", "lora", type="wan_t2v", version=None, pipeline=("WanPipeline", None), alike=_LORA_14B, vae=(0, 3)),
    "any Wan LoRA file": _wan("wan2.1-t2v-1.3b", "lora", type="wan_t2v", version="2.1", pipeline=("WanPipeline", None), alike=_T2V_1B | {"wan2.1-vace-1.3b"}, vae=(0, 3)),
    "Wan-AI/Wan2.1-T2V-1.3B": _original("wan2.1-t2v-1.3b", type="wan_t2v", version="2.1", pipeline="WanPipeline", alike=_T2V_1B),
    "Wan-AI/Wan2.1-T2V-14B": _original("wan2.1-t2v-14b", type="wan_t2v", version="2.1", pipeline="WanPipeline", alike=_T2V_14B),
    "Wan-AI/Wan2.1-I2V-14B-480P": _original("wan2.1-i2v-14b-480p", type="wan_i2v", version="2.1", pipeline="WanImageToVideoPipeline", alike=_I2V_14B),
    "Wan-AI/Wan2.1-I2V-14B-720P": _original("wan2.1-i2v-14b-720p", type="wan_i2v", version="2.1", pipeline="WanImageToVideoPipeline", alike=_I2V_14B),
    "Wan-AI/Wan2.1-FLF2V-14B-720P": _original("wan2.1-flf2v-14b-720p", type="wan_flf2v", version="2.1", pipeline="WanImageToVideoPipeline"),
    "Wan-AI/Wan2.1-VACE-1.3B": _original("wan2.1-vace-1.3b", type="wan_vace", version="2.1", pipeline="WanVACEPipeline"),
    "Wan-AI/Wan2.1-VACE-14B": _original("wan2.1-vace-14b", type="wan_vace", version="2.1", pipeline="WanVACEPipeline", alike=_VACE_14B),
    "Wan-AI/Wan2.2-T2V-A14B": _original("wan2.2-t2v-a14b", type="wan_t2v", version="2.2", pipeline="WanPipeline"),
    "Wan-AI/Wan2.2-I2V-A14B": _original("wan2.2-i2v-a14b", type="wan_i2v", version="2.2", pipeline="WanImageToVideoPipeline", alike=_I2V_A14B),
    "Wan-AI/Wan2.2-TI2V-5B": _original("wan2.2-ti2v-5b", type="wan_ti2v", version="2.2", pipeline="WanPipeline", alike=_TI2V),
    "Wan-AI/Wan2.2-Animate-14B": _original("wan2.2-animate-14b", type="wan_animate", version="2.2", pipeline="WanAnimatePipeline"),
    # A fine-tune of I2V-14B in its layout; it has no slug of its own.
    "MAGREF-Video/MAGREF, Runware/multitalk-14B-480P (I2V derivatives in the original layout)": _original("wan2.1-i2v-14b-480p", type="wan_i2v", version="2.1", pipeline="WanImageToVideoPipeline", alike=_I2V_14B),
    "wan_va fine-tune (action-conditioned)": _wan("wan-va", ("original", "component", "unknown"), type="wan_family", version=None, pipeline=None, vae=(0, 3), loadable=False),
    "Comfy single file: wan2.1_i2v_480p_14B_fp16": _file("wan2.1-i2v-14b-480p", type="wan_i2v", version="2.1", pipeline="WanImageToVideoPipeline", alike=_I2V_14B),
    "Comfy single file: wan2.1_flf2v_720p_14B_fp16": _file("wan2.1-flf2v-14b-720p", type="wan_flf2v", version="2.1", pipeline="WanImageToVideoPipeline"),
    "Comfy single file: wan2.1_fun_inp_1.3B_bf16": _file("wan2.1-fun-1.3b-inp", type="wan_i2v", version="2.1", pipeline=("WanImageToVideoPipeline", None), alike=_FUN_1B_INP),
    "Comfy single file: wan2.2_t2v_high_noise_14B_fp16": _file("wan2.2-t2v-a14b", type="wan_t2v", version="2.2", pipeline="WanPipeline", alike=_T2V_14B),
    "Comfy single file: wan2.2_i2v_high_noise_14B_fp16": _file("wan2.2-i2v-a14b", type="wan_i2v", version="2.2", pipeline="WanImageToVideoPipeline", alike=_I2V_A14B),
    "Comfy single file: wan2.2_i2v_high_noise_14B_fp8_scaled": _file("wan2.2-i2v-a14b", type="wan_i2v", version="2.2", pipeline="WanImageToVideoPipeline", alike=_I2V_A14B),
    "Comfy single file: wan2.2_ti2v_5B_fp16": _file("wan2.2-ti2v-5b", type="wan_ti2v", version="2.2", pipeline="WanPipeline", alike=_TI2V),
    "Comfy single file: wan2.2_s2v_14B_bf16": _file("wan2.2-s2v-14b", type="wan_s2v", version="2.2", pipeline=None),
    "Comfy single file: chrono_edit_14B_fp16": _file("chronoedit-14b", type="wan_family", version="2.1", pipeline="ChronoEditPipeline", alike=_I2V_14B),
    "Comfy single file: wan_2.1_vae": Expected((None,), ("unknown", "wan_family"), ("component", "single_file"), versions=("2.1", None), pipelines=(None,), vae=(3,)),
    "Comfy single file: wan2.2_vae": Expected((None,), ("unknown", "wan_family"), ("component", "single_file"), versions=("2.2", None), pipelines=(None,), vae=(3,)),
    "Comfy single file: umt5_xxl": Expected((None,), ("unknown", "wan_family"), ("component", "single_file"), versions=(None,), pipelines=(None,), vae=(0,)),
    "city96/Wan2.1-I2V-14B-480P-gguf": _file("wan2.1-i2v-14b-480p", "gguf", type="wan_i2v", version="2.1", pipeline="WanImageToVideoPipeline", alike=_I2V_14B),
    "StevenZhang/Wan2.1-I2V-14B-720P-Diff, ypyp/wan2.1_i2v (pre-release names)": _wan("wan2.1-i2v-14b-720p", type="wan_i2v", version="2.1", pipeline=("WanImageToVideoPipeline", None), alike=_I2V_14B, loadable=False),
    "Cosmos-Predict2 (Cosmos2VideoToWorldPipeline, Cosmos2TextToImagePipeline)": _not_wan(3),
    "Cosmos-Predict2.5 / Transfer2.5": _not_wan(3),
    "nvidia/Cosmos3-Edge": _not_wan(3),
    "Efficient-Large-Model/SANA-Video_2B_480p_diffusers": _not_wan(3),
    "meituan-longcat/LongCat-Video": _not_wan(3),
    "Bria FIBO": _not_wan(3),
    "MotifVideo": _not_wan(3),
    "jdopensource/JoyAI-Image-Edit-Diffusers": _not_wan(3),
    "Qwen/Qwen-Image": _not_wan(3),
    "JaceyH919/Gen3R": _not_wan(0, 3),
    "linyq/kiwi-edit-5b-reference-only-diffusers": _not_wan(0, 3),
    "lookalike: Stable Diffusion 1.5": _not_wan(2, type=_SD),
    "lookalike: Stable Diffusion 2": _not_wan(2, type=_SD),
    "lookalike: Stable Diffusion XL": _not_wan(2, type=_SD),
    "lookalike: Stable Diffusion 3": _not_wan(2, type=_MAYBE_SD),
    "lookalike: Stable Diffusion 1.5 single file": _not_wan(0, 2, type=_MAYBE_SD, layout=_FILE),
    "lookalike: Stable Diffusion 1.5 LoRA": _not_wan(0, type=_MAYBE_SD, is_wan=_NOTHING, layout=("lora", *_FILE)),
    "lookalike: Flux": _not_wan(2),
    "lookalike: Flux single file": _not_wan(0, layout=_FILE),
    "lookalike: Flux LoRA": _not_wan(0, is_wan=_NOTHING, layout=("lora", *_FILE)),
    "lookalike: LTX-Video": _not_wan(3),
    "lookalike: LTX-Video single file": _not_wan(0, layout=_FILE),
    "lookalike: HunyuanVideo": _not_wan(3),
    "lookalike: HunyuanVideo single file": _not_wan(0, layout=_FILE),
    "lookalike: CogVideoX": _not_wan(3),
    "lookalike: Mochi": _not_wan(3),
    "lookalike: Mochi single file": _not_wan(0, layout=_FILE),
    "lookalike: Allegro": _not_wan(3),
    "lookalike: Kandinsky 5": _not_wan(3),
    "lookalike: PixArt-alpha": _not_wan(2),
    "lookalike: Sana": _not_wan(2),
    "lookalike: Lumina 2": _not_wan(2),
    "lookalike: HiDream": _not_wan(2),
    "lookalike: Chroma": _not_wan(2),
    "lookalike: Cosmos-Predict2 single file": _not_wan(0, layout=_FILE),
    "lookalike: Stable Video Diffusion": _not_wan(2, 3, type=_MAYBE_SD),
    "lookalike: AnimateDiff motion adapter": _not_wan(0, type=_MAYBE_SD, is_wan=_NOTHING, layout=("component", "unknown")),
    "lookalike: Llama": _not_wan(0, is_wan=_NOTHING, layout=("component", "unknown")),
    "lookalike: CLIP": _not_wan(0, is_wan=_NOTHING, layout=("component", "unknown")),
    "lookalike: empty folder": _not_wan(0, is_wan=_NOTHING, layout=("unknown",)),
    "lookalike: folder of images": _not_wan(0, is_wan=_NOTHING, layout=("unknown",)),
}  # fmt: skip
