"""What the NVIDIA driver tells about its GPUs and who uses their memory. Touches no CUDA: nothing is set up on a GPU.

By ctypes: a handful of calls of a stable interface are no reason for a dependency, and without one there are two cases
only, a driver or none. Source: nvml.h of the driver; calls named _v2 and _v3 keep their structures for ever.
"""

from __future__ import annotations

import ctypes
import dataclasses
from types import TracebackType

MAX_GPUS = 64
_MAX_PROCESSES = 4096
_LIBRARY = "libnvidia-ml.so.1"
_NAME_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
_INSUFFICIENT_SIZE = 7  # NVML_ERROR_INSUFFICIENT_SIZE: the count that would do has been written
_NOT_AVAILABLE = (1 << 64) - 1  # NVML_VALUE_NOT_AVAILABLE


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_t, as the _v3 calls fill it."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


@dataclasses.dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    compute_capability: tuple[int, int] | None = None


class Nvml:
    """The driver's library, opened; to be used with `with`, or closed. Not thread-safe here.

    Raises:
        OSError: There is no driver, or it does not answer.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_LIBRARY)
        if self._library.nvmlInit_v2() != 0:
            raise OSError(f"{_LIBRARY} could not be initialised")

    def close(self) -> None:
        self._library.nvmlShutdown()

    def __enter__(self) -> Nvml:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def gpus(self) -> list[Gpu]:
        """Return the GPUs that answer; one that was lost is left out."""
        found = (self._gpu(index) for index in range(self._count()))
        return [gpu for gpu in found if gpu is not None]

    def used_by(self, pid: int) -> int | None:
        """Return the bytes that a process has on all GPUs together, contexts and caches included.

        None where a GPU does not tell: it was lost, or its mode has no numbers by process (MIG without rights, vGPU).
        `pid` is the number that the driver's own process namespace has for it.
        """
        total = 0
        for index in range(self._count()):
            device = self._device(index)
            if device is None:
                return None
            # A process that computes and draws is in both lists, each time with all that it has there.
            by_kind = [
                self._used_on(device, pid, call)
                for call in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v3")
            ]
            known = [used for used in by_kind if used is not None]
            if len(known) < len(by_kind):
                return None
            total += max(known)
        return total

    def _count(self) -> int:
        count = ctypes.c_uint()
        if self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return 0
        return min(count.value, MAX_GPUS)

    def _device(self, index: int) -> ctypes.c_void_p | None:
        device = ctypes.c_void_p()
        failed = self._library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device))
        return None if failed else device

    def _gpu(self, index: int) -> Gpu | None:
        device = self._device(index)
        memory, name = _Memory(), ctypes.create_string_buffer(_NAME_BYTES)
        if (
            device is None
            or self._library.nvmlDeviceGetName(device, name, ctypes.c_uint(_NAME_BYTES)) != 0
            or self._library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) != 0
        ):
            return None
        major, minor = ctypes.c_int(), ctypes.c_int()
        failed = self._library.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
        capability = None if failed else (major.value, minor.value)
        return Gpu(index, name.value.decode("utf-8", "replace"), int(memory.total), int(memory.free), capability)

    def _used_on(self, device: ctypes.c_void_p, pid: int, call: str) -> int | None:
        try:
            ask = getattr(self._library, call)
        except AttributeError:  # a driver before 510
            return None
        room = 64
        while room <= _MAX_PROCESSES:
            count, infos = ctypes.c_uint(room), (_ProcessInfo * room)()
            answer = ask(device, ctypes.byref(count), infos)
            if answer == 0:
                # More than one entry for a process: one for each part of a divided GPU.
                used = [int(info.used) for info in infos[: min(count.value, room)] if info.pid == pid]
                return None if _NOT_AVAILABLE in used else sum(used)
            if answer != _INSUFFICIENT_SIZE:
                return None
            room *= 4
        return None
