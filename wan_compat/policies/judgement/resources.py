"""Do the weights fit this machine? Counted from the headers, in the cheapest precision that a worker could load."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from wan_compat.policies.facts import HostFacts, ModelFacts, TensorFact
from wan_compat.policies.findings import Finding, finding
from wan_compat.policies.judgement.parts import Part, files_in, loadable_weights
from wan_compat.policies.limits import HOST_SHARE

# Of a worker's memory limit: the rest is for activations and the libraries. The same share as in policies/models.py.
WEIGHTS_SHARE = 0.8
TIGHT_SHARE = 0.5

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_BFLOAT16_BYTES = 2


def judge_resources(facts: ModelFacts, parts: Mapping[str, Part], host: HostFacts) -> Iterator[Finding]:
    """Yield whether the weights of all parts together are too much for this machine, or most of what it has."""
    needed = cheapest_bytes(facts, parts)
    if not needed:
        return
    limit = int(host.memory_available_bytes * HOST_SHARE)
    least = math.ceil(needed / WEIGHTS_SHARE / HOST_SHARE)
    free, total = gigabytes(host.memory_available_bytes), gigabytes(host.memory_total_bytes)
    numbers = (
        f"the weights take {gigabytes(needed)} of memory in the cheapest precision, {gigabytes(least)} with room to "
        f"work; {free} of this machine's {total} are free"
    )
    if needed > limit * WEIGHTS_SHARE:
        if least <= host.memory_total_bytes:
            yield finding("memory_short", numbers, fix=f"close other programs: {gigabytes(least)} must be free")
        else:
            yield finding(
                "memory_short", numbers, fix=f"use a machine with {gigabytes(least)} or more, or a smaller model"
            )
    elif needed > limit * TIGHT_SHARE:
        yield finding("memory_tight", numbers)


def cheapest_bytes(facts: ModelFacts, parts: Mapping[str, Part]) -> int:
    """Return the bytes of all weights, floats as bfloat16, everything else as stored.

    Of a folder in diffusers layout only files that would be opened count, so that a variant beside them does not count
    twice; of anything else every weight file does.
    """
    if not parts:
        return sum(_cheapest(file.tensors.values()) for file in facts.weights.values())
    total = 0
    for part in parts.values():
        for name in loadable_weights(files_in(facts, part.name), part.library):
            header = facts.weights.get(f"{part.name}/{name}")
            total += _cheapest(header.tensors.values()) if header else 0
    return total


def _cheapest(tensors: Iterable[TensorFact]) -> int:
    return sum(
        min(tensor.bytes, math.prod(tensor.shape) * _BFLOAT16_BYTES) if tensor.dtype in _FLOATS else tensor.bytes
        for tensor in tensors
    )


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
