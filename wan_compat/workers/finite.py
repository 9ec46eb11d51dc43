"""Which weights are not numbers: what tells a broken checkpoint from a precision that overflowed."""

# mypy: allow-untyped-calls

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from wan_compat.protocol.errors import UnusableFrames

MAX_NAMES = 8


def not_finite(module: torch.nn.Module, *, infinite: bool = True) -> tuple[str, ...]:
    """Return the names of the first tensors with NaN or, if `infinite`, infinite values. Allocates next to nothing."""
    found = []
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point() or tensor.is_meta or not any(tensor.stride()) or tensor.numel() < 2:
            continue  # also the placeholders of weights that left memory (residence.py), which are NaN on purpose
        values = tensor.detach()
        if values.dtype.itemsize == 1:  # float8 is for storage: nothing can be asked of it
            values = values.to(torch.bfloat16)
        bounds = [float(bound) for bound in torch.aminmax(values)]  # NaN if there is one
        if any(math.isnan(bound) or (infinite and math.isinf(bound)) for bound in bounds):
            found.append(name)
            if len(found) == MAX_NAMES:
                break
    return tuple(found)


def blame_weights(error: UnusableFrames, components: Mapping[str, Any]) -> UnusableFrames:
    """Return an error that names the broken tensors behind `error`, and `error` itself if all are sound.

    Infinite values in float16 are no evidence: a sound checkpoint in bfloat16 or float32 has them after conversion.
    """
    for part, module in components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        half = any(parameter.dtype == torch.float16 for parameter in module.parameters())
        names = not_finite(module, infinite=not half)
        if names:
            more = " and more" if len(names) == MAX_NAMES else ""
            return UnusableFrames(
                f"{error.message}: the weights of {part} have NaN or infinite values: {', '.join(names[:3])}"
                + (f" and others ({len(names)}{more})" if len(names) > 3 else ""),
                fixes=(
                    "download the model's files again and compare their checksums",
                    "if it was converted, convert it again from the original",
                ),
                details={"component": part},
            )
    return error
