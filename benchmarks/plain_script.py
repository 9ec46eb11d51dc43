"""What a user would write without wan-compat, in steps that can be timed. Shares no code with the worker.

    load       DiffusionPipeline.from_pretrained
    generate   pipeline(...), frames as export_to_video makes them, and optionally the file

Nothing is tuned: no thread settings, no environment. `use_onednn` gives the class that only the VAE uses the worker's
convolution, by the simplest means, for benchmarks whose point is not the convolution.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import time
import warnings
from typing import Any

from benchmarks.child import answer

_pipeline: Any = None


def use_onednn() -> None:
    import torch
    from diffusers.models.autoencoders import autoencoder_kl_wan

    def convolve(self: Any, value: Any, weight: Any, bias: Any) -> Any:
        return torch.mkldnn_convolution(
            value, weight, bias, list(self.padding), list(self.stride), list(self.dilation), self.groups
        )

    autoencoder_kl_wan.WanCausalConv3d._conv_forward = convolve


def load(model: str) -> dict[str, Any]:
    global _pipeline
    import diffusers
    import torch
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    _pipeline = None
    _pipeline = diffusers.DiffusionPipeline.from_pretrained(model, local_files_only=True)
    _pipeline.set_progress_bar_config(disable=True)
    return {"threads": torch.get_num_threads()}


def generate(
    arguments: dict[str, Any], seed: int, output: str | None = None, fps: int = 16, raw: str | None = None
) -> dict[str, Any]:
    """Return seconds, on one clock from the call: `denoised`, `decoded` (vae.decode returned), `frames`, `exported`.

    Args:
        output: Write this video with export_to_video.
        raw: Write the bytes of all frames here, for comparing.
    """
    import numpy as np
    import torch

    moments: dict[str, Any] = {}
    started = time.perf_counter()

    def now() -> float:
        return time.perf_counter() - started

    def on_step_end(_pipeline: Any, _step: int, _timestep: Any, _values: dict[str, Any]) -> dict[str, Any]:
        moments["denoised"] = now()
        return {}

    decode = _pipeline.vae.decode

    def timed_decode(*positional: Any, **named: Any) -> Any:
        decoded = decode(*positional, **named)
        moments["decoded"] = now()
        return decoded

    _pipeline.vae.decode = timed_decode
    try:
        video = _pipeline(
            **arguments, generator=torch.Generator("cpu").manual_seed(seed), callback_on_step_end=on_step_end
        ).frames[0]
    finally:
        del _pipeline.vae.decode
    moments["frames"] = now()
    if output is not None:
        export(video, output, fps)
        moments["exported"] = now()
        return moments
    frames = np.stack([(frame * 255).astype(np.uint8) for frame in video])
    moments["frames"] = now()
    frames = np.ascontiguousarray(frames)
    moments["sha256"] = hashlib.sha256(frames).hexdigest()
    if raw is not None:
        with open(raw, "wb") as file:
            file.write(frames.data)
    return moments


def export(video: Any, output: str, fps: int) -> None:
    """diffusers.utils.export_to_video; without imageio installed, what it and imageio's ffmpeg writer do."""
    if importlib.util.find_spec("imageio") is not None:
        import diffusers.utils

        diffusers.utils.export_to_video(list(video), output, fps=fps)
        return
    import imageio_ffmpeg
    import numpy as np

    frames = [(frame * 255).astype(np.uint8) for frame in video]
    height, width, _ = frames[0].shape
    writer = imageio_ffmpeg.write_frames(output, (width, height), fps=fps, quality=5.0, macro_block_size=16)
    with contextlib.closing(writer):
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    answer(use_onednn=use_onednn, load=load, generate=generate)
