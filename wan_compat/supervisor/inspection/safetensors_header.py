"""The header of a safetensors file: 8 bytes little-endian length, JSON, then the data (never read).

https://github.com/huggingface/safetensors#format. The tensors must fill the data exactly, each as large as its shape
and type say, so that what a loader maps is what was counted here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, TypeGuard

from wan_compat.policies.facts import FileFact, TensorFact, WeightFile
from wan_compat.policies.findings import Finding
from wan_compat.protocol.errors import clean_text
from wan_compat.supervisor.inspection.budget import Budget
from wan_compat.supervisor.inspection.json_document import decode
from wan_compat.supervisor.inspection.opening import LFS_START, lfs_pointer, opened, read_at
from wan_compat.supervisor.inspection.problems import Defect, problem

# safetensors itself allows 100 MB. The largest Wan shard has 0.3 MB, a LoRA with its training captions up to 2 MB.
MAX_HEADER_BYTES = 4 << 20
MAX_HEADER_VALUES = 150_000  # about ten for each tensor; the largest Wan transformer has 1,100, quantised ones 6,000
MAX_DIMENSIONS = 8
MAX_TENSOR_NAME_CHARS = 512
MAX_METADATA_ENTRIES = 256
MAX_METADATA_CHARS = 2000  # of one value; what is longer (training captions, workflows) is cut

# `enum Dtype` of safetensors 0.8, in bits.
_DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


def read_header(fact: FileFact, budget: Budget) -> tuple[WeightFile, tuple[Finding, ...]]:
    """Read one header; a file that is only too short still tells its tensors, with a finding.

    Raises:
        Defect: The header cannot be used.
        Exhausted: The model's budget is spent.
    """
    with opened(fact) as descriptor:
        prefix = read_at(descriptor, max(9, len(LFS_START)), 0)
        if prefix.startswith(LFS_START):
            raise lfs_pointer(fact.path, "weights")
        if len(prefix) < 8:
            raise _truncated(fact, f"has {fact.size} bytes")
        (length,) = struct.unpack_from("<Q", prefix)
        if not 2 <= length <= MAX_HEADER_BYTES or prefix[8:9] not in (b"", b"{"):
            raise _corrupt(fact, f"a header of {length} bytes in a file of {fact.size}")
        if length > fact.size - 8:
            raise _truncated(fact, f"has {fact.size} bytes, its header alone {length}")
        budget.take("header_bytes", length)
        raw = read_at(descriptor, length, 8)
    if len(raw) != length:
        raise _truncated(fact, f"ends within its header of {length} bytes")
    try:
        decoded = decode(raw, fact.path, MAX_HEADER_VALUES)
        error = next((note for note in decoded.notes if note.severity == "error"), None)
        if error is not None:
            raise Defect(error)
    except Defect as defect:
        raise _corrupt(fact, f"its header: {defect.finding.message}") from defect
    budget.take("header_values", decoded.values)
    metadata = _metadata(decoded.document, fact, budget)
    budget.take("tensors", len(decoded.document))
    tensors, data_bytes = _tensors(decoded.document, fact, budget)
    notes: tuple[Finding, ...] = ()
    present = fact.size - 8 - length
    if data_bytes > present:
        notes = (_truncated(fact, f"has {present} bytes of tensors, its header tells of {data_bytes}").finding,)
    elif data_bytes < present:
        raise _corrupt(fact, f"tensors take {data_bytes} bytes, the file has {present}")
    return WeightFile(fact.path, "safetensors", tensors, metadata, length), notes


def _metadata(header: dict[str, Any], fact: FileFact, budget: Budget) -> Mapping[str, str]:
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(fact, "its metadata are no texts")
    return bounded_metadata(metadata, budget)


def bounded_metadata(metadata: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """Return the entries that fit the limits: a note that nobody needs must not make weights unusable."""
    kept: dict[str, Any] = {}
    for key, value in metadata.items():
        value = value[:MAX_METADATA_CHARS] if isinstance(value, str) else value
        chars = len(key) + (len(value) if isinstance(value, str) else 8)
        if len(kept) < MAX_METADATA_ENTRIES and len(key) <= MAX_TENSOR_NAME_CHARS and chars <= budget.metadata_chars:
            budget.take("metadata_chars", chars)
            kept[key] = value
    return kept


def _tensors(header: Mapping[str, Any], fact: FileFact, budget: Budget) -> tuple[dict[str, TensorFact], int]:
    spans: list[tuple[int, int]] = []
    found: dict[str, TensorFact] = {}
    # Most tensors of a model share a few shapes: one fact for all of them keeps 1,000 tensors small.
    shared: dict[tuple[str, tuple[int, ...]], TensorFact] = {}
    for name, entry in header.items():
        if len(name) > MAX_TENSOR_NAME_CHARS:
            raise _corrupt(fact, f"a tensor's name has {len(name)} characters")
        if not isinstance(entry, dict):
            raise _corrupt(fact, f"tensor {clean_text(name, 80)!r} is not described")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        bits = _DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
        if bits is None:
            raise _corrupt(fact, f"tensor {clean_text(name, 80)!r} has the type {clean_text(repr(dtype), 40)}")
        if not (_naturals(shape) and len(shape) <= MAX_DIMENSIONS and _naturals(offsets) and len(offsets) == 2):
            raise _corrupt(fact, f"tensor {clean_text(name, 80)!r} has no sensible shape or place")
        key = (str(dtype), tuple(shape))
        tensor = shared.get(key)
        if tensor is None:
            size, odd = divmod(math.prod(shape) * bits, 8)
            if odd:
                raise _corrupt(fact, f"tensor {clean_text(name, 80)!r} of {dtype} ends within a byte")
            tensor = shared[key] = TensorFact(*key, size)
        start, end = offsets
        if end - start != tensor.bytes:
            raise _corrupt(
                fact, f"tensor {clean_text(name, 80)!r} has {end - start} bytes, its shape needs {tensor.bytes}"
            )
        spans.append((start, end))
        found[budget.keep_name(name)] = tensor
    budget.take("shapes", len(shared))
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise _corrupt(fact, "tensors overlap or leave gaps")
        position = end
    return found, position


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 62 for item in value)


def _corrupt(fact: FileFact, why: str) -> Defect:
    return Defect(problem("weights_corrupt", fact.path, f"{fact.path} is not a sound safetensors file: {why}"))


def _truncated(fact: FileFact, why: str) -> Defect:
    return Defect(problem("weights_truncated", fact.path, f"{fact.path} is cut off: it {why}"))
