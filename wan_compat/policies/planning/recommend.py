"""A plan from three figures alone: what a registry entry says of a model, where its files are not at hand.

`choice.py` is the real thing and wants headers; this is for a program that asks before anything was downloaded. The
figures name the plans they hold for (`ModelRequirements`): the least memory is that of moving groups with tiled
decoding, the recommended that of moving whole models; what is left is arithmetic with the weights' size.
"""

from __future__ import annotations

from wan_compat.policies.architecture import ModelRequirements
from wan_compat.policies.planning.contract import OptimizationPlan, SystemResources
from wan_compat.policies.planning.estimate import CUDA_CONTEXT_BYTES
from wan_compat.policies.planning.machine import GpuFacts
from wan_compat.protocol.plan import GroupOffload, Offload, PlanSpec, Tiling

_MB = 1_000_000


def recommend(needs: ModelRequirements, resources: SystemResources) -> OptimizationPlan:
    """Return the cheapest plan whose figures fit; with no figures or no GPU, everything on the CPU.

    `min_ram_mb` is the weights in bfloat16. Without a GPU, float32 is taken where twice that leaves room.
    """
    weights, free = needs.min_ram_mb, resources.vram_free_mb
    if not resources.gpus or not free:
        return _on_cpu(weights, resources, "there is no GPU")
    capability = resources.compute_capability
    known = None if capability is None else (int(capability.split(".")[0]), int(capability.partition(".")[2] or 0))
    dtype = "bfloat16" if GpuFacts("", 0, 0, known).computes_bfloat16 else "float16"
    largest = max(needs.recommended_vram_mb, needs.min_vram_mb)
    # The recommended figure has the largest model and its activations; what else stays is at most all weights.
    everything = weights + largest // 2 + CUDA_CONTEXT_BYTES // _MB
    held_in_ram = resources.ram_free_mb >= weights
    ways: list[tuple[int, Offload, bool, bool, str]] = [
        (everything if weights else 0, "none", False, True, "everything stays on the GPU"),
        (needs.recommended_vram_mb, "model", False, held_in_ram, "one model at a time on the GPU"),
        (needs.min_vram_mb, "group", True, True, "blocks move to the GPU while others compute"),
    ]
    for figure, offload, tiled, possible, reason in ways:
        if figure and possible and free >= figure:
            group = None
            if offload == "group":
                group = GroupOffload(level="block_level", use_stream=held_in_ram, disk=not held_in_ram)
            return _plan(
                PlanSpec(offload=offload, group=group, tiling=Tiling() if tiled else None),
                dtype,
                f"{reason}: {figure:,} MB of {free:,} MB",
                reduction=0.0 if offload == "none" else max(0.0, 1 - figure / everything) if everything else 0.0,
            )
    if not needs.min_vram_mb:
        return _plan(PlanSpec(offload="model", tiling=Tiling()), dtype, "what the model needs is not known")
    return _on_cpu(weights, resources, f"the GPU has {free:,} MB free, the leanest plan takes {needs.min_vram_mb:,} MB")


def _on_cpu(weights_mb: int, resources: SystemResources, why: str) -> OptimizationPlan:
    dtype = "float32" if 2 * weights_mb <= 0.7 * resources.ram_free_mb else "bfloat16"
    spec = PlanSpec(offload="full" if resources.gpus else "none")
    if weights_mb > 0.8 * resources.ram_free_mb:
        spec = PlanSpec(
            offload="group", group=GroupOffload(level="block_level", disk=True), text_encoder="leave", tiling=Tiling()
        )
    return _plan(spec, dtype, f"all on the CPU: {why}", device="cpu")


def _plan(
    spec: PlanSpec,
    dtype: str,
    reason: str,
    *,
    device: str = "cuda",
    reduction: float = 0.0,
) -> OptimizationPlan:
    return OptimizationPlan(
        use_mixed_precision=dtype != "float32",
        enable_cpu_offload=device == "cuda" and spec.offload != "none",
        offload_strategy=spec.offload,
        chunk_frames=True,
        max_chunk_size=4,
        estimated_vram_reduction=round(reduction, 3),
        name=spec.offload,
        device=device,
        dtype=dtype,
        vae_dtype="float32" if device == "cuda" else dtype,
        streaming=True,  # tiles stream too; a VAE for which they do not is found out when it is loaded
        spec=spec,
        cost=1.0,
        cost_basis="estimated",
        reasons=[reason],
    )
