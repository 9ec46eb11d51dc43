"""What restricted code sees of libraries and values: modules with named members, and types with named attributes.

A proxy module holds the members that `protocol/restricted_policy.py` lists and nothing else: no `__dict__` with the
rest, no `__name__`. The latter matters: where `from torch import hub` finds no attribute, the interpreter itself looks
for "torch.hub" in `sys.modules`, by the `__name__` of what it has (`import_from` in CPython's ceval.c).

Values are real: a tensor is a torch.Tensor, with everything that C code may do with it. What is guarded is the way to
its attributes, by exact type: a value of a type that is not in `ATTRIBUTES`, whatever led to it, can be passed on,
called and compared, and shows nothing of itself.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import importlib
import types
from collections.abc import Mapping
from typing import Any

import torch

from wan_compat.protocol.restricted_policy import MODULES, names

_TENSOR = (
    "abs acos all allclose amax amin any argmax argmin argsort asin atan2 bfloat16 bmm bool ceil chunk clamp clamp_"
    " clone contiguous copy_ cos cosh cpu cumprod cumsum detach device diff dim div dot double dtype eq equal erf exp"
    " expand expand_as fill_ flatten flip float floor fmod frac gather ge gt half index_select int isfinite isinf isnan"
    " item le lerp log log10 log2 long lt masked_fill masked_fill_ masked_select matmul max maximum mean median min"
    " minimum movedim mul narrow nan_to_num ndim ne neg nelement nonzero norm numel permute pow prod quantile"
    " reciprocal repeat repeat_interleave reshape roll rot90 round rsqrt select shape sigmoid sign sin sinh size"
    " softmax sort split sqrt square squeeze std sub sum t tan tanh tile to tolist topk transpose tril triu trunc"
    " type_as unbind unflatten unfold unsqueeze var view view_as where zero_"
)
_STR = (
    "capitalize casefold center count endswith expandtabs find index isalnum isalpha isascii isdecimal isdigit"
    " islower isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace"
    " rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title"
    " translate upper zfill"
)
_SET = "difference intersection isdisjoint issubset issuperset symmetric_difference union copy"

# What torch.max(x, dim=0), sort, topk and their like return.
_RETURN_TYPES: tuple[type[Any], ...] = tuple(
    found for found in vars(torch.return_types).values() if hasattr(found, "values") and hasattr(found, "indices")
)


class Module:
    """A module as restricted code sees it. Immutable, and unknown to the import system."""

    __slots__ = ("_members", "_title")
    _members: Mapping[str, Any]
    _title: str

    def __init__(self, title: str, members: dict[str, Any]) -> None:
        object.__setattr__(self, "_title", title)
        object.__setattr__(self, "_members", types.MappingProxyType(members))

    def __getattr__(self, name: str) -> Any:
        # Asked by the interpreter for `from m import name`, and by the guard.
        try:
            return self._members[name]
        except KeyError:
            raise AttributeError(f"{self._title} has no {name!r} for restricted code") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self._title} cannot be changed")

    def __repr__(self) -> str:
        return f"<restricted module {self._title}>"


def library_modules() -> dict[str, Module]:
    """Return a proxy for each module that code may import. A name that this torch does not have is left out."""
    modules: dict[str, Module] = {}
    for title in sorted(MODULES, key=len, reverse=True):  # a submodule is a member of its parent
        real = importlib.import_module(title)
        members: dict[str, Any] = {}
        for name in MODULES[title]:
            inner = modules.get(f"{title}.{name}")
            if inner is not None:
                members[name] = inner
            elif hasattr(real, name):
                found = getattr(real, name)
                assert not isinstance(found, types.ModuleType), f"{title}.{name} is a module, not a function"
                members[name] = found
        modules[title] = Module(title, members)
    return modules


# Exact type -> what may be asked of its values. Methods of text that read attributes (`format`) are not among them.
ATTRIBUTES: dict[type[Any], frozenset[str]] = {
    torch.Tensor: names(_TENSOR),
    torch.Size: names("numel count index"),
    torch.Generator: names("initial_seed manual_seed"),
    torch.device: names("index type"),
    torch.dtype: names("is_floating_point itemsize"),
    str: names(_STR),
    bytes: names("hex"),
    int: names("bit_length"),
    float: names("is_integer"),
    complex: names("conjugate imag real"),
    list: names("append clear copy count extend index insert pop remove reverse sort"),
    tuple: names("count index"),
    dict: names("clear copy get items keys pop popitem setdefault update values"),
    set: names(_SET + " add clear discard pop remove update"),
    frozenset: names(_SET),
    range: names("count index start step stop"),
    slice: names("start step stop"),
    **dict.fromkeys(_RETURN_TYPES, names("indices values")),
}

_VIEWS: tuple[type[Any], ...] = (type({}.keys()), type({}.values()), type({}.items()), type(reversed([])))

# Exact types that `for` and unpacking go through, and those that `[...]` reads.
_PLAIN: tuple[type[Any], ...] = (list, tuple, dict, set, frozenset, str, bytes, range, torch.Tensor, torch.Size)
_LAZY: tuple[type[Any], ...] = (types.GeneratorType, enumerate, zip, map, filter, reversed)
ITERABLE = frozenset((*_PLAIN, *_LAZY, *_VIEWS, *_RETURN_TYPES))
SUBSCRIPTABLE = frozenset((*_PLAIN, *_RETURN_TYPES)) - {set, frozenset}


class ItemsOnly:
    """Takes `tensor[...] = value` and no assignment to an attribute (`.data`, `.grad`, `.requires_grad`)."""

    __slots__ = ("_tensor",)
    _tensor: torch.Tensor

    def __init__(self, tensor: torch.Tensor) -> None:
        object.__setattr__(self, "_tensor", tensor)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._tensor[index] = value

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("the attributes of a tensor cannot be set by restricted code")
