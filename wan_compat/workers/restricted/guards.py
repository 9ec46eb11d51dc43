"""What the rewritten code calls in place of the language's own operations: attributes, items, loops, writes, imports.

    a.b        _getattr_(a, "b")        ATTRIBUTES, by the exact type of a
    a[b]       _getitem_(a, b)          SUBSCRIPTABLE
    for x in a _getiter_(a)             ITERABLE
    a.b = c    _write_(a).b = c         instances of the code's own classes; items of lists, dictionaries and tensors
    a += b     a = _inplacevar_(...)    the operators of the language
    f(*a)      _apply_(f, *a)           a call; what can be called was reached through a guard
    import a   __import__("a", ...)     proxies, and the repository's own modules

Loops that run in C (`list(x)`, `sum(x)`) do not pass `_getiter_`. That gains nothing: they give the same items, and
what counts is that an item shows nothing of itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from RestrictedPython.Guards import guarded_iter_unpack_sequence, guarded_unpack_sequence

from wan_compat.workers.restricted.proxies import ATTRIBUTES, ITERABLE, SUBSCRIPTABLE, ItemsOnly, Module

_NOTHING = object()

_IN_PLACE: Mapping[str, Callable[[Any, Any], Any]] = {
    "+=": operator.iadd,
    "-=": operator.isub,
    "*=": operator.imul,
    "/=": operator.itruediv,
    "%=": operator.imod,
    "**=": operator.ipow,
    "<<=": operator.ilshift,
    ">>=": operator.irshift,
    "|=": operator.ior,
    "^=": operator.ixor,
    "&=": operator.iand,
    "//=": operator.ifloordiv,
    "@=": operator.imatmul,
}


class Denied(AttributeError):
    """Restricted code asked for something that it is not given."""


class OwnClass(type):
    """The type of the classes that restricted code defines: how the guards know their instances."""


def get_attribute(value: Any, name: Any, default: Any = _NOTHING) -> Any:
    """Return `value.name` where the code may have it. Serves `a.b`, `getattr` and `hasattr`.

    Raises:
        Denied: It may not.
        AttributeError: It might, but there is none.
    """
    # Exactly str: a subclass could be one name when it is compared and another one when it is used.
    if type(name) is not str or name.startswith("_"):
        raise Denied(f"restricted code cannot name the attribute {name!r}")
    kind = type(value)
    if kind is Module or type(kind) is OwnClass or name in ATTRIBUTES.get(kind, ()):
        return getattr(value, name) if default is _NOTHING else getattr(value, name, default)
    if kind is OwnClass and name in vars(value):
        return vars(value)[name]
    if isinstance(value, BaseException) and name == "args":
        return value.args
    raise Denied(f"{kind.__name__} has no {name!r} for restricted code")


def has_attribute(value: Any, name: Any) -> bool:
    """`hasattr`: false also for what is there and not given."""
    try:
        get_attribute(value, name)
    except AttributeError:
        return False
    return True


def get_item(value: Any, index: Any) -> Any:
    if type(value) not in SUBSCRIPTABLE:
        raise Denied(f"{type(value).__name__} cannot be subscripted by restricted code")
    return value[index]


def get_iterable(value: Any) -> Any:
    if type(value) not in ITERABLE:
        raise Denied(f"{type(value).__name__} cannot be looped over by restricted code")
    return value


def writable(value: Any) -> Any:
    """Return what an assignment to an attribute or item of `value` may go to."""
    kind = type(value)
    if kind in (list, dict) or type(kind) is OwnClass:
        return value
    if kind is torch.Tensor:
        return ItemsOnly(value)
    raise Denied(f"{kind.__name__} cannot be changed by restricted code")


def in_place(operation: str, value: Any, other: Any) -> Any:
    return _IN_PLACE[operation](value, other)


def apply(function: Any, *args: Any, **options: Any) -> Any:
    return function(*args, **options)


def say(*values: Any) -> None:
    """`print`, to the worker's log. No file, and nothing else to be told to write to."""
    print(*(str(value) for value in values))


_EXCEPTIONS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    Exception,
    IndexError,
    KeyError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
# Not among them: type, object, super, property (classes and what made them), vars, dir, globals, locals, id
# (introspection), open, input, compile, eval, exec, memoryview, bytearray, setattr and delattr.
_BUILTINS: Mapping[str, Any] = {
    **{error.__name__: error for error in _EXCEPTIONS},
    **{
        function.__name__: function
        for function in (
            *(abs, all, any, bool, callable, complex, dict, divmod, enumerate, filter, float, frozenset, int),
            *(isinstance, len, list, map, max, min, pow, range, repr, reversed, round, set, slice, sorted, str, sum),
            *(tuple, zip),
        )
    },
    "getattr": get_attribute,
    "hasattr": has_attribute,
    "print": say,
    "__build_class__": __build_class__,  # what a `class` statement calls
}


def namespace(title: str, import_module: Callable[..., Any]) -> dict[str, Any]:
    """Return the globals of one module of restricted code.

    Args:
        title: Its `__name__`.
        import_module: Called by its import statements, with the arguments of `__import__`.
    """
    return {
        "__builtins__": {**_BUILTINS, "__import__": import_module},
        "__name__": title,
        "__metaclass__": OwnClass,
        "_getattr_": get_attribute,
        "_getitem_": get_item,
        "_getiter_": get_iterable,
        "_iter_unpack_sequence_": guarded_iter_unpack_sequence,
        "_unpack_sequence_": guarded_unpack_sequence,
        "_write_": writable,
        "_inplacevar_": in_place,
        "_apply_": apply,
    }
