"""The answers of planning as embedding programs know them: `OptimizationPlan`, `SystemResources`, `MemoryEstimate`.

Sizes in `_mb` are megabytes of 1,000,000 bytes, as in the registry.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from wan_compat.policies.planning.choice import Choice
from wan_compat.policies.planning.estimate import Phase, PhaseMemory
from wan_compat.policies.planning.machine import GpuFacts, MachineFacts
from wan_compat.protocol.memory import MemoryEstimate as MemoryEstimate
from wan_compat.protocol.plan import PIXEL_CHANGING, PlanSpec

_MB = 1_000_000


@dataclasses.dataclass
class SystemResources:
    """A machine. `compute_capability` is the first GPU's; `shm_free_mb` does not matter to workers, whose frames travel
    in memory of their own."""

    gpus: list[str]
    vram_total_mb: int
    vram_free_mb: int
    ram_total_mb: int
    ram_free_mb: int
    shm_free_mb: int = 0
    compute_capability: str | None = None
    cpu_count: int = 1
    disk_free_mb: int = 0
    remarks: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class OptimizationPlan:
    """What is done to make a model fit.

    Args:
        offload_strategy: `none`, `model`, `group`, `sequential`, or `full` (all on the CPU).
        chunk_frames: Frames leave the VAE in chunks, or are decoded in tiles; denoising is never chunked, because that
            makes another video.
        max_chunk_size: Frames in a chunk; 0 where the clip is decoded as a whole.
        estimated_vram_reduction: Share of a plain script's peak that is saved, 0 to 1; of main memory on a CPU.
        spec: As a worker is told.
        changes_pixels: Fields of `spec` that change pixels beyond the order of sums; only what was asked for.
        cost: Time relative to the fastest way on the same device; `cost_basis` says how sure that is.
    """

    use_mixed_precision: bool
    enable_cpu_offload: bool
    offload_strategy: str
    chunk_frames: bool
    max_chunk_size: int
    estimated_vram_reduction: float
    name: str = "none"
    device: str = "cpu"
    dtype: str = "float32"
    vae_dtype: str = "float32"
    streaming: bool = True
    spec: PlanSpec = dataclasses.field(default_factory=PlanSpec)
    changes_pixels: list[str] = dataclasses.field(default_factory=list)
    cost: float = 1.0
    cost_basis: str = "estimated"
    reasons: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain data; the spec's fields stand beside the others."""
        document = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "spec"}
        return document | self.spec.model_dump(mode="json")


def plan_of(choice: Choice) -> OptimizationPlan:
    """Return the chosen plan with the contract's fields."""
    candidate = choice.chosen.candidate
    setting = candidate.setting
    spec = setting.plan
    return OptimizationPlan(
        use_mixed_precision=setting.dtype != setting.vae_dtype or setting.dtype != "float32",
        enable_cpu_offload=setting.device == "cuda" and spec.offload != "none",
        offload_strategy=spec.offload,
        chunk_frames=setting.streaming or spec.tiling is not None,
        max_chunk_size=4 if setting.streaming else 0,
        estimated_vram_reduction=choice.reduction,
        name=candidate.name,
        device=setting.device,
        dtype=setting.dtype,
        vae_dtype=setting.vae_dtype,
        streaming=setting.streaming,
        spec=spec,
        changes_pixels=[name for name in PIXEL_CHANGING if getattr(spec, name) is not None],
        cost=candidate.cost.factor,
        cost_basis=candidate.cost.basis,
        reasons=list(choice.reasons),
    )


def estimate_of(choice: Choice) -> MemoryEstimate:
    """Return the memory of the chosen plan."""
    return memory_estimate(dict(choice.chosen.phases), fits=choice.fits)


def memory_estimate(phases: dict[Phase, PhaseMemory], *, fits: bool) -> MemoryEstimate:
    vram = {str(name): _megabytes(item.vram_bytes) for name, item in phases.items()}
    ram = {str(name): _megabytes(item.ram_bytes) for name, item in phases.items()}
    return MemoryEstimate(vram, ram, max(vram.values()), fits, max(ram.values()))


def resources_of(machine: MachineFacts, *, shm_free_bytes: int = 0) -> SystemResources:
    """Return a machine's facts with the contract's fields."""
    gpu = machine.gpu
    capability = gpu.compute_capability if gpu is not None else None
    return SystemResources(
        gpus=[item.name for item in machine.gpus],
        vram_total_mb=_megabytes(gpu.memory_total_bytes) if gpu is not None else 0,
        vram_free_mb=machine.vram_bytes // _MB,
        ram_total_mb=machine.ram_total_bytes // _MB,
        ram_free_mb=machine.ram_free_bytes // _MB,
        shm_free_mb=shm_free_bytes // _MB,
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        cpu_count=machine.cpu_count,
        disk_free_mb=(machine.disk_free_bytes or 0) // _MB,
        remarks=[item.remark for item in machine.gpus],
    )


def machine_of(resources: SystemResources) -> MachineFacts:
    """Return the machine that `resources` describe."""
    capability = None
    if resources.compute_capability is not None:
        major, _, minor = resources.compute_capability.partition(".")
        capability = (int(major), int(minor or 0))
    gpus = tuple(
        GpuFacts(name, resources.vram_total_mb * _MB, resources.vram_free_mb * _MB, capability, index=index)
        for index, name in enumerate(resources.gpus)
    )
    return MachineFacts(
        ram_total_bytes=resources.ram_total_mb * _MB,
        ram_free_bytes=resources.ram_free_mb * _MB,
        ram_limit_bytes=resources.ram_free_mb * _MB,
        cpu_count=max(1, resources.cpu_count),
        gpus=gpus,
        disk_free_bytes=resources.disk_free_mb * _MB or None,
    )


def _megabytes(count: int) -> int:
    return math.ceil(count / _MB)
