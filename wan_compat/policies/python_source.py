"""Reads Python source as text: which names a package offers, and which arguments a class takes. Nothing is run.

diffusers and transformers name their classes in tables (`_import_structure`) that decide what is imported when; a
pipeline's `__init__` and `__call__` stand in the one file that defines it; a modular pipeline's inputs stand in the
docstring of its blocks, which diffusers generates (`# auto_docstring`). All of that can be read without importing
them, which would cost seconds and hundreds of megabytes, and would run their code in the supervisor.

Sources come from an installation that its user chose, but may be broken or of any version: what cannot be parsed gives
nothing, and every bound is explicit.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping

MAX_SOURCE_BYTES = 2 << 20  # diffusers' largest pipeline has 0.3 MB
MAX_NAMES = 20_000
MAX_PARAMETERS = 200
MAX_DEFAULT_CHARS = 80

_TABLE = "_import_structure"


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The arguments of one function without `self`. `optional` maps a name to its default as source text;
    `accepts_more` is a `**kwargs`."""

    required: tuple[str, ...]
    optional: Mapping[str, str]
    accepts_more: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)


@dataclasses.dataclass(frozen=True)
class ClassDefinition:
    """A class as its file defines it; what it inherits is not in it. `blocks_name` and `documented` are those of
    modular pipelines: the class that holds their inputs, and the inputs that a docstring lists."""

    name: str
    bases: tuple[str, ...]
    init: Parameters | None
    call: Parameters | None
    blocks_name: str | None = None
    documented: Parameters | None = None


def parse(source: str) -> ast.Module | None:
    """Return the syntax tree, None for what is too large or no Python."""
    if len(source) > MAX_SOURCE_BYTES:
        return None
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def offered_names(tree: ast.Module) -> dict[str, str]:
    """Return what an `__init__.py` offers: name -> the module below it (`pipelines`, `models.modeling_utils`).

    All branches count, whatever they test: whether torch is installed is asked elsewhere. Dummy objects, which stand
    in for classes whose backend is missing, are skipped: the real class is listed too.
    """
    found: dict[str, str] = {}
    for module, names in _entries(tree):
        if ".dummy_" in f".{module}":
            continue
        for name in names:
            if len(found) >= MAX_NAMES:
                return found
            found.setdefault(name, module)
    return found


def class_definition(tree: ast.Module, name: str) -> ClassDefinition | None:
    """Return the class of that name at the top level of a file, or None."""
    node = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if node is None:
        return None
    functions = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    blocks = next((_text(value) for target, value in _assignments(node) if target == "default_blocks_name"), None)
    return ClassDefinition(
        name=name,
        bases=tuple(_dotted(base) for base in node.bases),
        init=_parameters(functions.get("__init__")),
        call=_parameters(functions.get("__call__")),
        blocks_name=blocks,
        documented=documented_inputs(ast.get_docstring(node) or ""),
    )


def version_of(tree: ast.Module) -> str | None:
    """Return the text of `__version__`, for installations without metadata."""
    return next(
        (
            _text(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == "__version__" for target in node.targets)
        ),
        None,
    )


_INPUT = re.compile(r"(?P<name>[A-Za-z_]\w*) \((?P<kind>[^\n]{0,400})\):")
_DEFAULT = re.compile(r"defaults to (.{1,80})$")


def documented_inputs(docstring: str) -> Parameters | None:
    """Return the section `Inputs:` of a block's generated docstring, None where there is none."""
    lines = iter(docstring[:MAX_SOURCE_BYTES].splitlines())
    heading = next((line for line in lines if line.strip() == "Inputs:"), None)
    if heading is None:
        return None
    required: list[str] = []
    optional: dict[str, str] = {}
    accepts_more = False
    for line in lines:
        text = line.strip()
        if text and _indent(line) <= _indent(heading):
            break  # the next section
        accepts_more |= text.startswith("**")
        match = _INPUT.fullmatch(text)
        if match is None or len(required) + len(optional) >= MAX_PARAMETERS:
            continue
        if "*optional*" in match["kind"]:
            default = _DEFAULT.search(match["kind"])
            optional[match["name"]] = default[1] if default else "None"
        else:
            required.append(match["name"])
    return Parameters(tuple(required), optional, accepts_more)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _entries(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """Yield (module, names) of every statement that fills the table, and of imports from modules below.

    Forms in use: `T = {..}`, `T["m"] = [..]`, `T["m"] += [..]`, `T["m"].append("x")`, `T["m"].extend([..])`,
    `T.update({..})`, and `from .m import X` where an `__init__.py` has no table.
    """
    for node in _statements(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            yield node.module, [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if _is_table(target) and isinstance(node.value, ast.Dict):
                    yield from _of_dict(node.value)
                elif (module := _subscript(target)) is not None and node.value is not None:
                    yield module, _strings(node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            if not isinstance(call.func, ast.Attribute) or not call.args:
                continue
            if (module := _subscript(call.func.value)) is not None and call.func.attr in ("append", "extend"):
                yield module, _strings(call.args[0])
            elif _is_table(call.func.value) and call.func.attr == "update" and isinstance(call.args[0], ast.Dict):
                yield from _of_dict(call.args[0])


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements of a module with those inside `if` and `try`, not inside functions and classes."""
    pending: list[ast.stmt] = list(reversed(tree.body))
    while pending:
        node = pending.pop()
        yield node
        for field in ("finalbody", "orelse", "handlers", "body"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                for item in reversed(getattr(node, field, [])):
                    pending.extend(reversed(item.body) if isinstance(item, ast.ExceptHandler) else (item,))


def _of_dict(node: ast.Dict) -> Iterator[tuple[str, list[str]]]:
    for key, value in zip(node.keys, node.values, strict=True):
        module = _text(key)
        if module is not None:
            yield module, _strings(value)


def _is_table(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == _TABLE


def _subscript(node: ast.AST) -> str | None:
    return _text(node.slice) if isinstance(node, ast.Subscript) and _is_table(node.value) else None


def _strings(node: ast.AST) -> list[str]:
    items = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else [node]
    return [text for item in items if (text := _text(item)) is not None]


def _text(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for item in node.body:
        if isinstance(item, ast.Assign):
            yield from ((target.id, item.value) for target in item.targets if isinstance(target, ast.Name))


def _dotted(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _parameters(function: ast.FunctionDef | None) -> Parameters | None:
    if function is None:
        return None
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    required, optional = [], {}
    for argument, default in pairs[: MAX_PARAMETERS + 1]:
        if argument.arg == "self":
            continue
        if default is None:
            required.append(argument.arg)
        else:
            optional[argument.arg] = _source(default)
    return Parameters(tuple(required), optional, accepts_more=arguments.kwarg is not None)


def _source(node: ast.expr) -> str:
    try:
        text = ast.unparse(node)
    except RecursionError:
        return "..."
    return text if len(text) <= MAX_DEFAULT_CHARS else text[: MAX_DEFAULT_CHARS - 3] + "..."
