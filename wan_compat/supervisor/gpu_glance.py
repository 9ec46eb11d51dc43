"""How much memory the GPUs have and use, for onlookers: a monitor asks every second.

The driver is opened at the first look, kept for the others and closed when the process ends: opening it costs tens of
milliseconds with a GPU, and a search through the folders of libraries without one. What a process finds then stays so
for it; a driver that is installed meanwhile is seen by the next one.
"""

from __future__ import annotations

import atexit
import os
import threading

from wan_compat.supervisor.nvml import Nvml


class GpuGlance:
    """Thread-safe. Belongs to the process that looked first: one forked from it opens the driver for itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._nvml: Nvml | None = None

    def memory(self) -> tuple[int, int] | None:
        """Return (bytes in all, bytes in use) of all GPUs together, None without a driver or a GPU that answers."""
        with self._lock:
            if self._pid != os.getpid():
                self._open()
            gpus = self._nvml.gpus() if self._nvml is not None else []
        total = sum(gpu.memory_total_bytes for gpu in gpus)
        return (total, total - sum(gpu.memory_free_bytes for gpu in gpus)) if gpus else None

    def close(self) -> None:
        """Let the driver go; the next look opens it again."""
        with self._lock:
            if self._nvml is not None and self._pid == os.getpid():
                self._nvml.close()
            self._nvml, self._pid = None, 0

    def _open(self) -> None:
        self._pid = os.getpid()
        try:
            self._nvml = Nvml()
        except OSError:
            self._nvml = None


GLANCE = GpuGlance()
atexit.register(GLANCE.close)
