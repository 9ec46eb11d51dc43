"""Latents that are kept until the video stands, and decoded again in another way where the first one failed.

    generate       LatentKeeper sees what the VAE is given; denoising took minutes to hours, its result a few megabytes
    Failed         out of memory, NaN pixels, a kernel that does not exist for this type, an encoder that died
    DecodeAgain    the same latents; in tiles, as a whole, in float32, with PyTorch's own convolutions

What is kept is the VAE's own input, after everything that the pipeline does to latents (denormalising, dropping VACE's
reference frames). A pipeline that decodes several times (segments of Animate) makes its video of more than that:
nothing is kept of it, and its way out is to generate again.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from wan_compat.protocol.errors import GenerationFailed
from wan_compat.protocol.messages import DecodeAgain, Generated, Progress
from wan_compat.protocol.plan import DecodeSpec
from wan_compat.workers.cancellation import Cancellation
from wan_compat.workers.conv import default_conv3d
from wan_compat.workers.frames import FrameWriter
from wan_compat.workers.generation import streamed
from wan_compat.workers.loader import LoadedModel
from wan_compat.workers.streaming import FrameExit

_TILE_FIELDS = (
    *("use_tiling", "tile_sample_min_height", "tile_sample_min_width"),
    *("tile_sample_stride_height", "tile_sample_stride_width"),
)


class LatentKeeper:
    """Keeps what one generation gave its VAE. `latents` is None when there is nothing that could be decoded again."""

    def __init__(self) -> None:
        self.latents: torch.Tensor | None = None
        self._decoded = 0

    def keep(self, z: torch.Tensor) -> None:
        """Take a copy of what a VAE was given: pipelines may go on with theirs in place."""
        self._decoded += 1
        self.latents = z.detach().clone() if self._decoded == 1 else None


def decode_again(
    model: LoadedModel,
    latents: torch.Tensor | None,
    order: DecodeAgain,
    writer: FrameWriter,
    cancellation: Cancellation,
    report: Callable[[Progress], None],
) -> Generated:
    """Decode kept latents as `order` says, and publish the frames. The model is afterwards as it was.

    Raises:
        GenerationFailed: Nothing was kept.
        UnusableFrames, JobCancelled, ...: As a generation.
    """
    if latents is None:
        raise GenerationFailed("there are no latents to decode again")
    latents = latents[order.first : order.first + order.videos]
    if len(latents) != order.videos:
        raise GenerationFailed(f"there are no latents to decode again of {order.videos} videos")
    vae, started = model.pipeline.vae, time.perf_counter()
    publish = streamed(model.pipeline, order.job, order.frames, writer, cancellation, report)
    with decoding(vae, order.decoding) as applied, torch.no_grad():
        streaming = order.decoding.streaming or model.spec.streaming
        frame_exit = FrameExit(vae, streaming)
        with frame_exit.publishing(publish, videos=order.videos, next_video=writer.next_video):
            vae.decode(latents.to(vae.dtype), return_dict=False)
    writer.finish()
    done = "streaming" if frame_exit.streaming else "whole"
    return Generated(
        job=order.job,
        text_encode_s=0.0,
        denoise_s=0.0,
        decode_s=time.perf_counter() - started,
        applied=(f"decode_again:{done}", *applied),
        peak_vram_bytes=torch.cuda.max_memory_allocated() if model.spec.device == "cuda" else None,
    )


@contextlib.contextmanager
def decoding(vae: Any, spec: DecodeSpec) -> Iterator[tuple[str, ...]]:
    """Have a VAE decode as `spec` says, and afterwards as before; gives what was done.

    Weights in half precision fit into float32 and back without a change of a bit.
    """
    done = []
    dtype = vae.dtype
    tiles = {name: getattr(vae, name) for name in _TILE_FIELDS if hasattr(vae, name)}
    with contextlib.ExitStack() as stack:
        if spec.dtype is not None and dtype != torch.float32:
            stack.callback(vae.to, dtype)
            vae.to(torch.float32)
            done.append("vae:float32")
        if spec.tiling is not None:
            size, stride = spec.tiling.size, spec.tiling.stride
            for name, value in tiles.items():
                stack.callback(setattr, vae, name, value)
            vae.enable_tiling(size, size, stride, stride)
            done.append(f"vae_tiling:{size}/{stride}")
        if spec.conv3d is not None:
            stack.enter_context(default_conv3d(vae))
            done.append("conv3d:default")
        yield tuple(done)
