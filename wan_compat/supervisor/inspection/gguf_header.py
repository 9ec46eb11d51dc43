"""The header of a GGUF file, versions 2 and 3, little-endian: key-values, tensor infos, then the data (never read).

    "GGUF"  version u32  tensors u64  key-values u64
    key-value   key string, type u32, value; an array is: item type u32, count u64, items
    tensor      name string, dimensions u32, sides u64 (innermost first), type u32, offset u64 into the data
    string      length u64, UTF-8

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Arrays are skipped, not kept: a tokenizer's
has 256,000 texts.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from wan_compat.policies.facts import FileFact, TensorFact, WeightFile
from wan_compat.policies.findings import Finding
from wan_compat.protocol.errors import clean_text
from wan_compat.supervisor.inspection.budget import Budget
from wan_compat.supervisor.inspection.opening import LFS_START, lfs_pointer, opened, read_at
from wan_compat.supervisor.inspection.problems import Defect, problem
from wan_compat.supervisor.inspection.safetensors_header import (
    MAX_DIMENSIONS,
    MAX_METADATA_CHARS,
    MAX_METADATA_ENTRIES,
    bounded_metadata,
)

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 24 << 20  # UMT5's encoder has about 6 MB, nearly all of it tokens
MAX_TENSORS = 20_000
MAX_KEY_VALUES = 4096
MAX_NAME_BYTES = 512  # of a key or a tensor's name; ggml allows 64 for the latter
MAX_TEXT_BYTES = 1 << 20
MAX_ARRAY_TEXTS = 600_000  # UMT5 has 256,384 tokens
_WINDOW_BYTES = 1 << 16

# `enum ggml_type` with (elements, bytes) of a block, from GGML_QUANT_SIZES of gguf-py 0.19; gaps are types of the past.
_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1),
    25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}  # fmt: skip

# `enum gguf_metadata_value_type`
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY, _INT32 = 8, 9, 5
_ALIGNMENT = "general.alignment"

# ComfyUI-GGUF's converter flattens what llama.cpp cannot quantise, and keeps the shape in an int32 array, outermost
# first (https://github.com/city96/ComfyUI-GGUF, tools/convert.py).
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


def read_header(fact: FileFact, budget: Budget) -> tuple[WeightFile, tuple[Finding, ...]]:
    """Read one header; a file that is only too short still tells its tensors, with a finding.

    Raises:
        Defect: The header cannot be used.
        Exhausted: The model's budget is spent.
    """
    with opened(fact) as descriptor:
        if read_at(descriptor, len(LFS_START), 0) == LFS_START:
            raise lfs_pointer(fact.path, "weights")
        cursor = _Cursor(descriptor, fact, budget)
        if cursor.take(4) != MAGIC:
            raise _corrupt(fact, "it does not start with GGUF")
        version = cursor.number("<I")
        if version not in (2, 3):
            order = " (big-endian)" if version in (2 << 24, 3 << 24) else ""
            raise _corrupt(fact, f"version {version:#x}{order}; 2 and 3 in little-endian are known")
        tensor_count, pair_count = cursor.number("<Q"), cursor.number("<Q")
        if tensor_count > MAX_TENSORS or pair_count > MAX_KEY_VALUES:
            raise _corrupt(fact, f"{tensor_count} tensors and {pair_count} key-values, more than any model has")
        budget.take("tensors", tensor_count)
        pairs, shapes = _read_pairs(cursor, pair_count, fact)
        tensors, spans = _read_tensors(cursor, tensor_count, shapes, fact, budget)
        header_bytes = cursor.position
    alignment = pairs.get(_ALIGNMENT, 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise _corrupt(fact, f"an alignment of {clean_text(repr(alignment), 40)}")
    data_start = -(-header_bytes // alignment) * alignment
    missing = _check_spans(fact, spans, alignment, max(fact.size - data_start, 0))
    weights = WeightFile(fact.path, "gguf", tensors, bounded_metadata(pairs, budget), header_bytes)
    return weights, () if missing is None else (missing.finding,)


class _Cursor:
    """Reads forward through a window of the file; counts what it passes against the budget."""

    def __init__(self, descriptor: int, fact: FileFact, budget: Budget) -> None:
        self._descriptor = descriptor
        self._fact = fact
        self._budget = budget
        self._start = 0  # of the window in the file
        self._at = 0  # in the window
        self._window = b""

    @property
    def position(self) -> int:
        return self._start + self._at

    def number(self, layout: str) -> Any:
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return value

    def take(self, length: int) -> bytes:
        if self._at + length > len(self._window):
            self._move(self.position, length)
        self._at += length
        return self._window[self._at - length : self._at]

    def name(self) -> str:
        length = self.number("<Q")
        if length > MAX_NAME_BYTES:
            raise _corrupt(self._fact, f"a name of {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise _corrupt(self._fact, "a name that is no text") from error

    def text(self) -> str:
        length = self.number("<Q")
        if length > MAX_TEXT_BYTES:
            raise _corrupt(self._fact, f"a text of {length} bytes")
        # At most four bytes a character: what is longer is cut before it is decoded.
        return self.take(length)[: 4 * MAX_METADATA_CHARS].decode(errors="replace")[:MAX_METADATA_CHARS]

    def skip(self, length: int) -> None:
        self._move(self.position + length, 0)

    def skip_texts(self, count: int) -> None:
        self._budget.take("array_strings", count)
        unpack = struct.Struct("<Q").unpack_from
        while count:
            self._move(self.position, 8)
            window, at, last = self._window, self._at, len(self._window) - 8
            while count and at <= last:
                at += 8 + unpack(window, at)[0]
                count -= 1
            self._move(self._start + at, 0)

    def _move(self, position: int, needed: int) -> None:
        """Go to `position` with `needed` bytes in the window. The end of the file may be reached, never passed."""
        if position + needed > MAX_HEADER_BYTES:
            raise _corrupt(self._fact, f"a header of more than {MAX_HEADER_BYTES} bytes")
        if position + needed > self._fact.size:
            raise _truncated(self._fact, f"has {self._fact.size} bytes, its header more")
        if self._start <= position and position + needed <= self._start + len(self._window):
            self._at = position - self._start
            return
        self._start, self._at = position, 0
        self._window = read_at(self._descriptor, max(needed, _WINDOW_BYTES), position) if needed else b""
        self._budget.take("gguf_bytes", len(self._window))
        if len(self._window) < needed:
            raise _truncated(self._fact, "became shorter while it was read")


def _read_pairs(cursor: _Cursor, count: int, fact: FileFact) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    pairs: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    seen: set[str] = set()
    for _ in range(count):
        key, kind = cursor.name(), cursor.number("<I")
        if key in seen:
            raise _corrupt(fact, f"the key {clean_text(key, 80)!r} twice")
        seen.add(key)
        value: Any = None
        if kind == _STRING:
            value = cursor.text()
        elif kind == _ARRAY:
            item, length = cursor.number("<I"), cursor.number("<Q")
            if item == _INT32 and length <= MAX_DIMENSIONS and key.startswith(_ORIGINAL_SHAPE):
                shapes[key.removeprefix(_ORIGINAL_SHAPE)] = struct.unpack(f"<{length}i", cursor.take(4 * length))
            elif item == _STRING and length <= MAX_ARRAY_TEXTS:
                cursor.skip_texts(length)
            elif item in _SCALARS:
                cursor.skip(length * struct.calcsize(_SCALARS[item]))
            else:
                raise _corrupt(fact, f"an array of {length} values of type {item} under {clean_text(key, 80)!r}")
        elif kind in _SCALARS:
            value = cursor.number(_SCALARS[kind])
        else:
            raise _corrupt(fact, f"a value of type {kind} under {clean_text(key, 80)!r}")
        if value is not None and (len(pairs) < MAX_METADATA_ENTRIES or key == _ALIGNMENT):
            pairs[key] = value
    return pairs, shapes


def _read_tensors(
    cursor: _Cursor, count: int, shapes: dict[str, tuple[int, ...]], fact: FileFact, budget: Budget
) -> tuple[dict[str, TensorFact], list[tuple[int, int]]]:
    found: dict[str, TensorFact] = {}
    spans: list[tuple[int, int]] = []
    shared: dict[tuple[str, tuple[int, ...]], TensorFact] = {}
    for _ in range(count):
        name, dimensions = cursor.name(), cursor.number("<I")
        if name in found:
            raise _corrupt(fact, f"the tensor {clean_text(name, 80)!r} twice")
        if dimensions > MAX_DIMENSIONS:
            raise _corrupt(fact, f"tensor {clean_text(name, 80)!r} has {dimensions} dimensions")
        *sides, kind, offset = struct.unpack(f"<{dimensions}QIQ", cursor.take(8 * dimensions + 12))
        if kind not in _TYPES:
            raise _corrupt(fact, f"tensor {clean_text(name, 80)!r} has the type {kind}, which is not known")
        dtype, block, block_bytes = _TYPES[kind]
        if any(side >= 1 << 62 for side in sides) or (sides[0] if sides else 1) % block:
            raise _corrupt(fact, f"tensor {clean_text(name, 80)!r} has the shape {tuple(sides)}, not blocks of {block}")
        elements = math.prod(sides)
        shape = tuple(reversed(sides))
        original = shapes.get(name)
        if original is not None and min(original, default=1) >= 0 and math.prod(original) == elements:
            shape = original
        key = (dtype, shape)
        tensor = shared.setdefault(key, TensorFact(dtype, shape, elements // block * block_bytes))
        found[budget.keep_name(name)] = tensor
        spans.append((offset, offset + tensor.bytes))
    budget.take("shapes", len(shared))
    return found, spans


def _check_spans(fact: FileFact, spans: list[tuple[int, int]], alignment: int, present: int) -> Defect | None:
    """Raise Defect unless tensors lie aligned and apart; return one if they end beyond the file."""
    position = 0
    for start, end in sorted(spans):
        if start % alignment or start < position:
            raise _corrupt(fact, "tensors overlap, or are not aligned")
        position = end
    if position > present:
        return _truncated(fact, f"has {present} bytes of tensors, its header tells of {position}")
    return None


def _corrupt(fact: FileFact, why: str) -> Defect:
    return Defect(problem("weights_corrupt", fact.path, f"{fact.path} is not a sound GGUF file: {why}"))


def _truncated(fact: FileFact, why: str) -> Defect:
    return Defect(problem("weights_truncated", fact.path, f"{fact.path} is cut off: it {why}"))
