"""The options that name other files for parts of a model, and what is laid over it; shared by verbs that load one.

--lora FILE[:weight][@high|@low]        --quantize PART=KIND, KIND with a backend before it or not: quanto:int8
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from wan_compat.policies.sources.written import parse_loras, parse_quantize

Components = Annotated[
    str | None,
    typer.Option(
        "--components", metavar="FOLDER", help="Where the other parts come from, if MODEL is a single file (diffusers)."
    ),
]
Transformer = Annotated[
    str | None, typer.Option("--transformer", metavar="FILE", help="Take the transformer from this file instead.")
]
Transformer2 = Annotated[
    str | None, typer.Option("--transformer-2", metavar="FILE", help="The same for the low-noise transformer.")
]
Vae = Annotated[str | None, typer.Option("--vae", metavar="FILE", help="The same for the VAE.")]
TextEncoder = Annotated[
    str | None, typer.Option("--text-encoder", metavar="FILE", help="The same for the text encoder.")
]
ImageEncoder = Annotated[
    str | None, typer.Option("--image-encoder", metavar="FILE", help="The same for the image encoder.")
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:WEIGHT][@high|@low]",
        help="Apply a LoRA, fully or by WEIGHT, to both experts or one. May be repeated.",
    ),
]
Quantize = Annotated[
    list[str] | None,
    typer.Option(
        "--quantize", metavar="PART=KIND", help="Load a part in fewer bits: transformer=int8, text_encoder=quanto:fp8."
    ),
]


def parts_fields(
    files: Mapping[str, str | None], lora: Iterable[str] | None, quantize: Iterable[str] | None
) -> dict[str, Any]:
    """Return the fields of a GenerationRequest that these options amount to, without those that were left out."""
    fields: dict[str, Any] = {name: path for name, path in files.items() if path is not None}
    if lora:
        fields["loras"] = parse_loras(lora)
    if quantize:
        fields["quantize"] = parse_quantize(quantize)
    return fields


def flags_of(files: Mapping[str, str | None]) -> str:
    """Return the options that name these files, each after a space, for a command that a user may copy."""
    named = {name.replace("_", "-"): path for name, path in files.items() if path is not None}
    return "".join(f" --{name} {shlex.quote(path)}" for name, path in named.items())
