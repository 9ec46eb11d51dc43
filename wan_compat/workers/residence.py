"""Weights that come and go: a component leaves memory when its work is done, and comes back from its files.

While it is away, every weight has a placeholder: its shape, type and device, one number of memory. The libraries ask a
module for its device and type even when they do not run it, and get the answers that they would have got. The number
is NaN, so that nothing could be computed with a placeholder unnoticed; but nothing is, because a forward call brings
the weights back first.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

Load = Callable[[], torch.nn.Module]


class Residence:
    """One component that can leave and come back.

    Args:
        module: The component, with its weights.
        load: Makes it anew from its files; gives a module of the same structure and the same numbers.
    """

    def __init__(self, module: torch.nn.Module, load: Load) -> None:
        self._module, self._load = module, load
        self.away = False
        module.register_forward_pre_hook(lambda *_: self.come_back())

    def leave(self) -> None:
        """Free the weights, unless they are free already."""
        if self.away:
            return
        placeholders: dict[int, torch.nn.Parameter] = {}
        for holder, name, weight in list(_weights(self._module)):
            # A tied weight stays one object, as the libraries compare them.
            empty = placeholders.get(id(weight))
            if empty is None:
                empty = placeholder(weight.shape, weight.dtype, weight.device)
            holder._parameters[name] = placeholders[id(weight)] = empty
        self.away = True

    def come_back(self) -> None:
        """Load the weights again, unless they are there. Raises what loading raises."""
        if not self.away:
            return
        for ours, theirs in zip(self._module.modules(), self._load().modules(), strict=True):
            for name in ours._parameters:
                ours._parameters[name] = theirs._parameters[name]
        self.away = False


def placeholder(shape: torch.Size, dtype: torch.dtype, device: torch.device | str) -> torch.nn.Parameter:
    """Return a parameter that takes the memory of one number, whatever its shape."""
    value = math.nan if dtype.is_floating_point else 0
    one = torch.full((1,) * len(shape), value, dtype=dtype, device=device)
    return torch.nn.Parameter(one.expand(shape), requires_grad=False)


def _weights(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, Any]]:
    for holder in module.modules():
        for name, weight in holder._parameters.items():
            if weight is not None:
                yield holder, name, weight
