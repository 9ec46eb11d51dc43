"""The ways to run a model on a machine, cheapest first, and what a user's wishes leave of them.

Order of means: precision, VAE tiling, moving whole models, moving groups with a stream, single layers, disk, the CPU.
Whatever changes pixels beyond the order of sums (caches, storage in 8 bits) is in a plan only where it was asked for.

Costs are relative to the fastest way on the same device, and say where they come from: `measured` (docs/planning.md, on
a CPU), `published` by others on other machines, or `estimated`, which is a guess with a reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from wan_compat.policies.planning.courses import Job
from wan_compat.policies.planning.estimate import Setting
from wan_compat.policies.planning.machine import MachineFacts
from wan_compat.policies.planning.shapes import ModelShape
from wan_compat.policies.planning.weights import Dtype
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.plan import Cache, CacheSpec, GroupOffload, LayerwiseCasting, Offload, PlanSpec, Tiling

Basis = Literal["measured", "published", "estimated"]
_BASES: tuple[Basis, ...] = ("measured", "published", "estimated")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Time, relative to the fastest way on this device. A product is as sure as its least sure part."""

    factor: float = 1.0
    basis: Basis = "measured"

    def __mul__(self, other: Cost) -> Cost:
        basis = max(self.basis, other.basis, key=_BASES.index)
        return Cost(round(self.factor * other.factor, 3), basis)


# t2v_mid on a CPU, denoising and decoding: 12.2 s in bfloat16 against 10.5 s (benchmarks of this project).
_BFLOAT16_ON_CPU = Cost(1.4, "measured")
_RELOADED_TEXT_ENCODER = Cost(1.02, "estimated")  # read again for every new prompt
_TILED = Cost(1.08, "estimated")  # tiles overlap: up to 1.8 times the pixels, of decoding alone
_WHOLE = Cost(1.02, "measured")  # no time to speak of, but the first frame comes last
_FROM_DISK_ON_CPU = Cost(2.5, "estimated")  # weights are read once a forward pass, from the page cache at best
_MODEL = Cost(1.05, "estimated")  # each model crosses the bus once a generation
_STREAMED_BLOCKS = Cost(1.07, "published")  # Wan 14B on an H100, 4602 -> 4918 ms a forward (diffusers PR 11605)
_STREAMED_LAYERS = Cost(1.6, "published")  # LTX-13B (huggingface.co/datasets/diffusers/benchmarks)
_FROM_DISK = Cost(3.0, "estimated")
_SEQUENTIAL = Cost(6.0, "estimated")
_ON_CPU = Cost(100.0, "estimated")
_CAST = Cost(1.1, "estimated")  # each layer is made wider before it computes, and narrower after it

# Which of diffusers' caches (0.42.1) fail in a pipeline, and not before it denoises; tests/matrix.py runs them.
# Its registry of blocks has those of WanTransformer3DModel and WanVACETransformer3DModel alone, for `first_block` and
# `mag`; video to video and AnyFlow's transformer know no caches; two more trip over shapes and settings.
_BY_BLOCKS: tuple[Cache, ...] = ("first_block", "mag")
_WITH_BLOCKS = ("WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline", "LucyEditPipeline")
_WITHOUT_CACHES = ("WanVideoToVideoPipeline", "AnyFlow")
_WITHOUT_PYRAMID = ("SkyReelsV2DiffusionForcing", "HeliosPyramid")
# Of modular blocks, Helios' alone tell a cache whose pass it is, and none says at which timestep it is.
_BLOCKS_WITH_CACHE = "Helios"
# Builds a mask that only this backend takes.
_FLEX_ALONE = "AnyFlowFARPipeline"
# Need what only ordinary pipelines have: the order in which their models work.
_OF_ORDINARY: tuple[Offload, ...] = ("model", "sequential")
# Encodes the video in float32, whatever its VAE has (pipeline_lucy_edit.py; its example loads the VAE so).
_VAE_IN_FLOAT32 = ("LucyEditPipeline",)

