"""What a worker that computes on an NVIDIA GPU sees besides: three device nodes, and copies of what CUDA reads.

    /dev/nvidiactl, /dev/nvidia-uvm, /dev/nvidiaN   read and write: the driver is spoken to by ioctl and mmap
    /proc/driver/nvidia/{params,version}            copies; params says that device files are made by somebody else
    /proc/devices, /sys/module/nvidia*/initstate    copies; CUDA asks whether the modules are loaded
    /sys/bus/pci/devices/ADDRESS/*                  copies of a few numbers of this GPU
    /sys/devices/system/node/*                      copies; where pinned memory should lie
    /proc/self                                      the worker's own and nobody else's (view.py)

**Not tried on a GPU yet.** Where it comes from:

- The nodes: gVisor gives its containers these and no other, and runs CUDA (its g3doc/user_guide/gpu.md). No
  nvidia-uvm-tools (profilers), no nvidia-modeset and no /dev/dri (nothing draws), no nvidia-caps (parts of a divided
  GPU, which workers are not given), and of several GPUs the one that was chosen.
- params: libcuda would make or mend nodes by itself, and start nvidia-modprobe for that, unless ModifyDeviceFiles is 0
  (mknod_helper in NVIDIA's nvidia-modprobe-utils.c); NVIDIA's containers and gVisor's have a copy that says so.
- /sys: without it cuInit answered 304 in a bubblewrap that had the nodes (truefoundry/trueforge issue 466), and drivers
  from 550.90 on look at /sys/module/nvidia/initstate (netblue30/firejail issue 6372, igo95862/bubblejail issue 123).
- /proc/self: from driver 570 on, cuInit names its threads through /proc/self/task/N/comm and answers 304 where it may
  not (NVIDIA/OpenShell issue 1486, nolabs-ai/nono pull request 673).
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator

from wan_compat.sandbox.spec import StaticFile

_CONTROL = ("nvidiactl", "nvidia-uvm")
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_MODIFY = re.compile(rb"^(ModifyDeviceFiles): *\d+$", re.MULTILINE)
_MAX_FILE_BYTES = 64 << 10
_OF_DRIVER = (
    *("/proc/driver/nvidia/params", "/proc/driver/nvidia/version", "/proc/devices"),
    *("/sys/module/nvidia/initstate", "/sys/module/nvidia_uvm/initstate", "/sys/module/nvidia/version"),
)
_OF_GPU = (
    *("vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision"),
    *("numa_node", "local_cpus", "local_cpulist"),
)
_OF_NODES = (
    *("online", "possible", "has_cpu", "has_memory"),
    *("node[0-9]*/cpumap", "node[0-9]*/cpulist", "node[0-9]*/distance"),
)


def device_nodes(minor: int, folder: str = "/dev") -> tuple[str, ...]:
    """Return the nodes of one GPU, by the driver's number for it (which is not the index that CUDA or NVML give)."""
    return tuple(os.path.join(folder, name) for name in (*_CONTROL, f"nvidia{minor}"))


def missing_nodes(minor: int, folder: str = "/dev") -> tuple[str, ...]:
    """Return those of a GPU's nodes that are not there, or are no character devices."""
    return tuple(path for path in device_nodes(minor, folder) if not _is_device(path))


def closed_nodes(minor: int, folder: str = "/dev") -> tuple[str, ...]:
    """Return those of a GPU's nodes that workers may not use: ours are of no user's group, where root starts them."""
    nodes = [path for path in device_nodes(minor, folder) if _is_device(path)]
    if os.geteuid() == 0:
        return tuple(path for path in nodes if os.stat(path).st_mode & 0o006 != 0o006)
    return tuple(path for path in nodes if not os.access(path, os.R_OK | os.W_OK))


def driver_files(address: str, root: str = "/") -> tuple[StaticFile, ...]:
    """Return copies of what CUDA reads of the system, as far as it is there.

    Args:
        address: The GPU's on the PCI bus, as /sys names it: "0000:3b:00.0". Another form has no files.
        root: Where /proc and /sys are; for tests.
    """
    return tuple(_copies(root, (*_OF_DRIVER, *_of_gpu(address), *_of_nodes(root))))


def _of_gpu(address: str) -> Iterator[str]:
    if _ADDRESS.fullmatch(address):
        yield from (f"/sys/bus/pci/devices/{address}/{name}" for name in _OF_GPU)


def _of_nodes(root: str) -> Iterator[str]:
    for pattern in _OF_NODES:
        for path in sorted(glob.glob(os.path.join(glob.escape(root), "sys/devices/system/node", pattern))):
            yield "/" + os.path.relpath(path, root)


def _copies(root: str, paths: tuple[str, ...]) -> Iterator[StaticFile]:
    for path in paths:
        try:
            with open(os.path.join(root, path.lstrip("/")), "rb") as file:
                content = file.read(_MAX_FILE_BYTES)
        except OSError:  # another driver, another machine
            continue
        yield StaticFile(path, _MODIFY.sub(rb"\1: 0", content) if path.endswith("/params") else content)


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False
