"""What the NVIDIA driver tells about its GPUs and who uses their memory. Touches no CUDA: nothing is set up on a GPU.

By ctypes: a handful of calls of a stable interface are no reason for a dependency, and without one there are two cases
only, a driver or none. Source: nvml.h of the driver; calls named _v2 and _v3 keep their structures, but for the lists
of processes of a few drivers of 2023 (`_list_versions`).
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
from types import TracebackType

from wan_compat.policies.planning.machine import ComputeMode

MAX_GPUS = 64
_MAX_PROCESSES = 4096
_LIBRARY = "libnvidia-ml.so.1"
_NAME_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
_INSUFFICIENT_SIZE = 7  # NVML_ERROR_INSUFFICIENT_SIZE: the count that would do has been written
_NOT_AVAILABLE = (1 << 64) - 1  # NVML_VALUE_NOT_AVAILABLE
# From the first of these drivers to before the second, _v3 fills longer entries than in all others, and 535.98 has no
# _v3 (github.com/XuehaiPan/nvitop pull requests 79 and 89, by nvidia-settings' nvml.h).
_OTHER_ENTRIES = ((535, 43), (535, 98))
_UUID_BYTES = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE
_VERSION_BYTES = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
# nvmlComputeMode_t; 1, exclusive by thread, was removed with CUDA 8 and means 3 since.
_COMPUTE_MODES: dict[int, ComputeMode] = {1: "exclusive", 2: "prohibited", 3: "exclusive"}


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t: percent of the last sixth of a second, or of the last second."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_v2_t, which the _v2 and _v3 calls fill."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _PciInfo(ctypes.Structure):
    """nvmlPciInfo_t, as nvmlDeviceGetPciInfo_v3 fills it."""

    _fields_ = (
        ("bus_id_legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("device_id", ctypes.c_uint),
        ("subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    )


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU as the driver tells it; None where it does not tell.

    `minor` numbers its device node, `address` is the one on the PCI bus in the form of /sys; `mig` is whether it is
    divided into parts.
    """

    index: int
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    compute_capability: tuple[int, int] | None = None
    uuid: str | None = None
    minor: int | None = None
    address: str | None = None
    compute_mode: ComputeMode = "default"
    mig: bool = False


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

    def cuda_version(self) -> tuple[int, int] | None:
        """Return the newest CUDA that this driver can do."""
        version = ctypes.c_int()
        if self._ask("nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(version)) != 0:
            return None
        return version.value // 1000, version.value % 1000 // 10

    def driver_version(self) -> str | None:
        """Return the driver's version, such as 570.86.15."""
        return self._text("nvmlSystemGetDriverVersion", _VERSION_BYTES)

    def library_folder(self) -> str | None:
        """Return the folder that the driver's library came from; its others lie beside it."""
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                path = line.rstrip("\n").partition("/")[2]
                if os.path.basename(path).startswith("libnvidia-ml.so"):
                    return os.path.dirname(f"/{path}")
        return None

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
                self._used_on(device, pid, f"nvmlDeviceGet{kind}RunningProcesses") for kind in ("Compute", "Graphics")
            ]
            known = [used for used in by_kind if used is not None]
            if len(known) < len(by_kind):
                return None
            total += max(known)
        return total

    def utilization(self, uuid: str) -> int | None:
        """Return in how many percent of the last moment a GPU had work; None where it does not tell (MIG, vGPU)."""
        device, found = ctypes.c_void_p(), _Utilization()
        if (
            self._ask("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(device)) != 0
            or self._ask("nvmlDeviceGetUtilizationRates", device, ctypes.byref(found)) != 0
        ):
            return None
        return int(found.gpu)

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
            or self._ask("nvmlDeviceGetName", device, name, ctypes.c_uint(_NAME_BYTES)) != 0
            or self._ask("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory)) != 0
        ):
            return None
        major, minor = ctypes.c_int(), ctypes.c_int()
        failed = self._ask("nvmlDeviceGetCudaComputeCapability", device, ctypes.byref(major), ctypes.byref(minor))
        capability = None if failed else (major.value, minor.value)
        node, mode, mig, pending = ctypes.c_uint(), ctypes.c_int(), ctypes.c_uint(), ctypes.c_uint()
        has_node = self._ask("nvmlDeviceGetMinorNumber", device, ctypes.byref(node)) == 0
        has_mode = self._ask("nvmlDeviceGetComputeMode", device, ctypes.byref(mode)) == 0
        has_mig = self._ask("nvmlDeviceGetMigMode", device, ctypes.byref(mig), ctypes.byref(pending)) == 0
        return Gpu(
            index,
            name.value.decode("utf-8", "replace"),
            int(memory.total),
            int(memory.free),
            capability,
            uuid=self._text("nvmlDeviceGetUUID", _UUID_BYTES, device),
            minor=node.value if has_node else None,
            address=self._address(device),
            compute_mode=_COMPUTE_MODES.get(mode.value, "default") if has_mode else "default",
            mig=has_mig and mig.value == 1,
        )

    def _address(self, device: ctypes.c_void_p) -> str | None:
        info = _PciInfo()
        if self._ask("nvmlDeviceGetPciInfo_v3", device, ctypes.byref(info)) != 0:
            return None
        return f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0"

    def _text(self, call: str, size: int, *of: ctypes.c_void_p) -> str | None:
        buffer = ctypes.create_string_buffer(size)
        if self._ask(call, *of, buffer, ctypes.c_uint(size)) != 0:
            return None
        return buffer.value.decode("utf-8", "replace")

    def _ask(self, call: str, *arguments: object) -> int:
        """Call what an older driver may not have; anything but 0 is no answer."""
        try:
            return int(getattr(self._library, call)(*arguments))
        except AttributeError:
            return -1

    @functools.cached_property
    def _list_versions(self) -> tuple[str, ...]:
        """Versions of the calls for lists of processes whose entries are as here, the newest first."""
        numbers = [int(part) if part.isdigit() else 0 for part in (self.driver_version() or "").split(".")[:2]]
        return ("_v2",) if _OTHER_ENTRIES[0] <= tuple(numbers) < _OTHER_ENTRIES[1] else ("_v3", "_v2")

    def _used_on(self, device: ctypes.c_void_p, pid: int, call: str) -> int | None:
        asks = (getattr(self._library, f"{call}{version}", None) for version in self._list_versions)
        ask = next((one for one in asks if one is not None), None)
        if ask is None:  # a driver before 450
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
