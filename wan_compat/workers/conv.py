"""Three-dimensional convolutions of the VAE on CPU, sent to oneDNN.

At batch 1, PyTorch takes its own slow path for small fp32 conv3d (`aten::slow_conv3d`); a VAE decode is three times
faster when oneDNN is asked directly (measured: 2.9x to 3.8x). The sums are taken in another order, so values differ by
about 3e-6: the plan decides, and a clip's metadata names it.

The seam is `nn.Conv3d._conv_forward`, which torch calls with the input already padded by the Wan classes. It is
replaced on instances, not on the class: nothing else in the process changes.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch


def send_conv3d_to_onednn(module: torch.nn.Module) -> int:
    """Replace the convolution of every fp32 CPU Conv3d below `module`; return how many were replaced."""
    if not torch.backends.mkldnn.is_available():
        return 0
    replaced = 0
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv3d) and _suitable(layer):
            layer._conv_forward = functools.partial(_convolve, layer)  # type: ignore[method-assign]
            replaced += 1
    return replaced


def _suitable(layer: torch.nn.Conv3d) -> bool:
    # Other padding modes pad inside _conv_forward; Wan uses none of them.
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str) and _plain(layer.weight)


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _convolve(
    layer: torch.nn.Conv3d, value: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    # Asked again at each call: offloading or casting may have moved the layer since it was replaced.
    if not (_plain(value) and _plain(weight)):
        result: torch.Tensor = torch.nn.Conv3d._conv_forward(layer, value, weight, bias)
        return result
    padding: Any = layer.padding
    result = torch.mkldnn_convolution(
        value, weight, bias, list(padding), list(layer.stride), list(layer.dilation), layer.groups
    )
    return result


@contextlib.contextmanager
def default_conv3d(module: torch.nn.Module) -> Iterator[None]:
    """Let PyTorch choose its own convolutions below `module` for a while."""
    replaced = {
        layer: layer.__dict__.pop("_conv_forward")
        for layer in module.modules()
        if isinstance(layer, torch.nn.Conv3d) and "_conv_forward" in layer.__dict__
    }
    try:
        yield
    finally:
        for layer, convolve in replaced.items():
            layer._conv_forward = convolve  # type: ignore[method-assign]
