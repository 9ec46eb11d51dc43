"""How much GPU memory a worker uses, polled from outside, and the cap that polling can enforce.

No kernel bounds GPU memory by process, so this cap is a soft one: a worker that goes over it is killed at the next
look, up to POLL_S later, and the driver frees what it had. Between two looks it may take all that is free. torch's own
fraction (`workers/gpu.py`) keeps honest code below the cap; hostile code goes around it, which is what the polling is
for.

A supervisor inside a container with process numbers of its own may not recognise its worker in the driver's list. Once
a worker has its model on a GPU it must be in that list; if it is not and a cap was asked for, it is ended, because
nobody could see whether it keeps to that.
"""

from __future__ import annotations

import time

from wan_compat.protocol.errors import MemoryExceeded, SandboxUnavailable, WanCompatError
from wan_compat.supervisor.nvml import Nvml

# Asking the driver takes a millisecond or more, which the other watches, four times as often, should not pay.
POLL_S = 0.2


class GpuWatch:
    """Polls one process. `peak_bytes` is the most that was seen.

    Without a driver there is nothing to watch, and no GPU to use.

    Args:
        pid: The worker.
        limit_bytes: The cap on all GPUs together; None only watches.
        may_use_gpu: Whether the worker was given one. Only then is a driver that tells no numbers a reason to end it.
    """

    def __init__(self, pid: int, limit_bytes: int | None, *, may_use_gpu: bool) -> None:
        self._pid, self._limit_bytes, self._may_use_gpu = pid, limit_bytes, may_use_gpu
        self._polled = 0.0
        self.must_show = False  # it has said that it uses the GPU, and so must be in the driver's list
        self.used_bytes = 0
        self.peak_bytes = 0
        self._nvml: Nvml | None
        try:
            self._nvml = Nvml()
        except OSError:
            self._nvml = None

    def exceeded(self) -> WanCompatError | None:
        """Look, unless that was a moment ago, and return why the worker must be ended, if it must."""
        now = time.monotonic()
        if self._nvml is None or now - self._polled < POLL_S:
            return None
        self._polled = now
        used = self._nvml.used_by(self._pid)
        if used is None:
            return self._blind() if self._may_use_gpu and self._limit_bytes is not None else None
        if used == 0 and self.must_show and self._limit_bytes is not None:
            return self._unlisted()
        self.used_bytes = used
        self.peak_bytes = max(self.peak_bytes, used)
        if self._limit_bytes is None or used <= self._limit_bytes:
            return None
        return MemoryExceeded(
            f"the worker used {used / 1e9:.2f} GB of the {self._limit_bytes / 1e9:.2f} GB of GPU memory allowed",
            fixes=["allow more with gpu_memory_limit", "ask for fewer frames or a smaller size"],
            details={"gpu_used_bytes": used, "gpu_memory_limit_bytes": self._limit_bytes},
        )

    def computes(self, uuid: str) -> bool:
        """Whether that GPU was seen computing just now, for whomever; False where nobody can tell."""
        return self._nvml is not None and self._nvml.utilization(uuid) not in (None, 0)

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None

    def _unlisted(self) -> WanCompatError:
        return SandboxUnavailable(
            f"the worker's GPU memory cannot be watched: the driver does not list the worker, process {self._pid}",
            hint="leave gpu_memory_limit out, or run where process numbers are the machine's (a container: --pid=host)",
        )

    def _blind(self) -> WanCompatError:
        return SandboxUnavailable(
            "the worker's GPU memory cannot be watched: the driver tells no numbers by process",
            hint="leave gpu_memory_limit out, or use a whole GPU (no MIG, no vGPU) with a newer driver",
        )
