"""From the files of a RestrictedSpec to the function that makes the video: compiled under the policy, guarded, run.

The supervisor has read the same files under the same policy; the worker asks again, since the policy is what rewrites
the code. What was hashed there is compared here, so that both spoke of the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from wan_compat.protocol.errors import GenerationFailed, MemoryExceeded, ModelNotCompatible, WanCompatError
from wan_compat.protocol.restricted_policy import MAX_SOURCE_BYTES, MODULES, restrict
from wan_compat.protocol.values import RestrictedSpec
from wan_compat.workers.failures import translate
from wan_compat.workers.restricted.guards import namespace
from wan_compat.workers.restricted.proxies import Module, library_modules

_MARK = "restricted:"


def load_function(spec: RestrictedSpec, folder: str) -> Callable[..., Any]:
    """Run the modules of the repository, and return the function that `spec` names.

    Args:
        spec: From the supervisor: which files, with which content.
        folder: The model's files, as the worker sees them.

    Raises:
        ModelNotCompatible: A file is not what was admitted, leaves the subset, fails when it is run, or has no such
            function.
    """
    repository = Repository(spec, folder)
    try:
        found = getattr(repository.module(spec.module.removesuffix(".py")), spec.function, None)
    except WanCompatError:
        raise
    except Exception as error:
        raise explained(error, ModelNotCompatible) from error
    if not callable(found):
        raise ModelNotCompatible(f"{spec.module} of the repository has no function {spec.function!r}")
    return found  # type: ignore[no-any-return]


class Repository:
    """The modules of one repository and what they may import, each run once, when it is first asked for."""

    def __init__(self, spec: RestrictedSpec, folder: str) -> None:
        self._spec, self._folder = spec, folder
        self._libraries = library_modules()
        self._modules: dict[str, Module | None] = {}  # None: it is being run

    def module(self, name: str) -> Module:
        """Return a module of the repository, as its siblings see it."""
        if name not in self._modules:
            self._modules[name] = None
            self._modules[name] = self._run(name)
        found = self._modules[name]
        if found is None:
            raise ImportError(f"{name}.py imports itself")
        return found

    def _run(self, name: str) -> Module:
        path = f"{name}.py"
        raw = self._read(path)
        checked = restrict(raw)
        if checked.tree is None:
            first = checked.breaches[0]
            raise ModelNotCompatible(f"{path}, line {first.line}: {first.what}")
        scope = namespace(name, self._import)
        given = frozenset(scope)
        exec(compile(checked.tree, f"{_MARK}{path}", "exec", dont_inherit=True), scope)  # noqa: S102 - what this room is for
        return Module(path, {key: value for key, value in scope.items() if key not in given})

    def _read(self, path: str) -> bytes:
        expected = self._spec.files.get(path)
        if expected is None:
            raise ImportError(f"{path} is not among the admitted files")
        with open(os.path.join(self._folder, path), "rb") as file:
            raw = file.read(MAX_SOURCE_BYTES + 1)
        if hashlib.sha256(raw).hexdigest() != expected:
            raise ModelNotCompatible(f"{path} is not the file that was admitted")
        return raw

    def _import(
        self,
        name: str,
        _globals: object = None,
        _locals: object = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Module:
        """Serve the import statements. The names are checked here too: behind this, the interpreter would look on."""
        if level:
            found = self.module(name)
        elif name in MODULES:
            # As `__import__`: `import a.b` binds a, `from a.b import c` looks at b.
            found = self._libraries[name if fromlist else name.partition(".")[0]]
        else:
            raise ImportError(f"restricted code cannot import {name!r}")
        for wanted in fromlist or ():
            try:
                getattr(found, wanted)
            except AttributeError as error:
                raise ImportError(str(error)) from None
        return found


def explained(error: Exception, kind: type[WanCompatError] = GenerationFailed) -> WanCompatError:
    """Return our error for a foreign one that came out of restricted code, with file and line."""
    known = translate(error, loading=False)
    if isinstance(known, MemoryExceeded):
        return known
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_MARK)]
    where = f"{lines[-1].filename.removeprefix(_MARK)}, line {lines[-1].lineno}: " if lines else ""
    return kind(
        f"{where}{type(error).__name__}: {error}",
        hint="docs/restricted.md says what restricted code is given",
    )
