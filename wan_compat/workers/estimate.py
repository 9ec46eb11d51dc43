"""What a generation will take, asked of the models themselves: they run without numbers, and their tensors are counted.

Each model is copied with weights on torch's `meta` device, which have shapes and types and nothing else; then its
forward runs as it would, on shapes, in milliseconds to seconds, and `memory_count` counts what it holds. So this knows
what the installed diffusers does, where the planner (policies/planning) knows from files alone, before anything is
loaded; the two are compared in tests.

Not seen, as in `memory_count`: what a kernel takes for itself.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from wan_compat.protocol.memory import MemoryEstimate
from wan_compat.protocol.plan import PlanSpec
from wan_compat.workers.memory_count import MemoryCount, resident_bytes
from wan_compat.workers.optimizations import STORAGE, stays_in_files
from wan_compat.workers.streaming import decode_pieces
from wan_compat.workers.tiled_streaming import decode_tiled_pieces, would_tile

_MB = 1_000_000
_EXPERTS = ("transformer", "transformer_2")
# Latents, the model's answers with and without guidance, and two earlier ones that the solver remembers.
_LATENT_COPIES = 5
_IMAGE_TOKENS = 257


def estimate_memory(
    pipeline: Any,
    plan: PlanSpec,
    device: str,
    *,
    height: int,
    width: int,
    num_frames: int,
    max_sequence_length: int = 512,
    streaming: bool = True,
    available_bytes: int | None = None,
) -> MemoryEstimate:
    """Return the memory of each phase of one generation.

    Args:
        available_bytes: On the device that computes; without it, `fits` says nothing but true.
        streaming: Whether frames leave the VAE one latent frame at a time.
    """
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    latent = (
        (num_frames - 1) // pipeline.vae_scale_factor_temporal + 1,
        height // pipeline.vae_scale_factor_spatial,
        width // pipeline.vae_scale_factor_spatial,
    )
    work: dict[str, int] = {}
    with torch.no_grad():
        work["text_encode"] = _text_work(modules["text_encoder"], max_sequence_length)
        for name, phase in zip(_EXPERTS, ("denoise_high", "denoise_low"), strict=True):
            if name in modules:
                given = _inputs(pipeline, modules[name], latent, max_sequence_length, modules["text_encoder"])
                work[phase] = _denoise_work(modules[name], plan, given, pipeline.vae.config.z_dim, latent)
        work["decode"] = _decode_work(pipeline.vae, latent, streaming=streaming)
    computing, waiting = {}, {}
    for phase, size in work.items():
        here, there = _weights(modules, plan, phase, device)
        computing[phase], waiting[phase] = here + size, there
    vram = computing if device != "cpu" else dict.fromkeys(work, 0)
    ram = waiting if device != "cpu" else computing
    return MemoryEstimate(
        vram_mb={phase: math.ceil(size / _MB) for phase, size in vram.items()},
        ram_mb={phase: math.ceil(size / _MB) for phase, size in ram.items()},
        peak_vram_mb=math.ceil(max(vram.values()) / _MB),
        fits=available_bytes is None or max(computing.values()) <= available_bytes,
        peak_ram_mb=math.ceil(max(ram.values()) / _MB),
    )


def without_numbers(module: torch.nn.Module) -> Any:
    """Return a copy of a model on the `meta` device, without the hooks of this one."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = torch.nn.Parameter(empty, False) if isinstance(tensor, torch.nn.Parameter) else empty
    # Neither copied nor run: hooks look for stops, move weights and count.
    for part in module.modules():
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            memo[id(hooks)] = type(hooks)()
        for name in ("_diffusers_hook", "_hf_hook"):
            if name in vars(part):
                memo[id(vars(part)[name])] = None
    made = copy.deepcopy(module, memo)
    for part in made.modules():
        for name in ("forward", "_diffusers_hook"):  # what the libraries' hooks put in place of it, and what held them
            vars(part).pop(name, None)
    return made


