"""The NVIDIA device nodes that CUDA opens, for the view of a worker that was given a GPU.

Not tried on a GPU yet: the list is what NVIDIA's container toolkit gives to a container that computes
(https://github.com/NVIDIA/nvidia-container-toolkit, "compute" and "utility"). No /dev/dri, no modeset: nothing draws.
The driver's libraries lie in the system's library folders, which every worker sees.

A device is a wall less: the driver in the kernel is spoken to by ioctl, which no filter can look into. SECURITY.md says
so; a worker without a GPU has none of these nodes.
"""

from __future__ import annotations

import os
import re
import stat

_CONTROL = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
_GPU = re.compile(r"nvidia[0-9]{1,2}")
_CAPABILITY = re.compile(r"nvidia-cap[0-9]{1,4}")  # parts of a divided GPU (MIG)


def gpu_devices(folder: str = "/dev") -> tuple[str, ...]:
    """Return the paths of the nodes that there are; none without a driver."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ()
    found = [name for name in names if name in _CONTROL or _GPU.fullmatch(name)]
    capabilities = os.path.join(folder, "nvidia-caps")
    if os.path.isdir(capabilities):
        found += [f"nvidia-caps/{name}" for name in sorted(os.listdir(capabilities)) if _CAPABILITY.fullmatch(name)]
    paths = [os.path.join(folder, name) for name in found]
    return tuple(path for path in paths if stat.S_ISCHR(os.lstat(path).st_mode))
