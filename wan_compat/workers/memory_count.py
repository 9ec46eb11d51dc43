"""How many bytes of tensors a computation holds at most, phase by phase: counted, not sampled.

Every tensor that an operation makes is counted when its storage appears and given back when the storage is freed; so
are weights, which are found when a phase begins and when it ends, and may be freed or stored anew meanwhile. So the
count is the same on every machine and under every allocator, which a process's resident size is not; the planner's
estimates are held to it (tests/workers/test_memory_count.py), and `test-load` prints it.

Not counted: what a kernel takes for itself and frees before it returns (a few megabytes on CPU), the allocator's own
rounding, and libraries. A GPU has a counter of its own, which `torch.cuda.max_memory_allocated` reads.

An operation takes some ten microseconds longer while it is counted: nothing next to a step of a real model, much next
to one of a tiny one. A generation is counted when its order says so.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

_FLEX = "torch.nn.attention.flex_attention"  # imported late by diffusers, if at all
_DENSE = DispatchKey.CompositeExplicitAutograd  # the rule that computes with ordinary operations


class MemoryCount(TorchDispatchMode):
    """Counts while it is entered: `with MemoryCount() as count: ...`. For the thread that enters it.

    `live_bytes` is held now by tensors that were made since, and by weights and buffers of `modules` from the first
    phase on; `peaks` has the most of each phase.
    """

    # Flexible attention is one (AnyFlow FAR, Animate-2). Without a rule for it, torch raises.
    supports_higher_order_operators = True

    def __init__(self, modules: Iterable[torch.nn.Module] = ()) -> None:
        super().__init__()
        self._modules = tuple(modules)
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._phase: str | None = None
        self._entered = 0
        self._peak = 0
        self.live_bytes = 0
        self.peaks: dict[str, int] = {}

    def __enter__(self) -> MemoryCount:
        # Torch's compiler traces nothing under a mode, and raises; uncompiled, flexible attention is the same.
        flex: Any = sys.modules.get(_FLEX)
        if flex is not None and not self._entered:
            flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
        self._entered += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._entered -= 1
        flex: Any = sys.modules.get(_FLEX)
        if flex is not None and not self._entered:
            flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = False

    def phase(self, name: str) -> None:
        """Begin a phase; what the one before took is noted. A phase that comes again keeps the higher peak."""
        self.end_phase()
        self._phase = name
        self._count_residents()
        self._peak = self.live_bytes

    def end_phase(self) -> None:
        """Note the phase that runs, if one does."""
        if self._phase is None:
            return
        # Weights that came unseen during the phase may have been there at its peak. Those that went were seen to go.
        peak = self._peak + self._count_residents()
        self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), peak)
        self._phase = None

    def _count_residents(self) -> int:
        """Count weights and buffers that are not counted yet; return their bytes."""
        before = self.live_bytes
        for key, storage in _residents(self._modules).items():
            if key not in self._storages:
                self._count(storage)
        return self.live_bytes - before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator) and (dense := func.py_kernels.get(_DENSE)) is not None:
            with self:  # what it is made of is counted, and nothing of it twice
                return dense(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        given: set[int] | None = None
        for tensor in _tensors(result):
            storage = _storage(tensor)
            if storage is None or storage._cdata in self._storages:
                continue
            if given is None:
                # A view of a weight is not new memory; asked only when something seems to be new.
                found = (_storage(item) for item in _tensors((args, tuple((kwargs or {}).values()))))
                given = {item._cdata for item in found if item is not None}
            if storage._cdata not in given:
                self._count(storage)
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()

        def freed(_: Any) -> None:
            self._storages.pop(key, None)
            self.live_bytes -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.live_bytes += size
        self._peak = max(self._peak, self.live_bytes)


def resident_bytes(modules: Iterable[torch.nn.Module]) -> int:
    """Return the bytes of the weights and buffers that lie in memory; tied ones once.

    Weights that left have placeholders (residence.py) and count next to nothing. Those that are mapped from their files
    count nothing: the kernel may drop them at any time.
    """
    return sum(storage.nbytes() for storage in _residents(modules).values())


def _residents(modules: Iterable[torch.nn.Module]) -> dict[int, Any]:
    seen: dict[int, Any] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if getattr(tensor, "wan_compat_mapped", False):
                continue
            for inner in _parts(tensor):
                storage = _storage(inner)
                if storage is not None:
                    seen[storage._cdata] = storage
    return seen


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield what a quantised weight is made of; a plain tensor is itself."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from _parts(getattr(tensor, name))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _storage(tensor: torch.Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse and mkldnn layouts have none
        return None
