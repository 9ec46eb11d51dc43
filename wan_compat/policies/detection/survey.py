"""One pass over the names of a header: prefixes taken off, bundled parts separated, blocks counted.

A header may hold 20,000 names of an attacker's choice, so everything later asks sets and dictionaries made here.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from wan_compat.policies.facts import TensorFact

Section = Literal["", "vae", "text_encoder", "image_encoder"]

# Wrappers that programs put around a denoiser's names; `model.diffusion_model.` is ComfyUI's and Stable Diffusion's.
_WRAPPERS = frozenset(
    {"model", "diffusion_model", "transformer", "transformer_2", "module", "net", "base_model", "_orig_mod", "dit"}
)
# What checkpoints that bundle everything call the other parts.
_SECTIONS: Mapping[str, Section] = {
    "vae": "vae",
    "first_stage_model": "vae",
    "text_encoders": "text_encoder",
    "text_encoder": "text_encoder",
    "cond_stage_model": "text_encoder",
    "conditioner": "text_encoder",
    "umt5xxl": "text_encoder",
    "t5xxl": "text_encoder",
    "clip_vision": "image_encoder",
    "image_encoder": "image_encoder",
}
_MAX_BLOCK_DIGITS = 4


@dataclasses.dataclass
class Survey:
    """The names of one part without their prefix, and the sets that questions about them need.

    `blocks` holds, for each root that is numbered (`blocks`, `vace_blocks`, `encoder.block`), its numbers; `modules`
    the modules inside of `blocks` (`self_attn.q`); `endings` the last components of all names (`weight`).
    """

    tensors: dict[str, TensorFact] = dataclasses.field(default_factory=dict)
    roots: set[str] = dataclasses.field(default_factory=set)
    blocks: dict[str, set[int]] = dataclasses.field(default_factory=dict)
    modules: set[str] = dataclasses.field(default_factory=set)
    endings: set[str] = dataclasses.field(default_factory=set)
    prefixes: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def prefix(self) -> str:
        """The prefix that most names carry."""
        return self.prefixes.most_common(1)[0][0] if self.prefixes else ""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, () where it is absent (or a scalar)."""
        tensor = self.tensors.get(name)
        return () if tensor is None else tensor.shape

    def first(self, *names: str) -> tuple[int, ...]:
        """Return the shape of the first of the names that is there."""
        return next((shape for name in names if (shape := self.shape(name))), ())

    def block_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in the lowest block there is: with a missing shard that is not block 0."""
        numbers = self.blocks.get("blocks")
        return self.shape(f"blocks.{min(numbers)}.{name}") if numbers else ()


def survey(tensors: Mapping[str, TensorFact]) -> dict[Section, Survey]:
    """Return the parts of a header, the main one under ""; parts that are absent are left out."""
    found: dict[Section, Survey] = {"": Survey()}
    for name, tensor in tensors.items():
        parts = name.split(".")
        start, section = _unwrap(parts)
        part = found.get(section)
        if part is None:
            part = found[section] = Survey()
        rest = parts[start:]
        root = rest[0]
        part.prefixes[".".join(parts[:start]) + "." if start else ""] += 1
        part.tensors.setdefault(".".join(rest) if start else name, tensor)
        part.roots.add(root)
        part.endings.add(rest[-1])
        if len(rest) > 2:
            _count_block(part, root, rest)
    return found if found[""].tensors or len(found) == 1 else {key: part for key, part in found.items() if key}


def _unwrap(parts: list[str]) -> tuple[int, Section]:
    """Return how many components are prefix, and the section they lead into."""
    section: Section = ""
    start, last = 0, len(parts) - 1
    while start < last:
        if parts[start] in _WRAPPERS:
            start += 1
        elif parts[start] in _SECTIONS and not section:
            section = _SECTIONS[parts[start]]
            start += 1
        elif section == "text_encoder" and parts[start] in ("umt5xxl", "t5xxl", "clip_l", "clip_g", "llama"):
            start += 1
        else:
            break
    return start, section


def _count_block(part: Survey, root: str, rest: list[str]) -> None:
    if _is_number(rest[1]):
        part.blocks.setdefault(root, set()).add(int(rest[1]))
        if root == "blocks":
            part.modules.add(".".join(rest[2:-1]))
    elif _is_number(rest[2]):
        part.blocks.setdefault(f"{root}.{rest[1]}", set()).add(int(rest[2]))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_BLOCK_DIGITS
