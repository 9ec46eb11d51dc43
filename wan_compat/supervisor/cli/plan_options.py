"""How a model is fitted to the machine, as options of `generate` and `plan`."""

from __future__ import annotations

import enum
from typing import Annotated

import typer


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


PrecisionOption = Annotated[
    Precision | None, typer.Option("--precision", help="Of transformer and text encoder. Default: what fits best.")
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
