"""A model of a library's class from tensors at hand and a configuration that was decided elsewhere.

The libraries' own ways (`from_single_file`, `gguf_file=`) guess the configuration from a few shapes and pass over
tensors that they do not know. Here both are given, and what is missing, left over or of another shape is an error.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from accelerate import init_empty_weights

from wan_compat.protocol.values import ComponentSpec
from wan_compat.workers.sources.weights import Tensors, plain

LoadingInfo = dict[str, list[Any]]


@dataclasses.dataclass(frozen=True)
class Built:
    """A model, and what did not fit, in the words of the libraries' loading info."""

    model: Any
    info: LoadingInfo


def build_model(component: ComponentSpec, model_class: Any, tensors: Tensors, dtype: torch.dtype) -> Built:
    """Return the component with its tensors, in the precision that `from_pretrained` would give each of them."""
    assert component.source is not None
    config = {
        name: list(value) if isinstance(value, tuple) else value for name, value in component.source.config.items()
    }
    if component.library == "transformers":
        return _of_transformers(model_class, config, tensors, dtype)
    return _of_diffusers(model_class, config, tensors, dtype)


def _of_transformers(model_class: Any, config: dict[str, Any], tensors: Tensors, dtype: torch.dtype) -> Built:
    model, info = model_class.from_pretrained(
        None,
        config=model_class.config_class(**config),
        state_dict=tensors,
        dtype=dtype,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return Built(model, info)


def _of_diffusers(model_class: Any, config: dict[str, Any], tensors: Tensors, dtype: torch.dtype) -> Built:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as from_pretrained does: buffers that are computed follow it
    try:
        with init_empty_weights():
            model = model_class.from_config(config)
    finally:
        torch.set_default_dtype(before)
    packed = _replace_linears(model, tensors, dtype)
    expected = model.state_dict()
    info: LoadingInfo = {
        "missing_keys": sorted(expected.keys() - tensors.keys()),
        "unexpected_keys": sorted(tensors.keys() - expected.keys()),
        "mismatched_keys": [],
    }
    in_float32 = frozenset(model_class._keep_in_fp32_modules or ())
    for name, tensor in tensors.items():
        if name not in expected:
            continue
        if name in packed:
            value = tensor
        else:
            value = plain(tensor).to(torch.float32 if in_float32.intersection(name.split(".")) else dtype)
            if value.shape != expected[name].shape:
                info["mismatched_keys"].append((name, tuple(value.shape), tuple(expected[name].shape)))
                continue
        _place(model, name, value)
    return Built(model, info)


def _place(model: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    where, _, last = name.rpartition(".")
    module = model.get_submodule(where)
    if last in module._buffers:
        module._buffers[last] = value
        return
    parameter = value if isinstance(value, torch.nn.Parameter) else torch.nn.Parameter(value, requires_grad=False)
    module._parameters[last] = parameter


def _replace_linears(model: torch.nn.Module, tensors: Tensors, dtype: torch.dtype) -> frozenset[str]:
    """Make layers that compute with GGUF's blocks where the weights are such; return the names of those weights."""
    if all(type(tensor) is torch.Tensor for tensor in tensors.values()):
        return frozenset()
    from wan_compat.workers.sources.gguf import replace_linears

    return replace_linears(model, tensors, dtype)
