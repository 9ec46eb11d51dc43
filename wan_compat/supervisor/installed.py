"""What is installed, without importing it: versions from metadata, classes and their arguments from source.

    package = find_package("diffusers")            None where there is none
    package.version                                "0.42.1"
    package.source_of("WanPipeline")               ".../pipelines/wan/pipeline_wan.py", None for an unknown class
    package.signature("WanPipeline").call          the arguments of __call__

The current folder is not searched: a project that is merely being worked in must not be able to pose as diffusers.
Another interpreter's packages are read by naming its site-packages. Parsed files are kept in memory until they change.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.machinery
import importlib.metadata
import json
import os
import re
import stat
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from packaging.utils import canonicalize_name

from wan_compat.policies import python_source
from wan_compat.policies.python_source import MAX_SOURCE_BYTES, ClassDefinition, Parameters

MAX_DEPTH = 6  # of tables that name tables; diffusers has three
MAX_BASES = 6  # of a class that inherits its __call__
MAX_FILES_OF_A_FOLDER = 60  # looked into for a class that no table places
MAX_PTH_BYTES = 64 << 10
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


@dataclasses.dataclass(frozen=True)
class PipelineSignature:
    """The arguments of a pipeline class. `call` is None where its source does not tell (a modular pipeline of an older
    release, a class whose `__call__` comes from elsewhere); `module` is dotted: `diffusers.pipelines.wan...`."""

    class_name: str
    module: str
    path: str
    init: Parameters | None
    call: Parameters | None
    is_modular: bool


@dataclasses.dataclass(frozen=True)
class InstalledPackage:
    """A package as found. `version` is None where neither metadata nor source tell it."""

    name: str
    version: str | None
    folder: str

    def class_names(self) -> frozenset[str]:
        """Return the names that the package's own table offers. transformers 5 lists few there; use `source_of`."""
        tree = _tree(os.path.join(self.folder, "__init__.py"))
        return frozenset(python_source.offered_names(tree) if tree is not None else ())

    def has_class(self, name: str) -> bool:
        return self.source_of(name) is not None

    def source_of(self, name: str) -> str | None:
        """Return the file that defines a class which the package offers, None where it does not.

        A `...Fast` name of transformers 5 is an alias: it counts as the class without the suffix.
        """
        if not _IDENTIFIER.fullmatch(name):
            return None
        found = self._follow(self.folder, name, MAX_DEPTH) or self._in_model_folders(name)
        if found is None and name.endswith(("TokenizerFast", "ImageProcessorFast")) and self.name == "transformers":
            return self.source_of(name.removesuffix("Fast"))
        return found

    def signature(self, name: str) -> PipelineSignature | None:
        """Return the arguments of a class' `__init__` and `__call__`, None for a class that is not there.

        Inherited ones are looked up in the same file and in the classes that the package offers.
        """
        path = self.source_of(name)
        definition = _definition(path, name)
        if path is None or definition is None:
            return None
        init, call, blocks = definition.init, definition.call, definition.blocks_name
        pending, seen = list(definition.bases), {name}
        while pending and len(seen) <= MAX_BASES and blocks is None and (init is None or call is None):
            base = pending.pop(0)
            if base in seen:
                continue
            seen.add(base)
            inherited = _definition(path, base) or _definition(self.source_of(base), base)
            if inherited is not None:
                init, call = init or inherited.init, call or inherited.call
                blocks = blocks or inherited.blocks_name
                pending += inherited.bases
        if blocks is not None:
            # __call__ of a modular pipeline takes anything: what it does take is what its blocks list.
            described = _definition(self.source_of(blocks), blocks)
            call = described.documented if described is not None else None
        module = os.path.relpath(path, os.path.dirname(self.folder)).removesuffix(".py").replace(os.sep, ".")
        return PipelineSignature(name, module, path, init, call, is_modular=blocks is not None)

    def _follow(self, folder: str, name: str, depth: int) -> str | None:
        """Follow the tables from one `__init__.py` down to the file that defines `name`."""
        tree = _tree(os.path.join(folder, "__init__.py"))
        module = None if tree is None or depth == 0 else python_source.offered_names(tree).get(name)
        if module is None or not all(_IDENTIFIER.fullmatch(part) for part in module.split(".")):
            return None
        below = os.path.join(folder, *module.split("."))
        if os.path.isdir(below):
            return self._follow(below, name, depth - 1) or _defined_in(below, name)
        return f"{below}.py" if _defines(f"{below}.py", name) else None

    def _in_model_folders(self, name: str) -> str | None:
        """Find a class of transformers 5, which keeps no table of its models: by the folder whose name begins the
        class' name, longest first, else by the folders that the Auto classes list for it."""
        models = os.path.join(self.folder, "models")
        plain = name.lower().replace("_", "")
        try:
            folders = [entry.name for entry in os.scandir(models) if entry.is_dir()]
        except OSError:
            return None
        likely = sorted((f for f in folders if plain.startswith(f.replace("_", ""))), key=len, reverse=True)
        for folder in (*likely, *sorted(_auto_folders(models, name) & set(folders))):
            found = _defined_in(os.path.join(models, folder), name)
            if found is not None:
                return found
        return None


