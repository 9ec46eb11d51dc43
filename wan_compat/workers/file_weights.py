"""Models whose weights stay in their files: for a machine whose memory is smaller than the model.

Files are mapped read-only. A weight that is wanted in the type that the file has is the file itself: the kernel reads
its pages when they are needed and drops them when memory is short, and no limit counts them. A weight that is wanted in
another type, or on a GPU, is made block by block: before a block of the model runs, and freed when it has run. So two
experts of 28 GB can take turns in the memory of one block, as fast as the disk gives them.

Diffusers' own offloading to disk writes copies of all weights first. A worker has no disk: its only writable folder is
in memory. And the files are there already.

What the libraries' `from_pretrained` does besides is done here too: precision by name (`_keep_in_fp32_modules`), and no
tensor missing, left over or of another shape. That the numbers are the same is tested for every layout.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import math
import mmap
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import init_empty_weights

from wan_compat.protocol.errors import ModelCorrupt
from wan_compat.workers.residence import placeholder

LoadingInfo = dict[str, list[Any]]

# https://github.com/huggingface/safetensors#format; headers were checked under the same limit by the supervisor.
_MAX_HEADER_BYTES = 100 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


# T5 files name their one table of words by one of these names, or by both.
_ALIASES = {
    "encoder.embed_tokens.weight": "shared.weight",
    "shared.weight": "encoder.embed_tokens.weight",
}


@dataclasses.dataclass(frozen=True)
class _Weight:
    """One parameter: where it goes, the mapped tensor it comes from, and the type that it shall have."""

    holder: torch.nn.Module
    name: str
    source: torch.Tensor
    dtype: torch.dtype


def map_tensors(folder: str) -> dict[str, torch.Tensor]:
    """Map every tensor of the safetensors files of a component. Never write to them: the process would die.

    Raises:
        ModelCorrupt: There is no such file, or one does not hold what its header says.
    """
    index = sorted(glob.glob(os.path.join(folder, "*.safetensors.index.json")))
    if index:
        with open(index[0], "rb") as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
    else:
        names = [os.path.basename(path) for path in sorted(glob.glob(os.path.join(folder, "*.safetensors")))]
    if not names or (len(names) > 1 and not index):
        raise ModelCorrupt(f"{os.path.basename(folder)} has {len(names)} weight files and no index of them")
    found: dict[str, torch.Tensor] = {}
    for name in names:
        found.update(_map_file(os.path.join(folder, os.path.basename(name))))
    return found


def lay_out(model_class: Any, folder: str, dtype: torch.dtype, device: str) -> tuple[Any, LoadingInfo]:
    """Return a model of a library's class whose weights stay in the files of `folder`, and what did not fit.

    Args:
        model_class: Of diffusers or of transformers.
        dtype: To compute in.
        device: Where it computes, "cpu" or an accelerator.
    """
    model, in_float32 = _empty(model_class, folder, dtype)
    tensors = map_tensors(folder)
    info: LoadingInfo = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    block_of = {id(module): block for block in _blocks(model) for module in block.modules()}
    in_blocks: dict[int, list[_Weight]] = {}
    made: dict[tuple[int, torch.dtype], torch.nn.Parameter] = {}
    used: set[str] = set()
    for path, holder, name, empty in _parameters(model):
        found = path if path in tensors else _ALIASES.get(path, "")
        if found not in tensors:
            info["missing_keys"].append(path)
            continue
        used.add(found)
        source = tensors[found]
        if source.shape != empty.shape:
            info["mismatched_keys"].append((path, tuple(source.shape), tuple(empty.shape)))
            continue
        wanted = torch.float32 if in_float32.intersection(path.split(".")) else dtype
        block = block_of.get(id(holder))
        # A table of words is gigabytes, of which a prompt needs some rows: those are converted, not the table.
        words = device == "cpu" and isinstance(holder, torch.nn.Embedding)
        if device == "cpu" and (source.dtype == wanted or words):
            parameter = _mapped(source)
            if source.dtype != wanted:
                holder.register_forward_hook(functools.partial(_convert_output, dtype=wanted))
        elif block is not None:
            parameter = placeholder(source.shape, wanted, device)
            in_blocks.setdefault(id(block), []).append(_Weight(holder, name, source, wanted))
        else:
            key = (source.data_ptr(), wanted)
            if key not in made:
                made[key] = torch.nn.Parameter(source.to(device, wanted), requires_grad=False)
            parameter = made[key]
        holder._parameters[name] = parameter
    info["unexpected_keys"] = sorted(tensors.keys() - used)
    for block in _blocks(model):
        if id(block) in in_blocks:
            _bring_for_forward(block, tuple(in_blocks[id(block)]), device)
    for holder in model.modules():
        for name, buffer in holder._buffers.items():
            if buffer is not None:
                holder._buffers[name] = buffer.to(device)
    return model.eval(), info


def _empty(model_class: Any, folder: str, dtype: torch.dtype) -> tuple[Any, frozenset[str]]:
    """Return a model without weights, and the names whose parameters stay in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as from_pretrained does: buffers that are computed follow it
    try:
        with init_empty_weights(include_buffers=False):
            if hasattr(model_class, "load_config"):  # diffusers
                model = model_class.from_config(model_class.load_config(folder, local_files_only=True))
                kept = frozenset(model_class._keep_in_fp32_modules or ())
            else:
                config = model_class.config_class.from_pretrained(folder, local_files_only=True)
                model = model_class(config)
                kept = frozenset(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
                if dtype == torch.float16:  # transformers' rule: bfloat16 is wide enough
                    kept |= frozenset(getattr(model, "_keep_in_fp32_modules", None) or ())
    finally:
        torch.set_default_dtype(before)
    return model, kept


def _map_file(path: str) -> dict[str, torch.Tensor]:
    name = os.path.basename(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ModelCorrupt(f"{name} is not a whole safetensors file", hint="download it again")
        header = json.loads(file.read(length))
        # Private and not writable: a limit on data does not count it (sandbox/rlimits.py).
        memory = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    found = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        dtype, shape, (begin, end) = _DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
        count = math.prod(shape)
        if dtype is None or end - begin != count * dtype.itemsize or not 0 <= begin <= end <= size - 8 - length:
            raise ModelCorrupt(f"{name}: {key!r} is {entry['dtype']} of shape {shape} at {begin} to {end}")
        if count == 0:
            found[key] = torch.empty(shape, dtype=dtype)
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=8 + length + begin)
        found[key] = flat.view(shape)
    return found


def _mapped(source: torch.Tensor) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(source, requires_grad=False)
    parameter.wan_compat_mapped = True  # type: ignore[attr-defined]  # memory_count.py leaves it out
    return parameter


def _convert_output(_module: Any, _inputs: Any, output: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    return output.to(dtype)


def _bring_for_forward(block: torch.nn.Module, weights: tuple[_Weight, ...], device: str) -> None:
    """Make the weights of a block when it runs, and free them when it has run, however that ended."""
    away = {index: weight.holder._parameters[weight.name] for index, weight in enumerate(weights)}

    def bring(*_: Any) -> None:
        for weight in weights:
            made = torch.nn.Parameter(weight.source.to(device, weight.dtype), requires_grad=False)
            weight.holder._parameters[weight.name] = made

    def free(*_: Any) -> None:
        for index, weight in enumerate(weights):
            weight.holder._parameters[weight.name] = away[index]

    block.register_forward_pre_hook(bring)
    block.register_forward_hook(free, always_call=True)


def _blocks(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the items of every list of layers that is not inside another one."""
    for child in model.children():
        if isinstance(child, torch.nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def _parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str, torch.Tensor]]:
    for prefix, holder in list(model.named_modules(remove_duplicate=False)):
        for name, parameter in list(holder._parameters.items()):
            if parameter is not None:
                yield f"{prefix}.{name}" if prefix else name, holder, name, parameter
