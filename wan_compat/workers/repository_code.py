"""Importing approved code of a model's repository, inside the sandbox, from the files that the view holds.

The folder becomes a package of its own, `_wan_repository`, which nothing else can be mistaken for:

    transformer/my_module.py      _wan_repository.transformer.my_module
    from .layers import Norm      transformer/layers.py
    from ..common import Norm     common.py

Only relative imports reach the repository. The model's folder is never on `sys.path`, so that a file of it called
torch.py or json.py is nobody's torch or json. Sources alone are read: no bytecode, no extension module, and none is
written. The `__init__.py` of the model's own folder is not run, as in diffusers, which copies modules one by one.

The libraries' own way (`trust_remote_code=True`) is not taken: it copies files to a writable cache and puts that on
`sys.path`, installs nothing but asks for it, and follows references to other repositories.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from wan_compat.protocol.errors import ModelNotCompatible
from wan_compat.protocol.values import CodeSpec, ComponentSpec

PACKAGE = "_wan_repository"
MAX_SOURCE_BYTES = 4 << 20


def load_class(code: CodeSpec, folder: str) -> type[Any]:
    """Import the module of `code` and return its class.

    Args:
        code: Named by the supervisor, from the approved files.
        folder: The model's files, as the worker sees them. One worker has one.

    Raises:
        ModelNotCompatible: There is no such class, or the code imports what is not here.
        Exception: Whatever else the code raises while it is imported.
    """
    finder = next((item for item in sys.meta_path if isinstance(item, _Finder)), None)
    if finder is None:
        finder = _Finder(folder)
        sys.meta_path.insert(0, finder)
    try:
        module = importlib.import_module(f"{PACKAGE}.{code.module.removesuffix('.py').replace('/', '.')}")
    except ImportError as error:
        raise cannot_import(code, error) from error
    found = getattr(module, code.class_name, None)
    if not isinstance(found, type):
        raise ModelNotCompatible(f"{code.module} of the repository has no class {code.class_name!r}")
    return found


def cannot_import(code: CodeSpec, error: ImportError) -> ModelNotCompatible:
    """Return the error for code that imports what is not here, when it is loaded or later."""
    return ModelNotCompatible(
        f"{code.module} of the repository cannot be imported, or not what it needs: {error}",
        hint="code of a repository can use the libraries of the worker, and its own files by relative imports "
        "(from .file import name)",
    )


def load_own_class(component: ComponentSpec, folder: str) -> type[Any]:
    """Return the class of a component, if it is of the kind that its library loads.

    Raises:
        ModelNotCompatible: It is none; and as `load_class`.
    """
    import diffusers
    import transformers

    assert component.code is not None
    base = {
        ("diffusers", True): diffusers.ModelMixin,
        ("diffusers", False): diffusers.SchedulerMixin,
        ("transformers", True): transformers.PreTrainedModel,
        ("transformers", False): transformers.PreTrainedTokenizerBase,
    }[component.library, component.dtype is not None]
    found = load_class(component.code, folder)
    # Their from_pretrained accounts for every tensor, or takes nothing but configurations.
    if not issubclass(found, base):
        raise ModelNotCompatible(
            f"{component.code.class_name} of {component.code.module} is no {component.library}.{base.__name__}"
        )
    return found


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of one folder under the name of the package, and no others."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        first, *rest = fullname.split(".")
        if first != PACKAGE:
            return None
        place = os.path.join(self._folder, *rest)
        if os.path.isfile(f"{place}.py"):
            return _spec(fullname, f"{place}.py", is_package=False)
        if rest and os.path.isfile(start := os.path.join(place, "__init__.py")):
            return _spec(fullname, start, is_package=True)
        return _spec(fullname, None, is_package=True) if os.path.isdir(place) else None


def _spec(fullname: str, source: str | None, *, is_package: bool) -> importlib.machinery.ModuleSpec:
    # A package has an empty `__path__`: with a folder in it, Python's own finder would look there for what this one
    # does not find, and take bytecode and extension modules too.
    spec = importlib.machinery.ModuleSpec(fullname, _Loader(source), origin=source, is_package=is_package)
    spec.has_location = source is not None  # __file__, for tracebacks
    return spec


class _Loader(importlib.abc.ExecutionLoader):
    """Compiles one source file, or makes an empty package of a folder without one."""

    def __init__(self, source: str | None) -> None:
        self._source = source

    def get_filename(self, fullname: str) -> str:
        if self._source is None:
            raise ImportError(f"{fullname} is a folder", name=fullname)
        return self._source

    def get_source(self, fullname: str) -> str:
        if self._source is None:
            return ""
        with open(self._source, "rb") as file:
            raw = file.read(MAX_SOURCE_BYTES + 1)
        if len(raw) > MAX_SOURCE_BYTES:
            raise ModelNotCompatible(f"{os.path.basename(self._source)} has more than {MAX_SOURCE_BYTES >> 20} MiB")
        return importlib.util.decode_source(raw)

    def is_package(self, fullname: str) -> bool:
        return self._source is None or os.path.basename(self._source) == "__init__.py"
