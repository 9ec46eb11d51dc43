"""What only an NVIDIA GPU can show: `make gpu-check`. Each test prints a line of the report.

Without a GPU all of it is skipped, by its marker and by name. Models are the tiny ones: what is checked is that plans
attach, run and free what they should; times and real sizes are a matter for a benchmark on the card itself.
"""

from __future__ import annotations

import glob
import subprocess
from typing import Any

import pytest

from tests.workers.inside import in_torch_process
from tests.workers.test_pipeline_loader import SMALL, load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not glob.glob("/dev/nvidia[0-9]*"), reason="no NVIDIA GPU"),
]


def frames_on(device: str, **options: Any) -> Any:
    wrapper = load("a14b", device=device, precision="float32", **options)
    result = wrapper.generate("a red ball", **SMALL)
    return wrapper, result


@in_torch_process
def test_cuda_starts_after_the_fork_and_every_plan_makes_nearly_the_same_frames() -> None:
    import numpy as np

    from wan_compat.protocol.plan import GroupOffload, PlanSpec

    _, expected = frames_on("cpu", plan=PlanSpec())
    for plan in (
        PlanSpec(),
        PlanSpec(text_encoder="leave"),
        PlanSpec(offload="model"),
        PlanSpec(offload="model", text_encoder="leave"),
        PlanSpec(offload="sequential"),
        PlanSpec(offload="group", group=GroupOffload()),
        PlanSpec(offload="group", group=GroupOffload(level="block_level", use_stream=True)),
        PlanSpec(offload="group", group=GroupOffload(disk=True)),
    ):
        wrapper, result = frames_on("cuda", plan=plan)
        difference = np.abs(result.frames.frames.astype(int) - expected.frames.frames)
        print(f"{wrapper.optimizations['applied']}: mean difference to the CPU {difference.mean():.3f}, {result.peak}")
        assert difference.mean() < 4


@in_torch_process
def test_estimates_of_vram_are_within_15_percent_of_the_allocators_peak() -> None:
    wrapper = load("t2v_mid", device="cuda")
    size = {**SMALL, "height": 256, "width": 448, "num_frames": 33}
    estimate = wrapper.estimate_memory_usage(**size)
    result = wrapper.generate("a red ball", **size)
    for phase, counted in result.peak.items():
        print(f"{phase}: estimated {estimate.vram_mb[phase]} MB, allocated {counted / 1e6:.0f} MB")
        assert abs(estimate.vram_mb[phase] * 1e6 - counted) <= 0.15 * counted + 2e6


@in_torch_process
def test_torchs_own_limit_turns_too_much_into_an_error_of_ours() -> None:
    from wan_compat.protocol.errors import MemoryExceeded
    from wan_compat.workers import gpu

    wrapper = load("t2v_mid", device="cuda")
    gpu.limit_memory(150_000_000)
    try:
        wrapper.generate("a red ball", **{**SMALL, "height": 512, "width": 832, "num_frames": 81})
    except MemoryExceeded as error:
        print(error.message)
    else:
        raise AssertionError("nothing limited it")


@in_torch_process
def test_frames_cross_the_bus_as_bytes() -> None:
    import time

    import torch

    from wan_compat.protocol.values import FrameSpec
    from wan_compat.workers.pipeline_loader import _InMemory

    spec = FrameSpec(height=720, width=1280, num_frames=9)
    writer = _InMemory(spec)
    pixels = torch.rand(3, 9, 720, 1280, device="cuda") * 2 - 1
    torch.cuda.synchronize()
    began = time.perf_counter()
    writer.publish(pixels)
    print(f"nine frames of 1280x720 from device to memory in {time.perf_counter() - began:.4f} s")
    expected = ((pixels + 1) * 127.5).to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
    assert (writer.frames == expected).all()


def test_the_driver_tells_its_gpus() -> None:
    from wan_compat.supervisor.nvml import Nvml

    with Nvml() as nvml:
        found = nvml.gpus()
    print(found)
    assert found and all(gpu.memory_total_bytes > 1 << 30 for gpu in found)


def test_nvenc_encodes_a_frame() -> None:
    """Compiled in says nothing: a frame must come out."""
    from wan_compat.supervisor.ffmpeg import find_ffmpeg

    source = ["-f", "lavfi", "-i", "color=red:size=256x256:duration=0.2"]
    command = [find_ffmpeg().path, "-v", "error", *source, "-c:v", "h264_nvenc", "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    print("nvenc:", "works" if done.returncode == 0 else done.stderr.strip()[-300:])
