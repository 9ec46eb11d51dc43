"""The GPUs that jobs could compute on: read from the driver, with what torch and the device nodes say to it.

Nothing is set up on a GPU here, and torch is not imported: of which CUDA it was built is written in its version.py.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os

from wan_compat.policies.gpus import CudaFacts, GpuChoice, GpuUse, NodeFacts, choose_gpu
from wan_compat.policies.planning.machine import GpuFacts
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import RefusedByPolicy
from wan_compat.sandbox.gpu_devices import closed_nodes, missing_nodes
from wan_compat.sandbox.runtime_view import is_system
from wan_compat.supervisor.nvml import Gpu, Nvml

_MAX_VERSION_BYTES = 64 << 10
_CUDA_LIBRARY = "libcuda.so.1"


def gpu_for(wish: str, policy: Policy, use: GpuUse | None = None) -> GpuChoice:
    """Return the GPU for a job that wishes `auto`, `cpu`, `cuda` or `cuda:N` (policies/gpus.py).

    Raises:
        InvalidRequest, GpuUnusable: It was asked for by name and cannot be had.
        RefusedByPolicy: It was asked for by name, and workers are given none.
    """
    if wish.startswith("cuda") and not policy.allow_gpu:
        raise RefusedByPolicy(
            f"--device {wish}: the policy gives workers no GPU", hint="leave --device out, or change allow_gpu"
        )
    if wish == "cpu" or not policy.allow_gpu:
        return GpuChoice()
    gpus, driver = read_nvidia()
    if not gpus:
        return choose_gpu(wish, (), CudaFacts())
    nodes = {gpu.index: nodes_of(gpu) for gpu in gpus}
    return choose_gpu(wish, gpus, CudaFacts(torch_cuda(), driver), nodes=nodes, use=use)


def nodes_of(gpu: GpuFacts) -> NodeFacts:
    """Look at the device nodes of a GPU."""
    if gpu.minor is None:
        return NodeFacts()
    return NodeFacts(missing_nodes(gpu.minor), closed_nodes(gpu.minor))


def read_nvidia() -> tuple[tuple[GpuFacts, ...], tuple[int, int] | None]:
    """Return NVIDIA's GPUs and the newest CUDA that their driver can do; nothing without a driver."""
    try:
        with Nvml() as nvml:
            folder = _library_folder(nvml)
            return tuple(_facts(gpu, folder) for gpu in nvml.gpus()), nvml.cuda_version()
    except OSError:
        return (), None


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver; None without one."""
    try:
        with Nvml() as nvml:
            return nvml.driver_version()
    except OSError:
        return None


def has_room(uuid: str, wants_bytes: int) -> bool:
    """Whether one more worker would find that much free on a GPU now.

    False if it does not answer, and beside others where its mode lets one process at a time compute.
    """
    gpu = next((gpu for gpu in read_nvidia()[0] if gpu.uuid == uuid), None)
    return gpu is not None and gpu.compute_mode != "exclusive" and gpu.memory_free_bytes >= wants_bytes


@functools.cache
def torch_cuda() -> tuple[int, int] | None:
    """Return the version of CUDA that the installed torch was built for; None without torch, or for another build."""
    spec = importlib.util.find_spec("torch")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in folders:
        try:
            with open(os.path.join(folder, "version.py"), encoding="utf-8") as file:
                return cuda_of(file.read(_MAX_VERSION_BYTES))
        except OSError:
            continue
    return None


def cuda_of(text: str) -> tuple[int, int] | None:
    """Return what torch's version.py says about CUDA: `cuda: Optional[str] = '12.8'`. Nothing of it is run."""
    try:
        lines = ast.parse(text).body
    except (SyntaxError, ValueError):
        return None
    for line in lines:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            name, value = line.target.id, line.value
        elif isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            name, value = line.targets[0].id, line.value
        else:
            continue
        if name == "cuda" and isinstance(value, ast.Constant) and isinstance(value.value, str):
            major, _, minor = value.value.partition(".")
            if major.isdigit():
                return int(major), int(minor) if minor.isdigit() else 0
    return None


def _library_folder(nvml: Nvml) -> str | None:
    """Return where the driver's libraries lie, if workers would not see them there anyway."""
    folder = nvml.library_folder()
    if folder is None or is_system(folder) or not os.path.exists(os.path.join(folder, _CUDA_LIBRARY)):
        return None
    return folder


def _facts(gpu: Gpu, library_folder: str | None) -> GpuFacts:
    return GpuFacts(
        gpu.name,
        gpu.memory_total_bytes,
        gpu.memory_free_bytes,
        gpu.compute_capability,
        index=gpu.index,
        uuid=gpu.uuid,
        minor=gpu.minor,
        address=gpu.address,
        compute_mode=gpu.compute_mode,
        mig=gpu.mig,
        library_folder=library_folder,
    )
