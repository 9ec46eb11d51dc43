"""LoRAs laid over a loaded model: weight += strength * (alpha / rank) * up @ down, computed in float32.

The supervisor has matched every tensor of the file with a layer, by names and shapes; a file that turns out to hold
something else is an error. Weights that are plain numbers are changed once, at load, so that a step costs what it costs
without (docs/adr/0015). Weights that a backend keeps folded cannot be changed; their layers add the product to what
they compute. Either way nothing is taken back: another set of LoRAs is another load.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from safetensors import safe_open

from wan_compat.protocol.errors import ModelCorrupt, clean_text
from wan_compat.protocol.sources import LoraLayer, LoraSpec, filled, template_of

_PARTS = ("down", "up", "alpha", "difference", "bias_difference")

# What one layer gets: part -> name in the file.
Names = dict[str, str]


def apply_lora(model: torch.nn.Module, lora: LoraSpec, folder: str, check: Callable[[], None]) -> None:
    """Lay one LoRA over a model.

    Raises:
        ModelCorrupt: The file adapts other layers than its header said, or with other shapes.
    """
    with safe_open(os.path.join(folder, lora.file), framework="pt") as file:
        found = _layers(lora.adapted, file.keys())
        if len(found) != lora.layers:
            raise ModelCorrupt(f"{lora.file} adapts {len(found)} layers for the worker, {lora.layers} by its header")
        for target, names in found.items():
            check()
            tensors = {part: file.get_tensor(name).to(torch.float32) for part, name in names.items()}
            try:
                _apply(model, target, tensors, lora.weight)
            except (AttributeError, RuntimeError) as error:
                raise ModelCorrupt(f"{lora.file} does not fit {target}: {clean_text(str(error), 300)}") from error


def _layers(adapted: tuple[LoraLayer, ...], names: Iterable[str]) -> dict[str, Names]:
    literal: dict[str, tuple[str, str]] = {}
    templates: dict[str, tuple[str, str]] = {}
    for layer in adapted:
        for part in _PARTS:
            name = getattr(layer, part)
            if name is not None:
                (templates if "*" in layer.target else literal)[name] = (layer.target, part)
    found: dict[str, Names] = {}
    for name in names:
        template, number = template_of(name)
        if name in literal:
            target, part = literal[name]
            found.setdefault(target, {})[part] = name
        elif template in templates:
            target, part = templates[template]
            found.setdefault(filled(target, number), {})[part] = name
    return found


def _apply(model: torch.nn.Module, target: str, tensors: Mapping[str, torch.Tensor], weight: float) -> None:
    module = _module(model, target)
    change = _change(tensors, weight)
    bias = tensors.get("bias_difference")
    if bias is not None:
        _add(module, "bias", bias * weight)
    if change is None and "difference" in tensors:
        change = tensors["difference"] * weight
    if change is None:
        return
    if module is None:
        where, _, name = target.rpartition(".")
        _add(model.get_submodule(where), name, change)
    elif _is_plain(module.weight):
        _add(module, "weight", change)
    else:
        _add_to_output(module, tensors, weight)


def _module(model: torch.nn.Module, target: str) -> Any:
    """Return the layer, None where `target` is a tensor of its own, like the modulation of a block."""
    try:
        return model.get_submodule(target)
    except AttributeError:
        return None


def _scale(tensors: Mapping[str, torch.Tensor], weight: float) -> float:
    alpha = tensors.get("alpha")
    return weight * (1.0 if alpha is None else float(alpha) / tensors["down"].shape[0])


def _change(tensors: Mapping[str, torch.Tensor], weight: float) -> torch.Tensor | None:
    if "down" not in tensors or "up" not in tensors:
        return None
    # Of a convolution: one more row of numbers for each place of the kernel.
    product: torch.Tensor = tensors["up"].flatten(1) @ tensors["down"].flatten(1)
    return product * _scale(tensors, weight)


def _is_plain(weight: torch.Tensor) -> bool:
    return type(weight) is torch.nn.Parameter and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _add(module: torch.nn.Module, name: str, change: torch.Tensor) -> None:
    parameter = module.get_parameter(name)
    if change.numel() != parameter.numel():
        raise RuntimeError(f"{name} has the shape {tuple(parameter.shape)}, the change {tuple(change.shape)}")
    # A new tensor: the old one may be the file itself, mapped.
    changed = (parameter.detach().to(torch.float32) + change.reshape(parameter.shape)).to(parameter.dtype)
    module._parameters[name] = torch.nn.Parameter(changed, requires_grad=False)


def _add_to_output(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], weight: float) -> None:
    if "down" not in tensors or "up" not in tensors:
        raise RuntimeError("whole differences cannot be added to weights that are kept folded")
    down, up = tensors["down"], tensors["up"] * _scale(tensors, weight)

    def add(_: Any, arguments: tuple[Any, ...], output: torch.Tensor, *, kept: dict[Any, Any]) -> torch.Tensor:
        key = (output.device, output.dtype)
        if key not in kept:
            kept.clear()
            kept[key] = (down.to(*key).T, up.to(*key).T)
        first, second = kept[key]
        change: torch.Tensor = arguments[0].to(output.dtype) @ first @ second
        return output + change

    module.register_forward_hook(functools.partial(add, kept={}))
