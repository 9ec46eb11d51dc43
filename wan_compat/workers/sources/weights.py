"""The tensors of a SourceSpec, under the names and shapes that the model has.

Files are mapped, not read, so that a tensor that needs no change is never copied. Numbers in 8 bits with a scale
beside them are multiplied out here, in float32: diffusers has no class that computes with them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from safetensors import safe_open

from wan_compat.protocol.errors import ModelCorrupt, clean_text
from wan_compat.protocol.sources import SourceSpec, filled, looked_up, template_of

Tensors = dict[str, torch.Tensor]


def read_tensors(source: SourceSpec, folder: str, dtype: torch.dtype, check: Callable[[], None]) -> Tensors:
    """Return every tensor of the source by its name in the model.

    Args:
        folder: The model's files, as the worker sees them.
        dtype: Of numbers that had a scale: a whole model in float32 would not fit where the model itself does.
        check: Called before each tensor; raises to stop.

    Raises:
        ModelCorrupt: Two tensors want the same place.
    """
    paths = [os.path.join(folder, path) for path in source.files]
    if source.format == "gguf":
        from wan_compat.workers.sources.gguf import read_gguf

        found = read_gguf(paths[0], check)
    else:
        found = _read_safetensors(paths, check)
    scaled = _multiply_out(found, source, dtype, check)
    return _renamed(scaled, source)


def _read_safetensors(paths: list[str], check: Callable[[], None]) -> Tensors:
    found: Tensors = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                check()
                found[name] = file.get_tensor(name)
    return found


def _multiply_out(found: Tensors, source: SourceSpec, dtype: torch.dtype, check: Callable[[], None]) -> Tensors:
    if not source.scales:
        return found
    scales: dict[str, str] = {}
    for name in found:
        beside = looked_up(name, source.scales)
        if beside is not None and beside in found:
            scales[name] = beside
    kept: Tensors = {}
    for name in found.keys() - set(scales.values()):
        tensor = found[name]
        if name in scales:
            check()
            # One number for all, or one for each row.
            scale = found[scales[name]].to(torch.float32).reshape(-1, *[1] * (tensor.dim() - 1))
            kept[name] = (tensor.to(torch.float32) * scale).to(dtype)
        else:
            kept[name] = tensor
    return kept


def _renamed(found: Tensors, source: SourceSpec) -> Tensors:
    renamed: Tensors = {}
    ignored = {template: template for template in source.ignored}
    for name, tensor in found.items():
        if looked_up(name, ignored) is not None:
            continue
        names = _pieces(name, source.splits) or (looked_up(name, source.renames) or name,)
        rows = tensor.shape[0] // len(names) if len(names) > 1 else 0
        for place, new in enumerate(names):
            if new in renamed:
                raise ModelCorrupt(f"two tensors of the files become {clean_text(new, 200)!r}")
            part = tensor[place * rows : (place + 1) * rows] if rows else tensor
            shape = source.shapes.get(new, source.shapes.get(template_of(new)[0]))
            renamed[new] = part if shape is None or tuple(part.shape) == shape else plain(part).reshape(shape)
    return renamed


def _pieces(name: str, splits: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    if name in splits:
        return splits[name]
    template, number = template_of(name)
    return tuple(filled(piece, number) for piece in splits.get(template, ()))


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return the numbers of a tensor, unfolded if they are in GGUF's blocks."""
    if type(tensor) is torch.Tensor:
        return tensor
    from wan_compat.workers.sources.gguf import dequantized

    return dequantized(tensor)
