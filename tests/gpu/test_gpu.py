"""What only an NVIDIA GPU can show. See conftest.py for how it is reported, and checks.py for what runs apart.

Models are the tiny ones: what is checked is that a worker gets to its GPU and nothing else, that plans attach, run and
free what they should. Times and real sizes are a matter for a benchmark on the card itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from tests.assets.tiny_wan import tiny_model
from tests.gpu.conftest import REPOSITORY
from tests.sandbox.harness import full_layers, names, run_program
from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol import errors
from wan_compat.sandbox import gpu_devices
from wan_compat.sandbox.spec import Layer
from wan_compat.supervisor import gpus, nvml
from wan_compat.supervisor.ffmpeg import find_ffmpeg
from wan_compat.supervisor.gpu_memory import GpuWatch
from wan_compat.supervisor.hardware_encoders import try_encoder

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def request_for(**fields: Any) -> GenerationRequest:
    defaults = {
        "model": str(tiny_model("t2v")), "prompt": "a red ball", "height": 64, "width": 96, "num_frames": 9,
        "num_inference_steps": 2, "seed": 1, "recover": False,
    }  # fmt: skip
    return GenerationRequest(**{**defaults, **fields})


# ---- the driver -----------------------------------------------------------------------------------------------------


def test_driver_tells(gpu) -> None:
    """The driver tells its GPUs by UUID, node, address, memory and mode"""
    found, cuda = gpus.read_nvidia()
    for one in found:
        print(f"{one.index}: {one.name}, {one.memory_free_bytes / 1e9:.1f} GB free, {one.uuid}, node {one.minor}, "
              f"{one.address}, {one.compute_mode}, MIG {one.mig}, libraries in {one.library_folder or 'a system folder'}")  # fmt: skip
    print(f"driver {gpus.driver_version()}, CUDA {cuda}, torch's CUDA {gpus.torch_cuda()}; chosen: {gpu.index}")
    assert all(one.memory_total_bytes > 1 << 30 and one.uuid and one.address for one in found)


# ---- the sandbox ----------------------------------------------------------------------------------------------------


def test_nodes_and_files(gpu) -> None:
    """The device nodes are there and open to workers, and the driver's files are found"""
    assert gpu_devices.missing_nodes(gpu.minor) == gpu_devices.closed_nodes(gpu.minor) == ()
    files = [file.target for file in gpu_devices.driver_files(gpu.address)]
    print(*gpu_devices.device_nodes(gpu.minor), *files, sep="\n")
    assert any(path.startswith("/proc/driver/nvidia/params") for path in files)


@pytest.mark.parametrize("left_out", ["nothing", "landlock", "seccomp", "rlimits"])
def test_cuda_starts_in_the_sandbox(gpu, left_out: str) -> None:
    """CUDA starts inside the sandbox, with what is left out of it"""
    layers = full_layers() - {Layer(left_out)} if left_out != "nothing" else full_layers()
    order = {"scenario": "start_cuda", "layers": names(layers), "minor": gpu.minor, "address": gpu.address,
             "library": os.path.join(gpu.library_folder or "", "libcuda.so.1")}  # fmt: skip
    answer = run_program("sandbox_launch", order)
    print(answer.get("answer") or answer)
    assert answer["answer"]["cuInit"] == 0 and answer["answer"]["devices"] == 1


# ---- jobs -----------------------------------------------------------------------------------------------------------


def test_a_job_on_the_gpu(gpu, supervisor: Supervisor) -> None:
    """A job runs on the GPU: CUDA after the fork, the sandbox's self-test holds, frames resemble the processor's"""
    on_cpu = supervisor.generate(request_for(device="cpu", precision="float32", output=None))
    on_gpu = supervisor.generate(request_for(device="cuda", precision="float32", output=None))
    difference = np.abs(on_gpu.frames.frames.astype(int) - on_cpu.frames.frames).mean()
    print(f"mean difference {difference:.3f}; peak {on_gpu.peak}; tier {on_gpu.sandbox.tier}; {on_gpu.timings}")
    assert on_gpu.sandbox.tier in "AB" and all(on_gpu.sandbox.self_test.values()) and on_gpu.recovery == []
    assert (on_gpu.peak["vram_bytes"] or 0) > 0 and difference < 4


