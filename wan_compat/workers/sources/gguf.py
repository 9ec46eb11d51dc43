"""GGUF files through diffusers' classes, which keep weights in their blocks and unfold them layer by layer.

The header was read under limits by the supervisor before (supervisor/inspection/gguf_header.py); the reader here is the
package `gguf`, which is not robust against hostile files, so that it runs in the sandbox and nowhere else.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from wan_compat.protocol.errors import ModelNotCompatible, WorkerExtraMissing, clean_text

try:
    import gguf
    import gguf.quants
    from diffusers.quantizers.gguf.utils import (
        SUPPORTED_GGUF_QUANT_TYPES,
        GGUFLinear,
        GGUFParameter,
    )
except ImportError as error:
    raise WorkerExtraMissing(
        f"GGUF weights need the package gguf, which this worker does not have: {clean_text(str(error), 300)}",
        hint="wan-compat install-deps MODEL installs it for this model alone",
    ) from error

Tensors = dict[str, torch.Tensor]

_PLAIN = {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16}


def read_gguf(path: str, check: Callable[[], None]) -> Tensors:
    """Return the tensors of a file: plain ones, and GGUFParameter for those in blocks."""
    found: Tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        check()
        kind = tensor.tensor_type
        if kind not in _PLAIN and kind not in SUPPORTED_GGUF_QUANT_TYPES:
            raise ModelNotCompatible(
                f"{clean_text(tensor.name, 200)!r} is stored as {kind.name}, which diffusers does not compute with",
                hint="use a file in Q8_0, Q6_K, Q5_K, Q4_K or another of GGUF's common types",
            )
        with warnings.catch_warnings():
            # The file is mapped read-only, and nothing here writes to what it holds.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            values = torch.from_numpy(tensor.data)
        if kind in _PLAIN:
            found[tensor.name] = values
        elif kind == gguf.GGMLQuantizationType.BF16:
            found[tensor.name] = dequantized(GGUFParameter(values, quant_type=kind))
        else:
            found[tensor.name] = GGUFParameter(values, quant_type=kind)
    return found


def replace_linears(model: torch.nn.Module, tensors: Tensors, dtype: torch.dtype) -> frozenset[str]:
    """Put a GGUFLinear where a Linear's weight is in blocks; return the names of those weights."""
    packed = set()
    in_float32 = frozenset(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, module in list(model.named_modules()):
        weight = tensors.get(f"{name}.weight")
        if (
            type(module) is torch.nn.Linear
            and isinstance(weight, GGUFParameter)
            and tuple(getattr(weight, "quant_shape", ())) == tuple(module.weight.shape)
            and not in_float32.intersection(name.split("."))
        ):
            with torch.device("meta"):
                layer: Any = GGUFLinear(
                    module.in_features, module.out_features, module.bias is not None, compute_dtype=dtype
                )
            layer.requires_grad_(False)
            model.set_submodule(name, layer)
            packed.add(f"{name}.weight")
    return frozenset(packed)


def dequantized(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in blocks as float32, for layers that compute with nothing else.

    By gguf's own functions: diffusers' go through half precision, which a norm that is kept in float32 would lose to.
    """
    values = gguf.quants.dequantize(tensor.as_tensor().numpy(), tensor.quant_type)  # type: ignore[attr-defined]
    return torch.from_numpy(values)
