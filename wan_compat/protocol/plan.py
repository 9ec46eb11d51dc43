"""How a pipeline is fitted to its machine: decided by the supervisor (policies/planning), applied by a worker.

A plan never changes pixels unless one of its fields says so by name: `cache`, `layerwise_casting` and quantised
components do, and a result lists them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wan_compat.protocol.base import Name, Value

Offload = Literal["none", "model", "group", "sequential", "full"]
Cache = Literal["first_block", "mag", "pyramid_attention", "taylorseer"]
LayerwiseCasting = Literal["float8_e4m3fn", "float8_e5m2"]
PIXEL_CHANGING = ("layerwise_casting", "cache")


class GroupOffload(Value):
    """Options of diffusers' group offloading; `disk` keeps weights in the worker's scratch folder instead of RAM."""

    level: Literal["block_level", "leaf_level"] = "leaf_level"
    blocks_per_group: Annotated[int, Field(ge=1, le=64)] = 1
    use_stream: bool = False
    disk: bool = False


class Tiling(Value):
    """Pixels of the VAE's tiles and how far apart they begin; diffusers' own defaults for Wan are 256 and 192."""

    size: Annotated[int, Field(ge=64, le=4096)] = 256
    stride: Annotated[int, Field(ge=32, le=4096)] = 192


class CacheSpec(Value):
    """One of diffusers' caches. Changes pixels: asked for by name, and recorded."""

    name: Cache
    threshold: Annotated[float, Field(gt=0, le=10)] | None = None
    skip_range: Annotated[int, Field(ge=1, le=100)] | None = None
    ratios: Annotated[tuple[float, ...], Field(max_length=1000)] = ()


class DecodeSpec(Value):
    """How kept latents are decoded once more; None leaves what the plan said. `dtype` changes pixels.

    streaming: "never" runs diffusers' own decode of the whole clip.
    conv3d: "default" takes PyTorch's convolutions instead of oneDNN's.
    """

    dtype: Literal["float32"] | None = None
    tiling: Tiling | None = None
    streaming: Literal["auto", "never"] | None = None
    conv3d: Literal["default"] | None = None


class PlanSpec(Value):
    """What is done to a loaded pipeline so that it fits. The default does nothing.

    offload: `none` keeps everything on the device, `model` one model at a time, `group` parts of the transformer,
        `sequential` one layer at a time, `full` computes on the CPU.
    text_encoder: `leave` frees its memory after the prompt's embeddings were made; they are kept for the next job.
    tiling: None decodes whole frames.
    layerwise_casting: The 8 bits in which layers of the transformers are stored between their calls; each is computed
        in the transformer's precision. Changes pixels.
    attention_backend: One of diffusers' names; None leaves the library's choice.
    """

    offload: Offload = "none"
    group: GroupOffload | None = None
    text_encoder: Literal["stay", "leave"] = "stay"
    tiling: Tiling | None = None
    vae_slicing: bool = False
    layerwise_casting: LayerwiseCasting | None = None
    attention_backend: Name | None = None
    cache: CacheSpec | None = None
