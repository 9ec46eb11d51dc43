"""The bytes of a component's tensors in each precision, and which of them make a block that can be moved alone.

Counted from headers, tensor by tensor, as the libraries load them: floats in the precision that was asked for, but for
those that a class keeps in float32; everything else as stored.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from wan_compat.policies.facts import TensorFact
from wan_compat.policies.planning.denoiser import KEPT_FLOAT32

Dtype = Literal["float32", "bfloat16", "float16"]
ITEMSIZE: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_NAMES_IN_HEADERS: Mapping[Dtype, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# T5's output projections overflow in float16; transformers keeps them (`_keep_in_fp32_modules` of umt5).
_KEPT_AT_FLOAT16 = {"UMT5EncoderModel": frozenset({"wo"}), "T5EncoderModel": frozenset({"wo"})}
_BLOCK = re.compile(r"(?:^|.*?\.)(?:blocks|vace_blocks|block|layers)\.\d+\.")
# transformers ties them: two names, one tensor.
_TIED = ("shared.weight", "encoder.embed_tokens.weight")


@dataclasses.dataclass(frozen=True)
class _Bytes:
    total: int
    largest_block: int
    outside_blocks: int
    largest_tensor: int
    converted_outside: int
    converted_block: int


@dataclasses.dataclass(frozen=True)
class ComponentWeights:
    """One component that has tensors: by its class, with what the headers say of each."""

    name: str
    class_name: str
    tensors: Mapping[str, TensorFact]
    bits: int | None = None  # of each number of a matrix that is quantised while it is loaded

    @functools.cached_property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self._once.values())

    @functools.cached_property
    def _once(self) -> Mapping[str, TensorFact]:
        if all(name in self.tensors for name in _TIED):
            return {name: tensor for name, tensor in self.tensors.items() if name != _TIED[1]}
        return self.tensors

    def bytes_in(self, dtype: Dtype) -> int:
        """Return the bytes of all tensors, loaded in a precision."""
        return self._bytes[dtype].total

    def largest_block(self, dtype: Dtype) -> int:
        """Return the bytes of the largest of the repeated blocks; 0 where there are none."""
        return self._bytes[dtype].largest_block

    def outside_blocks(self, dtype: Dtype) -> int:
        """Return the bytes of what belongs to no block: embeddings, projections, norms."""
        return self._bytes[dtype].outside_blocks

    def largest_tensor(self, dtype: Dtype) -> int:
        return self._bytes[dtype].largest_tensor

    def mapped_rest(self, dtype: Dtype) -> int:
        """Return what is resident while the weights stay in their files (workers/file_weights.py): what belongs to no
        block and is wanted in another type than the file's, but for tables of words, and the largest block's share."""
        return self._bytes[dtype].converted_outside + self._bytes[dtype].converted_block

    @functools.cached_property
    def _bytes(self) -> Mapping[Dtype, _Bytes]:
        return {dtype: self._count(dtype) for dtype in ITEMSIZE}

    def _count(self, dtype: Dtype) -> _Bytes:
        blocks: dict[str, int] = {}
        converted: dict[str, int] = {}
        total = largest = outside = 0
        for name, tensor in self._once.items():
            size = self._one(name, tensor, dtype)
            total, largest = total + size, max(largest, size)
            wanted = "F32" if self._is_kept(name, dtype) else _NAMES_IN_HEADERS[dtype]
            made = 0 if tensor.dtype == wanted or name in _TIED else size
            found = _BLOCK.match(name)
            if found is not None:
                blocks[found[0]] = blocks.get(found[0], 0) + size
                converted[found[0]] = converted.get(found[0], 0) + made
            else:
                outside += made
        return _Bytes(
            total=total,
            largest_block=max(blocks.values(), default=0),
            outside_blocks=total - sum(blocks.values()),
            largest_tensor=largest,
            converted_outside=outside,
            converted_block=max(converted.values(), default=0),
        )

    def _one(self, name: str, tensor: TensorFact, dtype: Dtype) -> int:
        if tensor.dtype not in _FLOATS:
            return tensor.bytes
        if self.bits is not None and len(tensor.shape) == 2:
            return math.ceil(math.prod(tensor.shape) * self.bits / 8)
        return math.prod(tensor.shape) * (4 if self._is_kept(name, dtype) else ITEMSIZE[dtype])

    def _is_kept(self, name: str, dtype: Dtype) -> bool:
        kept: Iterable[str] = KEPT_FLOAT32.get(self.class_name, ())
        if dtype == "float16":
            kept = (*kept, *_KEPT_AT_FLOAT16.get(self.class_name, ()))
        parts = name.split(".")
        return any(part in parts for part in kept)