_BLOCKS = GroupOffload(level="block_level", use_stream=True)
_LAYERS = GroupOffload(level="leaf_level", use_stream=True)
_BLOCKS_FROM_DISK = GroupOffload(level="block_level", disk=True)


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What a user asked for by name; None and "auto" leave it to the plan. `on_gpu`: no processor instead of a GPU."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    offload: Offload | None = None
    vae_tiling: bool | None = None
    cache: Cache | None = None
    attention_backend: str | None = None
    layerwise_casting: LayerwiseCasting | None = None
    on_gpu: bool = False


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way. `name` is short and unique among those of a machine; `reasons` say what it does."""

    name: str
    setting: Setting
    cost: Cost
    reasons: tuple[str, ...]


def candidates(shape: ModelShape, job: Job, machine: MachineFacts, wishes: Wishes) -> tuple[Candidate, ...]:
    """Return what could be tried, cheapest first.

    Raises:
        InvalidRequest: A wish that means nothing on this machine.
    """
    _check(shape, machine, wishes)
    found = list(_on_gpu(shape, job, machine, wishes)) if machine.gpu is not None else []
    if not wishes.on_gpu:
        found += _on_cpu(shape, job, machine, wishes)
    if wishes.layerwise_casting is not None:
        words = f"layers of the transformer are stored in {wishes.layerwise_casting}, as was asked for (changes pixels)"
        found = [dataclasses.replace(item, cost=item.cost * _CAST, reasons=(*item.reasons, words)) for item in found]
    return tuple(sorted(found, key=lambda item: item.cost.factor))


def _check(shape: ModelShape, machine: MachineFacts, wishes: Wishes) -> None:
    if wishes.cache == "mag":
        raise InvalidRequest(
            "MagCache needs the magnitude ratios of each checkpoint, which nothing here has",
            hint="use --cache first_block or taylorseer, which need no numbers of a checkpoint",
        )
    pipeline = shape.pipeline_class
    if wishes.cache is not None and not _takes_cache(shape, wishes.cache):
        others = [name for name in ("first_block", "pyramid_attention", "taylorseer") if _takes_cache(shape, name)]
        raise InvalidRequest(
            f"the cache {wishes.cache} does not work with {pipeline} (diffusers' own limit)",
            hint=f"use --cache {' or '.join(others)}, or leave it out" if others else "leave --cache out",
        )
    if wishes.attention_backend not in (None, "flex") and pipeline == _FLEX_ALONE:
        raise InvalidRequest(
            f"{pipeline} computes with the attention backend flex alone, not with {wishes.attention_backend}",
            hint="leave --attention-backend out",
        )
    if wishes.layerwise_casting is not None:
        _check_casting(shape, machine, wishes)
    if shape.is_modular and wishes.offload in _OF_ORDINARY:
        raise InvalidRequest(
            f"offload {wishes.offload!r} is for ordinary pipelines; {pipeline} is made of modular blocks",
            hint="use --offload group, or leave --offload out",
        )
    if machine.gpu is not None:
        if wishes.offload == "full" and (wishes.on_gpu or wishes.precision == "float16"):
            what = "a GPU was asked for" if wishes.on_gpu else "float16 is for GPUs"
            raise InvalidRequest(f"offload 'full' computes on the processor, and {what}", hint="leave --offload out")
        return
    if wishes.on_gpu:
        raise InvalidRequest("a GPU was asked for, and there is none here", hint="leave --device out")
    if wishes.offload in ("model", "sequential"):
        raise InvalidRequest(
            f"offload {wishes.offload!r} moves models between a GPU and main memory; there is no GPU here",
            hint="leave --offload out, or use --offload group, which keeps weights in their files",
        )
    if wishes.precision == "float16":
        raise InvalidRequest("float16 is for GPUs; there is none here", hint="use --precision bfloat16")
    if wishes.offload == "group" and not shape.copied:
        raise InvalidRequest(
            "weights that are renamed, quantised or have a LoRA cannot stay in their files",
            hint="leave --offload out, or convert the model first (wan-compat convert)",
        )


def _check_casting(shape: ModelShape, machine: MachineFacts, wishes: Wishes) -> None:
    folded = next((name for name in shape.experts if shape.weights[name].is_folded_at_all), None)
    if folded is not None:
        raise InvalidRequest(
            f"{folded} is quantised, and its layers cannot be stored in {wishes.layerwise_casting} besides",
            hint="use either fewer bits (--quantize, GGUF) or --layerwise-casting",
        )
    if wishes.offload == "group" and machine.gpu is None:
        raise InvalidRequest(
            f"weights that stay in their files (offload 'group' without a GPU) cannot be stored in "
            f"{wishes.layerwise_casting}",
            hint="leave --offload or --layerwise-casting out",
        )


def _takes_cache(shape: ModelShape, cache: Cache) -> bool:
    pipeline = shape.pipeline_class
    if shape.is_modular:
        return cache == "taylorseer" and pipeline.startswith(_BLOCKS_WITH_CACHE)
    if pipeline.startswith(_WITHOUT_CACHES):
        return False
    if cache in _BY_BLOCKS:
        return pipeline in _WITH_BLOCKS
    return cache != "pyramid_attention" or not pipeline.startswith(_WITHOUT_PYRAMID)


# ---- on a GPU ------------------------------------------------------------------------------------------------------


def _on_gpu(shape: ModelShape, job: Job, machine: MachineFacts, wishes: Wishes) -> Iterator[Candidate]:
    gpu = machine.gpu
    assert gpu is not None
    dtype: Dtype = "bfloat16" if gpu.computes_bfloat16 else "float16"
    why = "bfloat16: half the bytes at the same speed" if gpu.computes_bfloat16 else "float16: no bfloat16 on this GPU"
    if wishes.precision != "auto":
        dtype, why = wishes.precision, f"{wishes.precision} was asked for"
    ways: tuple[tuple[str, Offload, GroupOffload | None, Cost, str], ...] = (
        ("none", "none", None, Cost(1.0, "estimated"), "everything stays on the GPU"),
        ("model", "model", None, _MODEL, "one model at a time on the GPU"),
        ("group", "group", _BLOCKS, _STREAMED_BLOCKS, "two blocks at a time on the GPU, moved while others compute"),
        ("leaf", "group", _LAYERS, _STREAMED_LAYERS, "single layers on the GPU, moved while others compute"),
        ("disk", "group", _BLOCKS_FROM_DISK, _FROM_DISK, "blocks come from disk as they are needed"),
        ("sequential", "sequential", None, _SEQUENTIAL, "one layer at a time on the GPU"),
    )
    for name, offload, group, cost, words in ways:
        if wishes.offload not in (None, offload) or (name == "disk" and not _stays_in_files(shape, wishes)):
            continue
        if shape.is_modular and offload in _OF_ORDINARY:
            continue
        plan = _plan(wishes, offload=offload, group=group)
        setting = Setting("cuda", dtype, "float32", plan, threads=machine.cpu_count)
        yield from _decodings(shape, job, Candidate(name, setting, cost, (words, why)), wishes)


# ---- on a CPU ------------------------------------------------------------------------------------------------------


def _on_cpu(shape: ModelShape, job: Job, machine: MachineFacts, wishes: Wishes) -> Iterator[Candidate]:
    base = Cost() if machine.gpu is None else _ON_CPU
    in_full: Offload = "none" if machine.gpu is None else "full"
    full = "cpu" if machine.gpu is None else "full"
    precisions: dict[Dtype, tuple[Cost, str]] = {
        "float32": (Cost(), "float32: what CPUs compute fastest in"),
        "bfloat16": (_BFLOAT16_ON_CPU, "bfloat16: half the bytes"),
    }
    if wishes.precision == "float16":
        return
    if wishes.precision != "auto":
        precisions = {wishes.precision: (precisions[wishes.precision][0], f"{wishes.precision} was asked for")}
    for dtype, (slower, why) in precisions.items():
        suffix = "" if dtype == "float32" else "-bf16"
        ways: list[tuple[str, PlanSpec, Cost, str]] = []
        if wishes.offload in (None, "none", "full"):
            ways.append((full, _plan(wishes, offload=in_full), Cost(), "all weights in main memory"))
            if "text_encoder" in shape.weights:
                left = _plan(wishes, offload=in_full, text_encoder="leave")
                words = "the text encoder leaves memory before denoising"
                ways.append((f"{full}-text-leaves", left, _RELOADED_TEXT_ENCODER, words))
        if wishes.offload in (None, "group") and machine.gpu is None and _stays_in_files(shape, wishes):
            from_disk = _plan(wishes, offload="group", group=_BLOCKS_FROM_DISK)
            ways.append(("disk", from_disk, _FROM_DISK_ON_CPU, "blocks stay in their files until they are needed"))
        for name, plan, cost, words in ways:
            vae: Dtype = "float32" if shape.pipeline_class in _VAE_IN_FLOAT32 else dtype
            setting = Setting("cpu", dtype, vae, plan, threads=machine.cpu_count)
            yield from _decodings(
                shape, job, Candidate(f"{name}{suffix}", setting, base * slower * cost, (words, why)), wishes
            )


def _stays_in_files(shape: ModelShape, wishes: Wishes) -> bool:
    """Whether weights can be used where they lie: as they are, and not stored in another type."""
    return shape.copied and wishes.layerwise_casting is None


# ---- how frames leave ----------------------------------------------------------------------------------------------


def _decodings(shape: ModelShape, job: Job, way: Candidate, wishes: Wishes) -> Iterator[Candidate]:
    """Yield the way with each way of decoding: streamed, tiled and streamed, tiled as a whole; pipelines from which
    frames come as a whole have the last, and one without tiles."""
    tiles = Tiling()
    has_tiles = max(job.height, job.width) > tiles.size
    streams = shape.streams
    if wishes.vae_tiling is not True or not has_tiles:
        words = "each latent frame leaves the VAE at once" if streams else "the pipeline returns the clip as a whole"
        plan = way.setting.plan.model_copy(update={"tiling": tiles}) if wishes.vae_tiling else way.setting.plan
        setting = dataclasses.replace(way.setting, plan=plan, streaming=streams)
        yield dataclasses.replace(way, setting=setting, reasons=(*way.reasons, words))
    if wishes.vae_tiling is False or not has_tiles:
        return
    plan = way.setting.plan.model_copy(update={"tiling": tiles})
    tiled = dataclasses.replace(way.setting, plan=plan)
    if streams:
        yield Candidate(
            f"{way.name}-tiled",
            tiled,
            way.cost * _TILED,
            (*way.reasons, f"the VAE decodes tiles of {tiles.size} pixels, each latent frame leaves at once"),
        )
    yield Candidate(
        f"{way.name}-tiled-whole",
        dataclasses.replace(tiled, streaming=False),
        way.cost * _TILED * _WHOLE,
        (*way.reasons, f"the VAE decodes tiles of {tiles.size} pixels one after the other, and joins the clip"),
    )


def _plan(
    wishes: Wishes,
    *,
    offload: Offload,
    group: GroupOffload | None = None,
    text_encoder: Literal["stay", "leave"] = "stay",
) -> PlanSpec:
    return PlanSpec(
        offload=offload,
        group=group,
        text_encoder=text_encoder,
        attention_backend=wishes.attention_backend,
        layerwise_casting=wishes.layerwise_casting,
        cache=None if wishes.cache is None else CacheSpec(name=wishes.cache),
    )
