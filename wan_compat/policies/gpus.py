"""Which GPU a job computes on, or why on none: decided from what the driver tells, before anything is started.

    auto      the usable NVIDIA GPU with the most room, else the processor
    cpu       the processor
    cuda      as auto, but an error where there is none
    cuda:N    that one, by nvidia-smi's number, or an error

Workers are never given a GPU that this file calls unusable. One that turns out not to work is not tried again by the
same supervisor where nobody asked for it (`supervisor/worker_pool.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping

from wan_compat.policies.planning.machine import GpuFacts
from wan_compat.protocol.errors import GpuUnusable, InvalidRequest

# Other programs use a little more or less at every look; which GPU is chosen, and with it whether a warm worker can be
# used again, should not hang on that.
_ROUGHLY_BYTES = 1 << 30
_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclasses.dataclass(frozen=True)
class CudaFacts:
    """Versions of CUDA: what torch was built for, None for a build without; and the newest that the driver can do."""

    torch: tuple[int, int] | None = None
    driver: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class NodeFacts:
    """Device nodes of one GPU that are not there, and those that workers may not use."""

    missing: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class GpuUse:
    """What the workers of this supervisor use of each GPU, by its UUID.

    Args:
        busy: How many workers are at work there.
        idle_bytes: What idle workers hold; they go when their memory is needed.
        busy_bytes: What the others hold.
        workers: How many jobs may run at once.
    """

    busy: Mapping[str, int] = dataclasses.field(default_factory=dict)
    idle_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    busy_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    workers: int = 1


@dataclasses.dataclass(frozen=True)
class GpuChoice:
    """`gpu` has the memory that one worker may count on. `why_not` says what is wrong with GPUs that were not taken."""

    gpu: GpuFacts | None = None
    why_not: tuple[str, ...] = ()


def choose_gpu(
    wish: str,
    gpus: Collection[GpuFacts],
    cuda: CudaFacts,
    *,
    nodes: Mapping[int, NodeFacts] | None = None,
    use: GpuUse | None = None,
) -> GpuChoice:
    """Return the GPU for a job.

    Args:
        wish: `auto`, `cpu`, `cuda` or `cuda:N`.
        gpus: All that were found.
        nodes: What is wrong with device nodes, by the GPU's index.

    Raises:
        InvalidRequest: There is no GPU of that number.
        GpuUnusable: One was asked for by name, and cannot be used.
    """
    if wish == "cpu":
        return GpuChoice()
    use = use or GpuUse()
    asked = [gpu for gpu in gpus if gpu.vendor == "nvidia" and wish in ("auto", "cuda", f"cuda:{gpu.index}")]
    if ":" in wish and not asked and any(gpu.vendor == "nvidia" for gpu in gpus):
        raise InvalidRequest(
            f"there is no GPU {wish!r}: the driver knows {_numbers(gpus)}", hint="see `wan-compat doctor`"
        )
    problems = {
        gpu.index: why_unusable(gpu, cuda, (nodes or {}).get(gpu.index, NodeFacts())) or _why_taken(gpu, use)
        for gpu in asked
    }
    usable = [gpu for gpu in asked if problems[gpu.index] is None]
    why_not = tuple(f"{_named(gpu)}: {problems[gpu.index]}" for gpu in asked if problems[gpu.index] is not None)
    others = tuple(f"{gpu.name}: workers compute on NVIDIA's alone" for gpu in gpus if gpu.vendor != "nvidia")
    if not usable:
        if wish != "auto":
            raise GpuUnusable(
                f"--device {wish} cannot be had: {'; '.join((*why_not, *others)) or 'no NVIDIA driver answers'}",
                fixes=["leave --device out, to compute on the processor", "see `wan-compat doctor`"],
            )
        return GpuChoice(None, (*why_not, *others))
    each = -(-use.workers // len(usable))  # workers that share a GPU when all are at work
    shared = [dataclasses.replace(gpu, memory_free_bytes=_share(gpu, use, each)) for gpu in usable]
    return GpuChoice(min(shared, key=lambda gpu: _rank(gpu, use)), why_not)


def why_unusable(gpu: GpuFacts, cuda: CudaFacts, nodes: NodeFacts) -> str | None:
    """Return why workers cannot compute on this GPU, and what would change that; None if nothing speaks against it."""
    if gpu.vendor != "nvidia":
        return "workers compute on NVIDIA's alone"
    if cuda.torch is None:
        return "the installed torch is a build without CUDA (pytorch.org/get-started/locally has the others)"
    if cuda.driver is not None and cuda.driver[0] < cuda.torch[0]:
        # Within a major version older drivers run newer programs (docs.nvidia.com/deploy/cuda-compatibility).
        return f"its driver does CUDA {_version(cuda.driver)}, torch needs {_version(cuda.torch)}: install a newer one"
    if gpu.mig:
        return "it is divided into parts (MIG), and workers are given whole ones: nvidia-smi -mig 0"
    if gpu.compute_mode == "prohibited":
        return "its compute mode lets nobody compute: nvidia-smi -c 0"
    if nodes.missing:
        return f"{', '.join(nodes.missing)} is not there: nvidia-modprobe -u -c {gpu.minor or 0} makes it"
    if nodes.closed:
        return f"workers may not use {', '.join(nodes.closed)}: chmod a+rw {' '.join(nodes.closed)}"
    if gpu.minor is None or gpu.address is None or not _UUID.fullmatch(gpu.uuid or ""):
        return "the driver does not tell which one it is"
    return None


def remarks(gpu: GpuFacts) -> tuple[str, ...]:
    """Return what to know about a GPU that can be used."""
    if gpu.compute_mode == "exclusive":
        return ("one process at a time may compute on it (exclusive process mode): use one worker, or nvidia-smi -c 0",)
    return ()


def _why_taken(gpu: GpuFacts, use: GpuUse) -> str | None:
    """Return why a GPU that can be used cannot be used now."""
    # A second process would be refused by the driver, which cannot be told from a GPU that does not work.
    if gpu.compute_mode == "exclusive" and use.busy.get(gpu.uuid or ""):
        return (
            "another worker computes on it, and its mode lets one process at a time: use one worker, or nvidia-smi -c 0"
        )
    return None


def _share(gpu: GpuFacts, use: GpuUse, workers: int) -> int:
    """Return an equal part of what is free or ours, and no more than is free or idle."""
    uuid = gpu.uuid or ""
    free = gpu.memory_free_bytes + use.idle_bytes.get(uuid, 0)
    ours = free + use.busy_bytes.get(uuid, 0)
    return min(free, gpu.memory_total_bytes, ours // workers)


def _rank(gpu: GpuFacts, use: GpuUse) -> tuple[int, int, int]:
    return use.busy.get(gpu.uuid or "", 0), -(gpu.memory_free_bytes // _ROUGHLY_BYTES), gpu.index


def _named(gpu: GpuFacts) -> str:
    return f"GPU {gpu.index} ({gpu.name})"


def _numbers(gpus: Collection[GpuFacts]) -> str:
    return ", ".join(str(gpu.index) for gpu in gpus if gpu.vendor == "nvidia") or "none"


def _version(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
