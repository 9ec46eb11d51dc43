"""The machine, read for planning: GPUs by their drivers, memory under our own limits. Nothing is set up on a GPU."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from wan_compat.policies.facts import HostFacts
from wan_compat.policies.planning.machine import GpuFacts, MachineFacts
from wan_compat.supervisor.gpus import read_nvidia
from wan_compat.supervisor.host import read_host

_DRM = Path("/sys/class/drm")
_AMD = "0x1002"  # PCI vendor


def read_machine(ram_limit_bytes: int | None = None, *, host: HostFacts | None = None) -> MachineFacts:
    """Return what there is for one worker.

    Args:
        ram_limit_bytes: The worker's cap; None is all that is free.

    Raises:
        EnvironmentLacks: /proc does not tell.
    """
    host = host or read_host()
    return MachineFacts(
        ram_total_bytes=host.memory_total_bytes,
        ram_free_bytes=host.memory_available_bytes,
        ram_limit_bytes=host.memory_available_bytes if ram_limit_bytes is None else ram_limit_bytes,
        cpu_count=host.cpu_count,
        gpus=(*read_nvidia()[0], *_amd(), *_apple(host)),
        disk_free_bytes=_disk_free(),
    )


def worker_machine(
    ram_limit_bytes: int, *, host: HostFacts, gpu: GpuFacts | None = None, vram_limit_bytes: int | None = None
) -> MachineFacts:
    """Return what a worker really gets: main memory, cores, and the GPU that was chosen for it (gpus.py), if any."""
    return MachineFacts(
        ram_total_bytes=host.memory_total_bytes,
        ram_free_bytes=host.memory_available_bytes,
        ram_limit_bytes=ram_limit_bytes,
        cpu_count=host.cpu_count,
        gpus=() if gpu is None else (gpu,),
        vram_limit_bytes=vram_limit_bytes,
    )


def _amd() -> tuple[GpuFacts, ...]:
    """AMD's cards, as their kernel driver shows them (Documentation/gpu/amdgpu/driver-misc.rst)."""
    found: list[GpuFacts] = []
    for card in sorted(_DRM.glob("card*/device")) if _DRM.is_dir() else ():
        total, used = _number(card / "mem_info_vram_total"), _number(card / "mem_info_vram_used")
        if _text(card / "vendor") == _AMD and total:
            name = _text(card / "product_name") or "AMD GPU"
            found.append(GpuFacts(name, total, max(0, total - (used or 0)), vendor="amd", index=len(found)))
    return tuple(found)


def _apple(host: HostFacts) -> tuple[GpuFacts, ...]:
    """Apple's GPU, whose memory is the machine's."""
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return ()
    return (GpuFacts("Apple GPU", host.memory_total_bytes, host.memory_available_bytes, vendor="apple"),)


def _disk_free() -> int | None:
    try:
        return shutil.disk_usage(os.path.expanduser("~")).free
    except OSError:
        return None


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(200).strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None
