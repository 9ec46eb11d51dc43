"""The worker's GPU: CUDA is set up here, after the fork and inside the sandbox, and its share of memory is bounded.

CUDA does not survive a fork, so the zygote never touches it: no library of ours asks for GPUs while it is imported, and
a zygote that holds a device of the driver forks no worker for a GPU (`workers/zygote.py`).

torch's own fraction bounds its allocator, not the process: a CUDA context and libraries' kernels come on top, for which
it leaves room, and hostile code goes around it. The supervisor's polling is the bound (`supervisor/gpu_memory.py`).

What is said here of CUDA has not been tried on a GPU yet, but for the refusals.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import ctypes
import os

from wan_compat.protocol.errors import GpuUnusable, clean_text
from wan_compat.protocol.values import GpuSpec

_CUDA_LIBRARY = "libcuda.so.1"
# What the driver counts as the process's and torch's allocator does not: as the planner's CUDA_CONTEXT_BYTES. Without
# it, honest code that fills its share would be killed for it, where torch's error lets the same worker go on.
_CONTEXT_BYTES = 600_000_000
_DEVICES = "/dev/nvidia"


def begin(gpu: GpuSpec | None, limit_bytes: int | None) -> None:
    """Set CUDA up on the one GPU that this worker was given, and compute something on it. Before weights are read.

    Args:
        gpu: Which; None takes what CUDA shows first.
        limit_bytes: See `limit_memory`.

    Raises:
        GpuUnusable: CUDA says so; in its words.
    """
    import torch

    # The zygote's, for questions at import; from here on CUDA itself is asked (torch/cuda/__init__.py).
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    if gpu is not None:
        # By UUID: numbers depend on CUDA_DEVICE_ORDER and on which nodes this worker has.
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu.uuid
    try:
        if gpu is not None and gpu.library_folder is not None:
            # CUDA's runtime asks the loader for this name, and gets what is loaded already.
            ctypes.CDLL(os.path.join(gpu.library_folder, _CUDA_LIBRARY), ctypes.RTLD_GLOBAL)
        torch.cuda.init()
        if float(torch.ones(8, device="cuda").sum()) != 8.0:
            raise GpuUnusable("the GPU adds eight ones to something else", hint="try another one: --device cuda:N")
    # AssertionError: torch was built without CUDA. DeferredCudaCallError: what was asked of it before this failed.
    except (RuntimeError, AssertionError, OSError, torch.cuda.DeferredCudaCallError) as error:
        raise GpuUnusable(
            f"CUDA cannot be used in a worker: {clean_text(str(error), 500)}",
            fixes=("compute on the processor: --device cpu", "`wan-compat doctor` says what it knows of the GPU"),
        ) from error
    limit_memory(limit_bytes)


def limit_memory(limit_bytes: int | None) -> None:
    """Keep torch below `limit_bytes` on every GPU that this worker sees. Call before anything is put on one."""
    import torch

    if limit_bytes is None:
        return
    for index in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(limit_bytes, total), index)


def memory_fraction(limit_bytes: int, total_bytes: int) -> float:
    """Return the part of a GPU's memory that the limit leaves torch: never more than all, never nothing."""
    return min(1.0, max(limit_bytes - _CONTEXT_BYTES, 1) / total_bytes)


def held_devices() -> tuple[str, ...]:
    """Return the driver's device nodes that this process holds open: with one, CUDA or NVML was touched."""
    held = []
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that listed the folder
            continue
        if path.startswith(_DEVICES):
            held.append(path)
    return tuple(sorted(held))
