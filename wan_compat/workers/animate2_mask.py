"""Animate-2's attention mask without a compiler.

Its transformer has torch compile the making of the mask (`create_block_mask(..., _compile=True)`): that writes C++ or
Triton, runs a compiler and loads what it built, and a worker may do none of that. Made eagerly the mask is the same,
value for value; it is then held whole for a moment, a byte for each pair of tokens. The attention itself goes through
PyTorch's eager flex attention, which holds every score: small sizes only, as diffusers says of it uncompiled.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import functools
import importlib
from typing import Any


def make_masks_eagerly() -> None:
    """Take the compiler out of the module of Animate-2's transformer. For a process that runs nothing else."""
    module: Any = importlib.import_module("diffusers.models.transformers.transformer_wan_animate_2")
    create = module.create_block_mask
    if isinstance(create, functools.partial):
        return

    def create_eagerly(*args: Any, _compile: bool = False, **options: Any) -> Any:
        return create(*args, **options)

    module.create_block_mask = functools.partial(create_eagerly)
