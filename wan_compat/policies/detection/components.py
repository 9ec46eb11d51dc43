"""The components of a model as `check` lists them, with what their weight headers count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from wan_compat.policies.architecture import Component
from wan_compat.policies.detection.classes import THREE_DIMENSIONAL_VAES, TWO_DIMENSIONAL_VAES
from wan_compat.policies.detection.traits import Traits
from wan_compat.protocol.errors import clean_text

# torch's names for safetensors' types; GGUF's quantisations keep theirs.
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def components_of(traits: Mapping[str, Traits]) -> dict[str, Component]:
    """Return every part as a component. `dtype` is the one that most bytes have."""
    return {name: _component(name, part) for name, part in traits.items()}


def _component(name: str, part: Traits) -> Component:
    header = part.header
    dtype = max(header.dtypes, key=lambda key: header.dtypes[key]) if header is not None and header.dtypes else None
    paths = part.weight_paths or part.files
    class_name = part.entry.class_name if part.entry is not None and part.entry.class_name else part.class_name
    return Component(
        name=name,
        library=None if part.library is None else clean_text(part.library, 120),
        class_name=None if class_name is None else clean_text(class_name, 120),
        config_path=part.config_path,
        weight_path=paths[0] if paths else None,
        dtype=None if dtype is None else _DTYPES.get(dtype, clean_text(dtype, 20)),
        parameters=0 if header is None else header.parameters,
        bytes=0 if header is None else header.bytes,
        is_custom=part.is_custom,
    )


def vae_dimensions_of(traits: Mapping[str, Traits]) -> Literal[0, 2, 3]:
    """Return 2 or 3 for the VAE that there is, 0 where there is none or nothing tells."""
    for part in traits.values():
        if part.role != "vae":
            continue
        if part.class_name in THREE_DIMENSIONAL_VAES:
            return 3
        if part.class_name in TWO_DIMENSIONAL_VAES:
            return 2
        # By the first convolution; Allegro's is flat although its latents are not, so a known class goes first.
        if part.header is not None and part.header.latent_dimensions:
            return part.header.latent_dimensions
    return 0
