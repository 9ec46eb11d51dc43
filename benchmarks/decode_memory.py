"""Peak memory of a decode over what the loaded model takes: 161 frames of 256x448 in 5B layout, a process for each run.

    ours        the worker's FrameExit and FrameWriter: streaming, each frame into the ring
    reference   vae.decode, diffusers' post-processing, frames as uint8, as export_to_video needs them

The high-water mark is the kernel's (VmHWM), reset when the model is loaded and has decoded once.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path

from benchmarks.arms import WAITING
from benchmarks.child import Child, answer
from benchmarks.harness import Benchmark, Row, alternate, part
from tests.assets.tiny_wan import tiny_model
from wan_compat.protocol.values import FrameSpec
from wan_compat.supervisor.frame_ring import FrameRing

FRAMES = FrameSpec(height=256, width=448, num_frames=161)
TURNS = 2


def run(_shared: object) -> Iterator[Row]:
    folder = str(Path(tiny_model("ti2v")) / "vae")
    yield Row("decode_memory", alternate(lambda: _stream(folder), lambda: _whole(folder), TURNS), "MB", part(0.35))


def _stream(folder: str) -> float:
    ring = FrameRing()
    try:
        descriptors = ring.worker_descriptors
        with Child(
            "benchmarks.decode_memory", folder, *map(str, descriptors), pass_fds=descriptors, **WAITING
        ) as child:
            ring.close_worker_ends()
            ring.begin(1, FRAMES)
            poll = select.poll()
            poll.register(ring.fileno(), select.POLLIN)
            child.send(do="stream")
            while not ring.complete:
                if not poll.poll(300_000) or ring.fileno() < 0:
                    raise RuntimeError("the decoder is gone")
                while ring.collect():
                    ring.release()
            return float(child.receive())
    finally:
        ring.close()


def _whole(folder: str) -> float:
    with Child("benchmarks.decode_memory", folder, **WAITING) as child:
        return float(child.ask(do="whole"))


def _be_child(folder: str, descriptors: list[int]) -> None:
    import ctypes
    import gc
    import re

    import diffusers
    import numpy as np
    import torch
    from diffusers.video_processor import VideoProcessor

    from wan_compat.workers.cancellation import Cancellation
    from wan_compat.workers.conv import send_conv3d_to_onednn
    from wan_compat.workers.frames import FrameRing as WorkerRing
    from wan_compat.workers.streaming import FrameExit

    vae = diffusers.AutoencoderKLWan.from_pretrained(folder).eval()
    send_conv3d_to_onednn(vae)
    frame_exit = FrameExit(vae, "auto")  # decodes a small clip twice, so both arms are warm
    assert frame_exit.streaming, frame_exit.reason
    side = vae.config.scale_factor_spatial
    shape = (1, vae.config.z_dim, (FRAMES.num_frames - 1) // 4 + 1, FRAMES.height // side, FRAMES.width // side)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def status(field: str) -> float:
        with open("/proc/self/status") as file:
            found = re.search(rf"{field}:\s+(\d+) kB", file.read())
        assert found is not None
        return int(found[1]) / 1024

    def peak_of(act: object) -> float:
        assert callable(act)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets VmHWM (proc(5))
        before = status("VmRSS")
        with torch.no_grad():
            act()
        return status("VmHWM") - before

    # Kept to the end: closed with credits unread, a socket resets its peer.
    ring = WorkerRing(descriptors[0], descriptors[1], Cancellation()) if descriptors else None

    def stream() -> None:
        assert ring is not None
        writer = ring.writer(1, FRAMES)
        with frame_exit.publishing(writer.publish):
            vae.decode(latents, return_dict=False)
        writer.finish()

    def whole() -> None:
        video = vae.decode(latents, return_dict=False)[0]
        frames = VideoProcessor(vae_scale_factor=side).postprocess_video(video, output_type="np")[0]
        assert len([(frame * 255).astype(np.uint8) for frame in frames]) == FRAMES.num_frames

    answer(stream=lambda: peak_of(stream), whole=lambda: peak_of(whole))


BENCHMARK = Benchmark("decode_memory", "peak of a streaming decode against a whole one, 161 frames", run)

if __name__ == "__main__":
    import sys

    _be_child(sys.argv[1], [int(number) for number in sys.argv[2:]])
