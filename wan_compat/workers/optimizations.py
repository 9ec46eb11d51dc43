"""A plan, carried out on a loaded pipeline through diffusers and accelerate; every step is named in what is returned.

    check_plan    refuses what this device cannot mean, before anything is loaded
    apply_plan    places the models and sets tiling, slicing, casting and attention
    caching       one of diffusers' caches, for the time of one generation

What can be meant where:

    offload       cpu                                 cuda
    none          everything in memory                everything on the GPU
    model         refused: there is nowhere to go     one model on the GPU at a time
    group         diffusers' hooks, nothing gained    groups of layers come and go
    group, disk   weights stay in their files         the same, block by block to the GPU (file_weights.py)
    sequential    refused                             one layer at a time
    full          everything in memory                refused: "full" is device "cpu"

Nothing here chooses. A plan that cannot be carried out is an error: to do less in silence would mean running out of
memory in the middle of the night.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from wan_compat.protocol.errors import InvalidRequest, ModelNotCompatible, clean_text
from wan_compat.protocol.plan import CacheSpec, GroupOffload, PlanSpec

_NEEDS_ACCELERATOR = ("model", "sequential")
EXPERTS = ("transformer", "transformer_2")
IN_FILES = (*EXPERTS, "text_encoder")  # the heavy parts, which a plan may leave in their files
STORAGE = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
# Tile sides must divide into latents, and every tile must begin before the last one ends.
_TILE_MULTIPLE = 16


def check_plan(plan: PlanSpec, device: str) -> None:
    """Raise InvalidRequest for a plan that contradicts itself or the device."""
    if device == "cpu" and plan.offload in _NEEDS_ACCELERATOR:
        raise InvalidRequest(
            f"offload {plan.offload!r} moves models between a GPU and memory, and this worker computes on the CPU",
            hint="leave --offload out; on a CPU, --offload group keeps weights in their files",
        )
    if device != "cpu" and plan.offload == "full":
        raise InvalidRequest("offload 'full' computes on the CPU, and this worker was given a GPU")
    group = plan.group or GroupOffload()
    if group.use_stream and device == "cpu":
        raise InvalidRequest("group offloading with a stream copies while a GPU computes; this worker has none")
    if plan.group is not None and plan.offload != "group":
        raise InvalidRequest(f"the plan has options for group offloading, but offload is {plan.offload!r}")
    if plan.layerwise_casting and group.disk and plan.offload == "group":
        raise InvalidRequest("weights that stay in their files cannot be stored in another type")
    if plan.tiling is not None:
        size, stride = plan.tiling.size, plan.tiling.stride
        if size % _TILE_MULTIPLE or stride % _TILE_MULTIPLE or stride > size:
            raise InvalidRequest(
                f"tiles of {size} pixels every {stride} pixels",
                hint=f"use multiples of {_TILE_MULTIPLE}, with a stride that is not larger than the tile",
            )
    if plan.attention_backend is not None and "hub" in plan.attention_backend.split("_"):
        raise InvalidRequest(
            f"the attention backend {plan.attention_backend!r} downloads its kernels, and a worker has no network",
            hint="install flash-attn or sageattention, and use flash or sage",
        )
    if plan.cache is not None and plan.cache.name == "mag" and not plan.cache.ratios:
        raise InvalidRequest(
            "MagCache needs the magnitude ratios of this checkpoint, and the plan has none",
            hint="use first_block or taylorseer, which need no numbers of a checkpoint",
        )


def stays_in_files(plan: PlanSpec) -> bool:
    """Return whether text encoders and transformers are to be laid out over their files."""
    return plan.offload == "group" and plan.group is not None and plan.group.disk


def apply_plan(pipeline: Any, plan: PlanSpec, device: str) -> tuple[str, ...]:
    """Do to `pipeline` what `plan` says, once; return what was done, in words for a result's `optimizations_applied`.

    Raises:
        InvalidRequest: See check_plan.
        ModelNotCompatible: The pipeline or an installed library cannot do it.
    """
    check_plan(plan, device)
    done = [*_set_tiling(pipeline, plan), *_cast_layers(pipeline, plan), *_set_attention(pipeline, plan)]
    return (*_place(pipeline, plan, device), *done)


@contextlib.contextmanager
def caching(pipeline: Any, cache: CacheSpec | None, num_inference_steps: int) -> Iterator[tuple[str, ...]]:
    """Use a cache during one generation; gives what was done. Its state never reaches the next generation."""
    if cache is None:
        yield ()
        return
    experts = [part for name in EXPERTS if (part := getattr(pipeline, name, None)) is not None]
    enabled = []
    try:
        for expert in experts:
            if not hasattr(expert, "enable_cache"):
                raise ModelNotCompatible(f"{type(expert).__name__} takes none of diffusers' caches")
            expert.enable_cache(cache_config(cache, pipeline, num_inference_steps))
            enabled.append(expert)
        yield (f"cache:{cache.name}",)
    finally:
        for expert in enabled:
            expert.disable_cache()


def cache_config(cache: CacheSpec, pipeline: Any, num_inference_steps: int) -> Any:
    """Return diffusers' configuration for a cache; what the spec leaves open is diffusers' own default."""
    import diffusers

    if cache.name == "first_block":
        return diffusers.FirstBlockCacheConfig(**_given(threshold=cache.threshold))
    if cache.name == "mag":
        return diffusers.MagCacheConfig(
            mag_ratios=list(cache.ratios),
            num_inference_steps=num_inference_steps,
            **_given(threshold=cache.threshold, max_skip_steps=cache.skip_range),
        )
    if cache.name == "pyramid_attention":
        # The range of the paper (arXiv 2408.12588); diffusers has no default.
        return diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=cache.skip_range or 2,
            current_timestep_callback=lambda: pipeline.current_timestep,
        )
    return diffusers.TaylorSeerCacheConfig(**_given(cache_interval=cache.skip_range))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _place(pipeline: Any, plan: PlanSpec, device: str) -> tuple[str, ...]:
    modules = _modules(pipeline)
    if stays_in_files(plan):
        # Laid out by the loader, on the device already; the rest is small.
        for name in modules.keys() - set(IN_FILES):
            modules[name].to(device)
        return ("offload:group", "weights:in_files")
    if plan.offload == "group":
        group = plan.group or GroupOffload()
        for name, module in modules.items():
            # The VAE's seam for streaming runs below the hooks, and it is half a gigabyte.
            if name == "vae" or (name == "text_encoder" and plan.text_encoder == "leave"):
                module.to(device)
            else:
                _offload_groups(name, module, group, device)
        stream = "+stream" if group.use_stream else ""
        return (f"offload:group:{group.level}{stream}",)
    if device == "cpu":
        return () if plan.offload == "none" else (f"offload:{plan.offload}",)
    if plan.text_encoder == "leave" and plan.offload != "none":
        # It comes and goes by itself (residence.py), which accelerate's hooks must not move about in between.
        pipeline.model_cpu_offload_seq = "image_encoder->transformer->transformer_2->vae"
        pipeline._exclude_from_cpu_offload = [*pipeline._exclude_from_cpu_offload, "text_encoder"]
    if plan.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif plan.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
        return ()
    return (f"offload:{plan.offload}",)


def _offload_groups(name: str, module: Any, group: GroupOffload, device: str) -> None:
    from diffusers.hooks.group_offloading import apply_group_offloading

    blocks = group.blocks_per_group if group.level == "block_level" else None
    try:
        apply_group_offloading(
            module,
            onload_device=torch.device(device),
            offload_device=torch.device("cpu"),
            offload_type=group.level,
            num_blocks_per_group=blocks,
            use_stream=group.use_stream,
        )
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise ModelNotCompatible(
            f"{name} cannot be offloaded in groups: {clean_text(str(error), 300)}",
            hint="use --offload model or --offload sequential",
        ) from error


def _set_tiling(pipeline: Any, plan: PlanSpec) -> Iterator[str]:
    if plan.tiling is None and not plan.vae_slicing:
        return
    vae = pipeline.vae
    if plan.vae_slicing:
        vae.enable_slicing()
        yield "vae_slicing"
    if plan.tiling is not None:
        size, stride = plan.tiling.size, plan.tiling.stride
        vae.enable_tiling(size, size, stride, stride)
        yield f"vae_tiling:{size}/{stride}"


def cast_layers(name: str, expert: Any, plan: PlanSpec) -> None:
    """Store the layers of a transformer in 8 bits if the plan says so, once; each computes in its own precision.

    Raises:
        ModelNotCompatible: It has no such hook, or what it has are no plain numbers: it is quantised.
    """
    if plan.layerwise_casting is None:
        return
    storage = STORAGE[plan.layerwise_casting]
    if not hasattr(expert, "enable_layerwise_casting"):
        raise ModelNotCompatible(f"{name} is a {type(expert).__name__}, whose layers cannot be cast")
    weights = list(expert.parameters())
    if not all(type(weight) is torch.nn.Parameter and weight.is_floating_point() for weight in weights):
        raise ModelNotCompatible(
            f"{name} is quantised, and its layers cannot be stored in {plan.layerwise_casting} besides",
            hint="use either fewer bits or layerwise casting",
        )
    if not any(weight.dtype == storage for weight in weights):
        expert.enable_layerwise_casting(storage_dtype=storage, compute_dtype=expert.dtype)


def _cast_layers(pipeline: Any, plan: PlanSpec) -> Iterator[str]:
    if plan.layerwise_casting is not None:
        for name, expert in _experts(pipeline).items():
            cast_layers(name, expert, plan)
        yield f"layerwise_casting:{plan.layerwise_casting}"


def _set_attention(pipeline: Any, plan: PlanSpec) -> Iterator[str]:
    if plan.attention_backend is None:
        return
    for name, expert in _experts(pipeline).items():
        if not hasattr(expert, "set_attention_backend"):
            raise ModelNotCompatible(f"{name} is a {type(expert).__name__}, whose attention cannot be chosen")
        try:
            expert.set_attention_backend(plan.attention_backend)
        except (ValueError, RuntimeError, ImportError) as error:
            raise ModelNotCompatible(
                f"the attention backend {plan.attention_backend!r} cannot be used: {clean_text(str(error), 300)}",
                hint="leave --attention-backend out, or use native",
            ) from error
    yield f"attention:{plan.attention_backend}"


def _experts(pipeline: Any) -> Mapping[str, Any]:
    return {name: module for name, module in _modules(pipeline).items() if name in EXPERTS}


def _modules(pipeline: Any) -> dict[str, Any]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
