"""The machine as planning sees it: what there is, what of it is free, and what one worker may take."""

from __future__ import annotations

import dataclasses
from typing import Literal

Vendor = Literal["nvidia", "amd", "apple"]
ComputeMode = Literal["default", "exclusive", "prohibited"]

# bfloat16 is computed from Ampere on; before, torch emulates it slowly.
_BFLOAT16_CAPABILITY = (8, 0)
_VENDORS = {"nvidia": "NVIDIA", "amd": "AMD", "apple": "Apple"}


@dataclasses.dataclass(frozen=True)
class GpuFacts:
    """One GPU. `compute_capability` is CUDA's, None where nothing tells.

    Args:
        index: The driver's, as nvidia-smi counts.
        minor: Of its device node.
        address: On the PCI bus, as /sys writes it.
        mig: It is divided into parts.
        library_folder: Of the driver's libraries, where that is none of the system's.
    """

    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    compute_capability: tuple[int, int] | None = None
    vendor: Vendor = "nvidia"
    index: int = 0
    uuid: str | None = None
    minor: int | None = None
    address: str | None = None
    compute_mode: ComputeMode = "default"
    mig: bool = False
    library_folder: str | None = None

    @property
    def computes_bfloat16(self) -> bool:
        return self.compute_capability is None or self.compute_capability >= _BFLOAT16_CAPABILITY

    @property
    def remark(self) -> str:
        """What a user should know about plans for it: none of them was tried on such a GPU."""
        return f"{self.name} ({_VENDORS[self.vendor]}): planned for, untested"


@dataclasses.dataclass(frozen=True)
class MachineFacts:
    """What there is for one worker.

    Args:
        gpus: Those that a worker could be given; planning takes the first.
        ram_total_bytes, ram_free_bytes: Main memory, under our own cgroup's limits.
        ram_limit_bytes: The worker's cap.
        vram_limit_bytes: The worker's cap on the GPU; None takes what is free.
        disk_free_bytes: Where weights could be put aside; None is not known.
    """

    ram_total_bytes: int
    ram_free_bytes: int
    ram_limit_bytes: int
    cpu_count: int
    gpus: tuple[GpuFacts, ...] = ()
    vram_limit_bytes: int | None = None
    disk_free_bytes: int | None = None

    @property
    def gpu(self) -> GpuFacts | None:
        return self.gpus[0] if self.gpus else None

    @property
    def vram_bytes(self) -> int:
        """What a worker may take of the GPU; 0 without one."""
        if self.gpu is None:
            return 0
        free = self.gpu.memory_free_bytes
        return free if self.vram_limit_bytes is None else min(free, self.vram_limit_bytes)
