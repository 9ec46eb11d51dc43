"""Peak memory of a whole generation, loading included: a clip of 161 frames, and a short one; a process for each run.

    ours        the worker's loader and generation, under the plan for little memory: weights in their files
                .default: without a plan; .counted: without a plan, by the bytes of tensors
    reference   a plain diffusers script, frames as uint8 in the end, as export_to_video needs them

The high-water mark is the kernel's (VmHWM) over what the process had after a tiny generation in the same way: libraries
import a good deal (40 to 50 MB) only when they first generate, which is no memory of the model, and a worker's zygote
has done it before. Of a short clip only the counted row has a bar: what the kernel sees of it is the same weights on
both sides, and differs by several percent from run to run, in either direction. Both arms keep all frames as uint8 in
memory, which a worker does not: there they leave through the ring. conv3d by oneDNN in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.arms import WAITING
from benchmarks.child import Child, answer
from benchmarks.harness import Benchmark, Row, alternate, part
from tests.assets.tiny_wan import tiny_model

LONG: dict[str, Any] = {"height": 256, "width": 448, "num_frames": 161}
SHORT: dict[str, Any] = {"height": 128, "width": 224, "num_frames": 9}
FIRST: dict[str, Any] = {"height": 64, "width": 96, "num_frames": 5}  # of the tiny model, for what it imports
TURNS = {"long": 1, "short": 5}  # bytes hardly vary; a long clip takes a minute


def run(_shared: object) -> Iterator[Row]:
    yield _row("generation_memory.long", "ti2v", LONG, "files", part(0.6))
    yield _row("generation_memory.long_default", "ti2v", LONG, "default", part(0.6))
    yield _row("generation_memory.short", "t2v_mid", SHORT, "files", part())
    yield _row("generation_memory.short_default", "t2v_mid", SHORT, "default", part())
    yield _row("generation_memory.short_counted", "t2v_mid", SHORT, "counted", part(1.0), "counted_script")


def _row(name: str, kind: str, size: dict[str, Any], plan: str, bar: Any, reference: str = "script") -> Row:
    folder = str(tiny_model(kind))
    turns = TURNS["long" if size is LONG or plan == "counted" else "short"]

    def peak(arm: str) -> float:
        with Child("benchmarks.generation_memory", folder, **WAITING) as child:
            return float(child.ask(do=arm, size=size))

    return Row(name, alternate(lambda: peak(plan), lambda: peak(reference), turns), "MB", bar)


def _be_child(folder: str) -> None:
    import ctypes
    import gc
    import re

    import diffusers
    import numpy as np
    import torch

    from wan_compat.protocol.plan import GroupOffload, PlanSpec
    from wan_compat.workers.conv import send_conv3d_to_onednn
    from wan_compat.workers.memory_count import MemoryCount
    from wan_compat.workers.pipeline_loader import WanPipelineLoader

    common = {"num_inference_steps": 2, "max_sequence_length": 64}

    def status(field: str) -> float:
        with open("/proc/self/status") as file:
            found = re.search(rf"{field}:\s+(\d+) kB", file.read())
        assert found is not None
        return int(found[1]) / 1024

    def peak_of(act: Any, size: dict[str, Any]) -> float:
        act(str(tiny_model("t2v")), FIRST)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else it depends on chance how much of the next peak was there before
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets VmHWM (proc(5))
        before = status("VmRSS")
        act(folder, size)
        return status("VmHWM") - before

    def ours(size: dict[str, Any], plan: PlanSpec) -> float:
        def act(model: str, size: dict[str, Any]) -> None:
            wrapper = WanPipelineLoader().load_wan_pipeline(model, plan=plan)
            frames = wrapper.generate("a red ball", **size, **common, seed=1).frames
            assert frames is not None and len(frames.frames) == size["num_frames"]

        return peak_of(act, size)

    def script(size: dict[str, Any]) -> float:
        def act(model: str, size: dict[str, Any]) -> None:
            pipeline = diffusers.WanPipeline.from_pretrained(model, local_files_only=True)
            pipeline.set_progress_bar_config(disable=True)
            send_conv3d_to_onednn(pipeline.vae)
            generator = torch.Generator("cpu").manual_seed(1)
            video = pipeline("a red ball", **size, **common, generator=generator).frames[0]
            assert len([(frame * 255).astype(np.uint8) for frame in video]) == size["num_frames"]

        return peak_of(act, size)

    # The same two, by the bytes of their tensors (workers/memory_count.py): no allocator, no library, no chance.

    def ours_counted(size: dict[str, Any]) -> float:
        wrapper = WanPipelineLoader().load_wan_pipeline(folder)
        return max(wrapper.generate("a red ball", **size, **common, seed=1, count_memory=True).peak.values()) / 2**20

    def script_counted(size: dict[str, Any]) -> float:
        pipeline = diffusers.WanPipeline.from_pretrained(folder, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        send_conv3d_to_onednn(pipeline.vae)
        parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        with MemoryCount(parts) as count:
            count.phase("all")
            pipeline("a red ball", **size, **common, generator=torch.Generator("cpu").manual_seed(1))
            count.end_phase()
        return count.peaks["all"] / 2**20

    in_files = PlanSpec(offload="group", group=GroupOffload(disk=True))
    answer(
        files=lambda size: ours(size, in_files),
        default=lambda size: ours(size, PlanSpec()),
        script=script,
        counted=ours_counted,
        counted_script=script_counted,
    )


BENCHMARK = Benchmark("generation_memory", "peak memory of whole generations against a plain script's", run)

if __name__ == "__main__":
    import sys

    _be_child(sys.argv[1])
