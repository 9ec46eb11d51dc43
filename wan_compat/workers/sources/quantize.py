"""Weights in fewer bits, made by an installed backend while the libraries load a component.

Each component gets a configuration of its own: one for a whole pipeline is refused by diffusers for torchao and quanto,
because the signatures of the two libraries' classes differ.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from wan_compat.protocol.errors import ModelNotCompatible, WorkerExtraMissing
from wan_compat.protocol.sources import Quantization

_TORCHAO = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}
_QUANTO = {"int8": "int8", "int4": "int4", "fp8": "float8"}


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
            importlib.import_module("optimum.quanto")
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


def _known(wanted: Quantization, kinds: dict[str, str]) -> str:
    if wanted.kind not in kinds:
        raise ModelNotCompatible(f"{wanted.backend} makes no {wanted.kind}, but {', '.join(kinds)}")
    return kinds[wanted.kind]
