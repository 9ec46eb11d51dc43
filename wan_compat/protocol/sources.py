"""Where a component's tensors come from when that is not its folder in diffusers layout, and what is laid over them.

The supervisor has read every header and knows each tensor by name and shape; a worker is told what becomes of it. Names
are sent as templates, since a transformer has a thousand of them and forty blocks that differ in one number:

    blocks.*.self_attn.q.weight  ->  blocks.*.attn1.to_q.weight

`*` stands for the first number that dots or underscores set apart, the same on both sides. A name that stands there
literally comes before a template that fits it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from wan_compat.protocol.base import Name, Value

MAX_NAMES = 500  # of one table: below the codec's bound for a map
MAX_ADAPTED = 500  # layers that one LoRA adapts, as templates

ViewPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}(/[A-Za-z0-9_.-]{1,128}){0,2}$")]
Template = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,300}$")]
Scalar = bool | Annotated[int, Field(ge=-(2**53), le=2**53)] | float | Annotated[str, Field(max_length=200)] | None
ConfigValue = Scalar | Annotated[tuple[Scalar, ...], Field(max_length=256)]
Side = Annotated[int, Field(ge=0, le=2**40)]

_NUMBER = re.compile(r"(?<!transformer_)(?<=[._])\d{1,4}(?=[._])")  # the 2 of transformer_2 counts no blocks


class SourceSpec(Value):
    """One component, from files whose tensors have other names, or other number formats, than its library expects.

    Args:
        format: How the files are read.
        files: In the worker's view of the model; the shards of a component, or one file.
        config: Every argument of the class; nothing is read from a file.
        renames: Name in the files -> name in the model; empty where they are the same.
        splits: Name in the files -> names of that many equal runs of its rows.
        shapes: Name in the model -> its shape, where the files have the same numbers in another one.
        scales: Name in the files of a tensor in 8 bits -> the name of what it is multiplied with.
        ignored: Names in the files that have no place in the model and need none.
    """

    format: Literal["safetensors", "gguf"]
    files: tuple[ViewPath, ...] = Field(min_length=1, max_length=64)
    config: dict[Name, ConfigValue] = Field(max_length=100)
    renames: dict[Template, Template] = Field(default_factory=dict, max_length=MAX_NAMES)
    splits: dict[Template, tuple[Template, ...]] = Field(default_factory=dict, max_length=64)
    shapes: dict[Template, tuple[Side, ...]] = Field(default_factory=dict, max_length=64)
    scales: dict[Template, Template] = Field(default_factory=dict, max_length=MAX_NAMES)
    ignored: tuple[Template, ...] = Field(default=(), max_length=MAX_NAMES)


class LoraLayer(Value):
    """What one layer of a model gets. Names in the file; `target` is the layer's in the model, without `.weight`.

    `down`, `up` and `alpha` make weight * (alpha / rank) * up @ down; `difference` is added to the weight as it is, and
    `bias_difference` to the bias.
    """

    target: Template
    down: Template | None = None
    up: Template | None = None
    alpha: Template | None = None
    difference: Template | None = None
    bias_difference: Template | None = None


class LoraSpec(Value):
    """One LoRA for one transformer. `layers` is how many it adapts: a worker that finds another number fails."""

    file: ViewPath
    component: Name
    weight: Annotated[float, Field(ge=-10, le=10)]
    adapted: tuple[LoraLayer, ...] = Field(min_length=1, max_length=MAX_ADAPTED)
    layers: Annotated[int, Field(ge=1, le=20_000)]


class Quantization(Value):
    """Weights of a component in fewer bits, made while it is loaded. Changes pixels: asked for by name, recorded."""

    backend: Literal["bitsandbytes", "torchao", "quanto"]
    kind: Literal["int8", "int4", "nf4", "fp8"]


def template_of(name: str) -> tuple[str, str | None]:
    """Return a name with `*` for its first number, and that number; the name itself and None where it has none."""
    found = _NUMBER.search(name)
    if found is None:
        return name, None
    return f"{name[: found.start()]}*{name[found.end() :]}", found[0]


def filled(template: str, number: str | None) -> str:
    """Return the name that a template means for a number."""
    return template if number is None else template.replace("*", number, 1)


def looked_up(name: str, table: Mapping[str, str]) -> str | None:
    """Return what a name becomes by a table of literal names and templates, None where it is not in it."""
    if name in table:
        return table[name]
    template, number = template_of(name)
    found = table.get(template)
    return None if found is None else filled(found, number)


def as_templates(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the shortest table by which `looked_up` gives every pair."""
    groups: dict[str, dict[str, str]] = {}
    for old, new in pairs:
        groups.setdefault(template_of(old)[0], {})[old] = new
    table: dict[str, str] = {}
    for template, members in groups.items():
        meant = {_with_same_number(old, new) for old, new in members.items()}
        common = meant.pop() if len(meant) == 1 else None
        if common is not None:
            table[template] = common
        else:
            table |= members
    return table


def _with_same_number(old: str, new: str) -> str | None:
    """Return `new` as a template for the number of `old`, None where it has another one."""
    template, number = template_of(new)
    return template if number is not None and number == template_of(old)[1] else None
