"""What a worker's view and filter get besides, when the plan has it compute on a GPU; nothing for all others."""

from __future__ import annotations

import dataclasses

from wan_compat.protocol.values import PipelineSpec
from wan_compat.sandbox.gpu_devices import device_nodes, driver_files
from wan_compat.sandbox.spec import Bind, GpuAccess, StaticFile


@dataclasses.dataclass(frozen=True)
class GpuGrant:
    """`binds`: the driver's libraries, where the system's folders do not have them. `files`: copies that CUDA reads."""

    access: GpuAccess | None = None
    binds: tuple[Bind, ...] = ()
    files: tuple[StaticFile, ...] = ()


def grant(pipeline: PipelineSpec | None) -> GpuGrant:
    """Return what the worker of this pipeline is given of a GPU."""
    if pipeline is None or pipeline.device == "cpu" or pipeline.gpu is None:
        return GpuGrant()
    gpu = pipeline.gpu
    folder = gpu.library_folder
    return GpuGrant(
        GpuAccess(device_nodes(gpu.minor)),
        () if folder is None else (Bind(source=folder, target=folder, executable=True),),
        driver_files(gpu.address),
    )
