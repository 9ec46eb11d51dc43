"""The worker's own share of a GPU: what torch's allocator may take, so that honest code fails with an error of its own.

It bounds the allocator, not the process: a CUDA context and libraries' workspaces come on top, and hostile code goes
around it. The supervisor's polling is the bound (`supervisor/gpu_memory.py`).
"""

from __future__ import annotations


def limit_memory(limit_bytes: int | None) -> None:
    """Keep torch below `limit_bytes` on every GPU that this worker sees. Call before anything is put on one."""
    import torch

    if limit_bytes is None:
        return
    for index in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(limit_bytes, total), index)


def memory_fraction(limit_bytes: int, total_bytes: int) -> float:
    """Return the part of a GPU's memory that the limit is: never more than all, never nothing."""
    return min(1.0, max(limit_bytes, 1) / total_bytes)
