"""Weights in fewer bits, made by an installed backend while the libraries load a component.

Each component gets a configuration of its own: one for a whole pipeline is refused by diffusers for torchao and quanto,
because the signatures of the two libraries' classes differ. A part that is quantised in its repository brings its own,
which the libraries read by themselves.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import importlib
import json
import os
import types
from typing import Any

import torch

from wan_compat.protocol.errors import ModelNotCompatible, WorkerExtraMissing
from wan_compat.protocol.sources import Quantization

_TORCHAO = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}
_QUANTO = {"int8": "int8", "int4": "int4", "fp8": "float8"}
_MAX_CONFIG_BYTES = 4 << 20


def quantization_config(wanted: Quantization, library: str, dtype: torch.dtype) -> Any:
    """Return what `from_pretrained` of `library` takes as `quantization_config`.

    Raises:
        WorkerExtraMissing: The backend is not there.
        ModelNotCompatible: The backend has no such kind.
    """
    home = importlib.import_module(library)
    try:
        if wanted.backend == "torchao":
            made = importlib.import_module("torchao.quantization")
            return home.TorchAoConfig(getattr(made, _known(wanted, _TORCHAO))())
        if wanted.backend == "quanto":
            unpack_without_compiler()
            kind = _known(wanted, _QUANTO)
            return home.QuantoConfig(**{"weights_dtype" if library == "diffusers" else "weights": kind})
        importlib.import_module("bitsandbytes")
        if wanted.kind == "int8":
            return home.BitsAndBytesConfig(load_in_8bit=True)
        if wanted.kind == "nf4":
            return home.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    except ImportError as error:
        raise WorkerExtraMissing(
            f"{wanted.kind} by {wanted.backend} was asked for, which this worker does not have: {error}",
            hint="wan-compat install-deps MODEL --with " + wanted.backend,
        ) from error
    raise ModelNotCompatible(f"{wanted.backend} makes no {wanted.kind}")


def prepare(folder: str) -> None:
    """Make ready what a part needs that is quantised already, by what its config.json says; others need nothing."""
    try:
        with open(os.path.join(folder, "config.json"), "rb") as file:
            document = json.loads(file.read(_MAX_CONFIG_BYTES))
    except (OSError, ValueError):  # the library that loads the part says what is wrong with it
        return
    found = document.get("quantization_config") if isinstance(document, dict) else None
    if isinstance(found, dict) and found.get("quant_method") == "quanto":
        try:
            unpack_without_compiler()
        except ImportError as error:
            raise WorkerExtraMissing(
                f"the part is quantised by quanto, which this worker does not have: {error}",
                hint="wan-compat install-deps MODEL --with quanto",
            ) from error


def unpack_without_compiler() -> None:
    """Have quanto unpack 4 bits by torch's operations.

    On a processor it would compile a C++ extension into its own folder at the first use (optimum-quanto 0.2.7,
    library/extensions), and a worker has neither a compiler nor a folder of that kind that it could write to.

    Raises:
        ImportError: quanto is not there.
    """
    importlib.import_module("optimum.quanto")
    extensions = importlib.import_module("optimum.quanto.library.extensions.extension")
    extensions.get_extension("quanto_cpp")._lib = types.SimpleNamespace(unpack=unpack)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the numbers of 2 or 4 bits that lie in bytes: all the lowest ones first, as quanto packs them."""
    mask = 2**bits - 1
    return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)])


def _known(wanted: Quantization, kinds: dict[str, str]) -> str:
    if wanted.kind not in kinds:
        raise ModelNotCompatible(f"{wanted.backend} makes no {wanted.kind}, but {', '.join(kinds)}")
    return kinds[wanted.kind]