def test_the_zygote_stays_clean(gpu, supervisor: Supervisor) -> None:
    """The zygote holds no device of the driver, after a GPU worker was forked"""
    supervisor.generate(request_for(device="cuda", output=None))
    children = subprocess.run(["pgrep", "-f", "wan_compat.workers.zygote"], capture_output=True, text=True)
    held = {}
    for pid in children.stdout.split():
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        with open(f"/proc/{pid}/stat") as file:
            parent = file.read().rpartition(")")[2].split()[1]
        if parent == str(os.getpid()):  # a zygote of this process; its workers are children of it
            held[pid] = [link for link in links if link.startswith("/dev/nvidia")]
    print(held)
    assert held and not any(held.values())


def test_a_warm_worker_makes_the_same_frames(gpu, supervisor: Supervisor) -> None:
    """A warm worker on the GPU is used again, and makes the same frames for the same seed"""
    first, second = (supervisor.generate(request_for(device="cuda", output=None)) for _ in range(2))
    print(f"first {first.timings.total_s:.2f} s, warm {second.timings.total_s:.2f} s")
    assert (first.frames.frames == second.frames.frames).all() and second.timings.load_s < 0.05


# ---- precision, offload, memory -------------------------------------------------------------------------------------


def test_plans(inside) -> None:
    """Every plan of offloading makes nearly the same frames"""
    inside("plans")


def test_casting(inside) -> None:
    """Layers in 8 bits make nearly the same frames wherever they wait"""
    inside("casting")


def test_precisions(inside) -> None:
    """Half precisions make finite frames that resemble float32's"""
    inside("precisions")


def test_estimates(inside) -> None:
    """Predicted memory is within 15% of the allocator's peak, phase by phase"""
    inside("estimates")


def test_fraction(gpu, inside) -> None:
    """torch's own limit turns too much into memory_exceeded"""
    inside("fraction")


def test_the_watch_sees_and_kills(gpu) -> None:
    """The supervisor's watch sees what a process takes of the GPU, and its cap is noticed"""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.checks", "hold_memory", "cuda"],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None and "holding" in process.stdout.readline()
        with nvml.Nvml() as driver:
            print(f"1.07 GB held, the driver says {(driver.used_by(process.pid) or 0) / 1e9:.2f} GB")
        watch = GpuWatch(process.pid, 512 << 20, may_use_gpu=True)
        watch.must_show = True
        error = watch.exceeded()
        watch.close()
        assert isinstance(error, errors.MemoryExceeded), error
    finally:
        process.kill()
        process.communicate()


def test_a_job_over_its_cap(gpu, supervisor: Supervisor) -> None:
    """A job that cannot keep below gpu_memory_limit ends with memory_exceeded, and the next job works"""
    began = time.monotonic()
    with pytest.raises(errors.MemoryExceeded) as caught:
        supervisor.generate(request_for(device="cuda", output=None, gpu_memory_limit_bytes=256 << 20))
    print(f"{caught.value.message[:150]} ({time.monotonic() - began:.1f} s)")
    assert supervisor.generate(request_for(device="cuda", output=None)).success


# ---- frames and encoders --------------------------------------------------------------------------------------------


def test_ring(inside) -> None:
    """Frames cross the bus as bytes through page-locked buffers into the ring"""
    inside("ring")


@pytest.mark.parametrize("encoder", ["h264_nvenc", "hevc_nvenc", "av1_nvenc"])
def test_nvenc(gpu, encoder: str) -> None:
    """nvenc encodes a frame outside the sandbox of ffmpeg, and is refused inside, where no device is"""
    ffmpeg = find_ffmpeg()
    if encoder not in ffmpeg.encoders:
        pytest.skip(f"this ffmpeg has no {encoder}")
    source = ["-f", "lavfi", "-i", "color=red:size=256x256:duration=0.2"]
    command = [ffmpeg.path, "-v", "error", *source, "-c:v", encoder, "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    confined = try_encoder(ffmpeg, encoder)
    print(
        f"outside: {'works' if done.returncode == 0 else done.stderr.strip()[-200:]}; confined: {confined or 'works'}"
    )
    assert confined  # videos are written without devices