class _FusedAttention(TorchFunctionMode):
    """Attention as it is on every device that computes: a fused kernel, without queries x keys. The `meta` device has
    no such kernel, and would count the matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, _, value = (
                args[:3] if len(args) >= 3 else [(kwargs or {})[name] for name in ("query", "key", "value")]
            )
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **(kwargs or {}))


def _text_work(encoder: torch.nn.Module, length: int) -> int:
    twin: Any = without_numbers(encoder)
    with MemoryCount() as count:
        count.phase("text")
        # Without a mask: transformers looks at its numbers, and there are none.
        twin(torch.zeros(1, length, dtype=torch.long, device="meta"))
        count.end_phase()
    return int(count.peaks["text"])


def _inputs(pipeline: Any, expert: Any, latent: tuple[int, int, int], length: int, encoder: Any) -> dict[str, Any]:
    config, dtype = expert.config, expert.dtype

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    timesteps: tuple[int, ...] = (1,)
    if getattr(pipeline.config, "expand_timesteps", False):
        timesteps = (1, math.prod(side // patch for side, patch in zip(latent, config.patch_size, strict=True)))
    given = {
        "hidden_states": empty(1, config.in_channels, *latent),
        "timestep": empty(*timesteps, dtype=torch.int64),
        "encoder_hidden_states": empty(1, length, encoder.config.d_model),
        "return_dict": False,
    }
    if getattr(config, "image_dim", None) is not None:
        given["encoder_hidden_states_image"] = empty(1, _IMAGE_TOKENS, config.image_dim)
    if getattr(config, "vace_in_channels", None) is not None:
        given["control_hidden_states"] = empty(1, config.vace_in_channels, *latent)
    return given


def _denoise_work(
    expert: Any, plan: PlanSpec, given: dict[str, Any], channels: int, latent: tuple[int, int, int]
) -> int:
    twin = without_numbers(expert)
    if plan.layerwise_casting is not None:
        # Its hooks were left behind with the others, and without them nothing can be computed.
        twin.enable_layerwise_casting(storage_dtype=STORAGE[plan.layerwise_casting], compute_dtype=expert.dtype)
    # Its weights are counted along, because layers that are cast are made anew at each use; they are no work of it.
    with MemoryCount([twin]) as count, _FusedAttention():
        count.phase("denoise")
        resident = count.live_bytes
        twin(**given)
        count.end_phase()
    held = sum(item.numel() * item.element_size() for item in given.values() if isinstance(item, torch.Tensor))
    return int(count.peaks["denoise"]) - resident + held + _LATENT_COPIES * 4 * channels * math.prod(latent)


def _decode_work(vae: Any, latent: tuple[int, int, int], *, streaming: bool) -> int:
    twin: Any = without_numbers(vae)
    z = torch.empty((1, vae.config.z_dim, *latent), dtype=vae.dtype, device="meta")
    with MemoryCount() as count:
        count.phase("decode")
        if streaming:
            for piece in decode_tiled_pieces(twin, z) if would_tile(twin, z) else decode_pieces(twin, z):
                del piece
        else:
            twin._decode(z)
        count.end_phase()
    return int(count.peaks["decode"]) + _LATENT_COPIES * z.numel() * 4


def _weights(modules: Mapping[str, Any], plan: PlanSpec, phase: str, device: str) -> tuple[int, int]:
    """Return the bytes of weights where it is computed, and those that wait in main memory."""
    by_phase = {"text_encode": "text_encoder", "denoise_high": _EXPERTS[0], "denoise_low": _EXPERTS[1], "decode": "vae"}
    sizes = {name: _size(module) for name, module in modules.items()}
    at_work = by_phase[phase]
    away = plan.text_encoder == "leave" and phase != "text_encode" and not stays_in_files(plan)
    total = sum(size for name, size in sizes.items() if not (away and name == "text_encoder"))
    if stays_in_files(plan):
        # What is in memory is measured: blocks of another type than their files' come one at a time.
        largest = max((_size(block, mapped=False) for block in _blocks(modules[at_work])), default=0)
        return resident_bytes(modules.values()) + largest, 0
    if device == "cpu" or plan.offload in ("none", "full"):
        return total, 0
    if plan.offload == "model":
        return sizes[at_work], total
    blocks = [_size(block) for block in _blocks(modules[at_work])]
    group = plan.group
    if plan.offload == "sequential" or group is None or group.level == "leaf_level":
        leaves = [_size(part) for part in modules[at_work].modules() if not list(part.children())]
        return max(leaves, default=0) * (2 if group is not None and group.use_stream else 1), total
    return max(blocks, default=sizes[at_work]) * group.blocks_per_group * (2 if group.use_stream else 1), total


def _blocks(module: torch.nn.Module) -> list[torch.nn.Module]:
    found: list[torch.nn.Module] = []
    for child in module.children():
        found += list(child) if isinstance(child, torch.nn.ModuleList) else _blocks(child)
    return found


def _size(module: torch.nn.Module, *, mapped: bool = True) -> int:
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}.values()
    counted = (tensor for tensor in tensors if mapped or not getattr(tensor, "wan_compat_mapped", False))
    return sum(tensor.numel() * tensor.element_size() for tensor in counted)
