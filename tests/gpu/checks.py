"""What `make gpu-check` runs in processes of their own: python -m tests.gpu.checks NAME cuda|cpu

On "cpu" it is a rehearsal: the same code with a device that every machine has.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import Any

from wan_compat.protocol.errors import MemoryExceeded, WanCompatError
from wan_compat.protocol.plan import GroupOffload, PlanSpec
from wan_compat.protocol.ring import RingLayout, pack_doorbell
from wan_compat.protocol.values import FrameSpec

SMALL: dict[str, Any] = {
    "height": 64, "width": 96, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 16, "seed": 7,
}  # fmt: skip
# Mean difference of pixels, of 255, that another order of sums and other kernels may make on random weights.
ALIKE = 4.0


def load(kind: str, device: str, **options: Any) -> Any:
    from tests.assets.tiny_wan import tiny_model
    from wan_compat.workers.pipeline_loader import WanPipelineLoader

    return WanPipelineLoader().load_wan_pipeline(str(tiny_model(kind)), device=device, **options)


def plans(device: str) -> None:
    """Every way to place weights makes nearly the frames of the processor."""
    ways = [PlanSpec(), PlanSpec(text_encoder="leave")]
    if device == "cuda":
        ways += [
            PlanSpec(offload="model"),
            PlanSpec(offload="model", text_encoder="leave"),
            PlanSpec(offload="sequential"),
            PlanSpec(offload="group", group=GroupOffload()),
            PlanSpec(offload="group", group=GroupOffload(level="leaf_level", use_stream=True)),
            PlanSpec(offload="group", group=GroupOffload(level="block_level", use_stream=True)),
        ]
    ways.append(PlanSpec(offload="group", group=GroupOffload(disk=True)))
    _resemble(PlanSpec(), ways, device)


def casting(device: str) -> None:
    """Layers in 8 bits make nearly the frames that they make on the processor, wherever they wait."""
    plain = PlanSpec(layerwise_casting="float8_e4m3fn")
    ways = [plain]
    if device == "cuda":
        ways += [
            plain.model_copy(update=placed)
            for placed in (
                {"offload": "model"},
                {"offload": "sequential"},
                {"offload": "group", "group": GroupOffload(level="leaf_level", use_stream=True)},
                {"offload": "group", "group": GroupOffload(level="block_level", use_stream=True)},
            )
        ]
    _resemble(plain, ways, device)


def _resemble(on_cpu: PlanSpec, ways: list[PlanSpec], device: str) -> None:
    import numpy as np

    expected = load("a14b", "cpu", precision="float32", plan=on_cpu).generate("a red ball", **SMALL).frames.frames
    failed = []
    for plan in ways:
        wrapper = load("a14b", device, precision="float32", plan=plan)
        result = wrapper.generate("a red ball", **SMALL)
        difference = float(np.abs(result.frames.frames.astype(int) - expected).mean())
        words = ", ".join(wrapper.optimizations["applied"]) or "all on the device"
        print(f"{words}: mean difference {difference:.3f}, peaks {result.peak}")
        failed += [words] if difference >= ALIKE else []
        del wrapper
    assert not failed, failed


def precisions(device: str) -> None:
    """bfloat16 and float16 give finite frames that resemble float32's."""
    import numpy as np

    expected = load("t2v_mid", device, precision="float32", plan=PlanSpec()).generate("a red ball", **SMALL)
    for precision in ("bfloat16", "float16"):
        found = load("t2v_mid", device, precision=precision, plan=PlanSpec()).generate("a red ball", **SMALL)
        difference = float(np.abs(found.frames.frames.astype(int) - expected.frames.frames).mean())
        print(f"{precision}: mean difference {difference:.2f}, {found.timings.denoise_s:.3f} s to denoise")
        assert difference < 30


def estimates(device: str) -> None:
    """Estimated memory against the allocator's peak, phase by phase."""
    wrapper = load("t2v_mid", device, plan=PlanSpec())
    size = {**SMALL, "height": 256, "width": 448, "num_frames": 33}
    estimate = wrapper.estimate_memory_usage(**size)
    result = wrapper.generate("a red ball", count_memory=device == "cpu", **size)
    off = []
    for phase, counted in result.peak.items():
        said = (estimate.vram_mb if device == "cuda" else estimate.ram_mb)[phase] * 1e6
        print(f"{phase}: estimated {said / 1e6:.0f} MB, allocated {counted / 1e6:.0f} MB")
        off += [phase] if device == "cuda" and abs(said - counted) > 0.15 * counted + 2e6 else []
    assert result.peak and not off, off


def fraction(device: str) -> None:
    """torch's own limit turns too much into an error of ours."""
    from wan_compat.workers import gpu

    wrapper = load("t2v_mid", device, plan=PlanSpec())
    gpu.limit_memory(gpu._CONTEXT_BYTES + 150_000_000)
    try:
        wrapper.generate("a red ball", **{**SMALL, "height": 512, "width": 832, "num_frames": 81})
    except MemoryExceeded as error:
        print(error.message[:200])
        return
    raise AssertionError("nothing limited it")


def ring(device: str) -> None:
    """Frames through page-locked buffers into a ring are the bytes of a conversion in memory; with times."""
    import torch

    from wan_compat.workers.cancellation import Cancellation
    from wan_compat.workers.frames import FrameRing

    spec = FrameSpec(height=720, width=1280, num_frames=13)
    layout = RingLayout(spec)
    memory = os.memfd_create("ring")
    os.ftruncate(memory, layout.ring_bytes)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    writer = FrameRing(os.dup(memory), theirs.detach(), Cancellation()).writer(1, spec)
    found: list[bytes] = []

    def read() -> None:
        for index in range(spec.num_frames):
            ours.recv(64)
            found.append(os.pread(memory, spec.frame_bytes, layout.offset(index)))
            ours.send(pack_doorbell(1, index + 1))

    pixels = torch.rand(3, 13, 720, 1280, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = (pixels + 1).mul(127.5).to(torch.uint8).permute(1, 2, 3, 0).contiguous()
    pixels = pixels.to(device)
    reader = threading.Thread(target=read)
    reader.start()
    began = time.perf_counter()
    for start, end in ((0, 1), (1, 5), (5, 9), (9, 13)):
        writer.publish(pixels[:, start:end])
    writer.finish()
    took = time.perf_counter() - began
    reader.join(60)
    assert b"".join(found) == expected.numpy().tobytes()
    stage = writer._stage
    print(f"13 frames of 1280x720 in {took:.4f} s, page-locked buffers: {stage is not None and stage.pinned}")
    if device == "cuda":
        assert stage is not None and stage.pinned
        began = time.perf_counter()
        for index in range(13):
            pixels[:, index].add(1.0).mul_(127.5).to(torch.uint8).cpu()
        print(f"the same without them, and without a ring: {time.perf_counter() - began:.4f} s")


def hold_memory(device: str) -> None:
    """Take 1 GiB of the GPU, say so, and wait to be killed."""
    import torch

    held = torch.ones(1 << 28, device=device)
    print(f"holding {held.nbytes} bytes", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](sys.argv[2])
    except WanCompatError as error:
        sys.exit(f"{error.code}: {error.message}")
