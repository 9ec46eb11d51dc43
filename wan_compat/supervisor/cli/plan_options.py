"""How a model is fitted to the machine, as options of `generate` and `plan`."""

from __future__ import annotations

import enum
import re
from typing import Annotated

import typer

from wan_compat.supervisor.cli.quantities import parse_bytes


# The values of GenerationRequest's fields, written again because that module costs 80 ms of pydantic.
# tests/cli/test_plan.py holds the two in step.
class Precision(enum.StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Offload(enum.StrEnum):
    NONE = "none"
    MODEL = "model"
    GROUP = "group"
    SEQUENTIAL = "sequential"
    FULL = "full"


class Cache(enum.StrEnum):
    FIRST_BLOCK = "first_block"
    MAG = "mag"
    PYRAMID_ATTENTION = "pyramid_attention"
    TAYLORSEER = "taylorseer"


class LayerwiseCasting(enum.StrEnum):
    E4M3 = "float8_e4m3fn"
    E5M2 = "float8_e5m2"


def parse_device(text: str) -> str:
    """Return a device as GenerationRequest takes it."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", text):
        raise typer.BadParameter(f"{text!r} is none of auto, cpu, cuda and cuda:N")
    return text


PrecisionOption = Annotated[
    Precision | None, typer.Option("--precision", help="Of transformer and text encoder. Default: what fits best.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        parser=parse_device,
        help="auto, cpu, cuda or cuda:N. Default: a GPU that can be used.",
    ),
]
GpuMemoryLimit = Annotated[
    int | None,
    typer.Option(
        "--gpu-memory-limit", metavar="SIZE", parser=parse_bytes, help="Worker's cap on a GPU, looked at every 0.2 s."
    ),
]
OffloadOption = Annotated[
    Offload | None,
    typer.Option("--offload", help="Where weights wait. On a CPU, group keeps them in their files. Default: the plan."),
]
VaeTiling = Annotated[
    bool | None, typer.Option("--vae-tiling/--no-vae-tiling", help="Decode in tiles. Default: only to fit.")
]
AttentionBackend = Annotated[
    str | None, typer.Option("--attention-backend", metavar="NAME", help="One of diffusers' names, such as native.")
]
NumVideos = Annotated[
    int | None,
    typer.Option("--num-videos", metavar="N", help="Videos of this prompt, with the seeds that follow. Default: 1."),
]
VideosAtOnce = Annotated[
    int | None,
    typer.Option("--videos-at-once", metavar="N", help="How many are denoised together: more memory. Default: 1."),
]
CacheOption = Annotated[
    Cache | None, typer.Option("--cache", help="Reuse what hardly changes between steps: faster, other pixels.")
]
LayerwiseCastingOption = Annotated[
    LayerwiseCasting | None,
    typer.Option("--layerwise-casting", help="Store the transformer's layers in 8 bits: less memory, other pixels."),
]