def find_package(name: str, site_packages: str | None = None) -> InstalledPackage | None:
    """Find an installed package.

    Args:
        name: Import name, such as "diffusers"; for the packages asked for here the distribution has the same name.
        site_packages: Another interpreter's folder; None is what this process would import from.
    """
    paths = _own_paths() if site_packages is None else (os.path.abspath(site_packages), *_pth_lines(site_packages))
    distribution = next(iter(importlib.metadata.distributions(name=name, path=list(paths))), None)
    folder = _locate(name, paths) or _editable(name, distribution)
    if folder is None:
        return None
    version = distribution.version if distribution is not None else None
    if version is None:
        tree = _tree(os.path.join(folder, "__init__.py"))
        version = python_source.version_of(tree) if tree is not None else None
    return InstalledPackage(name, version, folder)


def find_version(name: str, site_packages: str | None = None) -> str | None:
    """Return the version of a distribution (`pillow`, not `PIL`), None where it is not installed."""
    paths = _own_paths() if site_packages is None else (os.path.abspath(site_packages),)
    found = next(iter(importlib.metadata.distributions(name=name, path=list(paths))), None)
    return found.version if found is not None else None


def find_distributions() -> Mapping[str, tuple[str, tuple[str, ...]]]:
    """Return (version, requirements) of everything that is installed, by canonical name."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for item in importlib.metadata.distributions(path=list(_own_paths())):
        name = item.metadata["Name"]
        if name is not None:  # a half-removed package has none
            found.setdefault(canonicalize_name(name), (item.version, tuple(item.requires or ())))
    return found


def _own_paths() -> tuple[str, ...]:
    here = os.path.realpath(os.getcwd())
    return tuple(path for path in sys.path if path and os.path.realpath(path) != here)


def _pth_lines(site_packages: str) -> list[str]:
    """Return the folders that `.pth` files add. Lines that would run code (`import ...`) are left out, not run."""
    folders = []
    try:
        names = sorted(name for name in os.listdir(site_packages) if name.endswith(".pth"))[:100]
    except OSError:
        return []
    for name in names:
        for line in (_read(os.path.join(site_packages, name), MAX_PTH_BYTES) or "").splitlines()[:100]:
            if line.strip() and not line.startswith(("#", "import ", "import\t")):
                folders.append(os.path.join(site_packages, line.strip()))
    return folders


def _locate(name: str, paths: Sequence[str]) -> str | None:
    spec = importlib.machinery.PathFinder.find_spec(name, list(paths))
    if spec is None or spec.origin is None or os.path.basename(spec.origin) != "__init__.py":
        return None
    return os.path.dirname(os.path.abspath(spec.origin))


def _editable(name: str, distribution: importlib.metadata.Distribution | None) -> str | None:
    """Return the package of an editable install (PEP 610), whose import hook is not asked: it would be code."""
    text = distribution.read_text("direct_url.json") if distribution is not None else None
    if not text or len(text) > MAX_PTH_BYTES:
        return None
    try:
        record: Any = json.loads(text)
        url = urllib.parse.urlsplit(record["url"]) if record["dir_info"]["editable"] else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if url is None or url.scheme != "file":
        return None
    project = urllib.parse.unquote(url.path)
    return _locate(name, (os.path.join(project, "src"), project))


def _defined_in(folder: str, name: str) -> str | None:
    """Return the file directly in `folder` that defines `name`."""
    try:
        files = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".py") and entry.is_file())
    except OSError:
        return None
    for file in files[:MAX_FILES_OF_A_FOLDER]:
        if _defines(path := os.path.join(folder, file), name):
            return path
    return None


def _defines(path: str, name: str) -> bool:
    """Whether a file defines a class or an alias of that name. By its text: parsing costs ten times as much."""
    return re.search(rf"^(class {name}\b|{name} = )", _read(path) or "", re.MULTILINE) is not None


def _auto_folders(models: str, name: str) -> set[str]:
    """Return the model types that `models/auto/` lists with a class: lines such as `("siglip", "SiglipModel"),`."""
    found: set[str] = set()
    for file in ("modeling_auto.py", "tokenization_auto.py", "image_processing_auto.py", "processing_auto.py"):
        text = _read(os.path.join(models, "auto", file)) or ""
        for match in re.finditer(rf'^.*"{name}".*$', text, re.MULTILINE):
            found.update(kind.replace("-", "_") for kind in re.findall(r'"([a-z0-9_-]+)"', match[0]))
    return found


def _definition(path: str | None, name: str) -> ClassDefinition | None:
    tree = _tree(path) if path is not None else None
    return python_source.class_definition(tree, name) if tree is not None else None


def _tree(path: str) -> Any:
    """Return the syntax tree of a file, parsed once for each state of it."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return _parsed(path, info.st_mtime_ns, info.st_size)


@functools.lru_cache(maxsize=64)
def _parsed(path: str, mtime_ns: int, size: int) -> Any:
    text = _read(path)
    return python_source.parse(text) if text is not None else None


def _read(path: str, limit: int = MAX_SOURCE_BYTES) -> str | None:
    """Return a regular file's text, None where there is none or it is too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            raw = file.read(limit + 1)
    finally:
        os.close(descriptor)
    return raw.decode("utf-8", "replace") if len(raw) <= limit else None
