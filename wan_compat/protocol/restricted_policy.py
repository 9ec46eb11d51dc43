"""The subset of Python that `--restricted` accepts: one text, asked by the supervisor first and by the worker again.

The supervisor uses it to refuse before anything is started, with file, line and construct; the worker compiles nothing
that has not passed it. It is RestrictedPython's subset (https://restrictedpython.readthedocs.io) with these decisions:

    allowed besides   `x: int = 1` and annotations   they are dropped, never evaluated
                      `self.n += 1`, `a[i] += 1`     where base and index are plain names or constants, so that
                                                     nothing is evaluated twice; each half passes its own guard
                      `print(...)`                   a function of ours that writes to the worker's log
    refused besides   base classes, class decorators no method of a library is inherited, none of ours overridden
                      special methods but `__init__` no operator of ours meets a method of theirs
                      `global`                       a worker serves many jobs
                      `.format`, `.format_map`       they read attributes behind the guard (CVE-2023-41039)
                      template strings               nothing here renders them
                      modules and names not listed   `import torch` alone brings `torch.os.popen`
    refused twice     names that begin with `_`      by RestrictedPython, and by `_hidden_names` below, which knows
                                                     no syntax: CVE-2026-55830 was a kind of argument not visited

It is no boundary. Code that passes gets no right that the sandbox would not give to any code, and every guard may be
assumed broken (SECURITY.md).
"""

from __future__ import annotations

import ast
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

from RestrictedPython.transformer import IOPERATOR_TO_STR, RestrictingNodeTransformer, copy_locations

MAX_SOURCE_BYTES = 256 << 10
MAX_NODES = 50_000
MAX_BREACHES = 20


def names(text: str) -> frozenset[str]:
    """Return the words of a table that is easier to read as one text."""
    return frozenset(text.split())


# Module -> the names that code may take from it. The worker makes objects of these, and of nothing else.
MODULES: Mapping[str, frozenset[str]] = {
    "math": names(
        "acos asin atan atan2 ceil comb copysign cos cosh degrees dist e exp fabs floor fmod fsum gcd hypot inf"
        " isclose isfinite isinf isnan lcm log log10 log2 nan pi pow prod radians sin sinh sqrt tan tanh tau trunc"
    ),
    "typing": names("Any Callable Dict Iterable Iterator List Mapping Optional Sequence Tuple Union"),
    "torch": names(
        "Generator Tensor abs acos all allclose any arange argmax argmin asin atan2 bfloat16 bmm bool cat ceil"
        " chunk clamp clone concat cos cosh cross cumprod cumsum diff dot einsum empty_like equal erf exp eye"
        " flatten flip float float16 float32 float64 floor fmod frac full full_like gather half inference_mode"
        " int int32 int64 isfinite isinf isnan lerp linspace log log10 log2 logspace long matmul max maximum mean"
        " median meshgrid min minimum movedim mul nan_to_num nn no_grad norm ones ones_like outer permute pow prod"
        " quantile rand rand_like randint randn randn_like randperm reciprocal repeat_interleave reshape roll"
        " rot90 round rsqrt sigmoid sign sin sinh softmax sort split sqrt square squeeze stack std sum tan tanh"
        " tensor tile topk transpose tril triu trunc uint8 unbind unsqueeze var where zeros zeros_like"
    ),
    "torch.nn": frozenset({"functional"}),
    "torch.nn.functional": names(
        "adaptive_avg_pool2d adaptive_avg_pool3d avg_pool2d avg_pool3d conv2d conv3d cosine_similarity gelu"
        " grid_sample interpolate l1_loss leaky_relu max_pool2d max_pool3d mse_loss normalize pad pixel_shuffle"
        " pixel_unshuffle relu sigmoid silu softmax softplus tanh unfold"
    ),
}

_FORMATTING = ("format", "format_map")


@dataclasses.dataclass(frozen=True, order=True)
class Breach:
    """One place where a source leaves the subset. Its text quotes the source: clean it before showing it."""

    line: int
    what: str


@dataclasses.dataclass(frozen=True)
class Restricted:
    """A source as the subset's rules rewrote it. `tree` may be compiled only where there are no breaches.

    `siblings` are the names of the repository's modules that it imports, with the line of each.
    """

    tree: ast.Module | None
    breaches: tuple[Breach, ...]
    siblings: Mapping[str, int]


def restrict(raw: bytes) -> Restricted:
    """Read one file. Never raises and runs nothing; work and memory follow from the bounds above."""
    if len(raw) > MAX_SOURCE_BYTES:
        return _refused(0, f"{len(raw):,} bytes; {MAX_SOURCE_BYTES:,} is the most")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d"
            tree = ast.parse(raw.decode("utf-8-sig"))
        nodes = sum(1 for _ in ast.walk(tree))
        if nodes > MAX_NODES:
            return _refused(0, f"{nodes:,} parts; {MAX_NODES:,} is the most")
        rules = _Rules()
        rules.breaches += _hidden_names(tree)  # before the rules add names of their own
        restricted = cast(ast.Module, rules.visit(tree))
    except UnicodeDecodeError as error:
        return _refused(0, f"it is not UTF-8 (byte {error.start:,})")
    except SyntaxError as error:
        return _refused(error.lineno or 0, error.msg)
    except ValueError as error:
        return _refused(0, str(error))
    except (RecursionError, MemoryError):
        return _refused(0, "it is nested deeper than Python's own parser goes")
    breaches = sorted(set(rules.breaches))
    return Restricted(restricted if not breaches else None, tuple(breaches[:MAX_BREACHES]), rules.siblings)


def _refused(line: int, what: str) -> Restricted:
    return Restricted(None, (Breach(line, what),), {})


def _hidden_names(tree: ast.Module) -> Iterator[Breach]:
    """Yield every identifier that begins with `_`, in whatever field of whatever node: the guards have such names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) or (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            continue
        for _, value in ast.iter_fields(node):
            for text in value if isinstance(value, list) else [value]:
                if not isinstance(text, str) or text == "_" or not any(p.startswith("_") for p in text.split(".")):
                    continue
                if isinstance(node, ast.FunctionDef) and text == "__init__":
                    continue
                yield Breach(getattr(node, "lineno", 0), f"the name {text!r} begins with an underscore")


class _Rules(RestrictingNodeTransformer):
    """RestrictedPython's rules with the decisions in the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.breaches: list[Breach] = []
        self.siblings: dict[str, int] = {}

    def error(self, node: ast.AST, info: str) -> None:
        self.breaches.append(Breach(getattr(node, "lineno", 0), info.rstrip(".")))

    # -- allowed besides

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return self.visit(ast.copy_location(ast.Assign(targets=[node.target], value=node.value), node))

    def visit_arg(self, node: ast.arg) -> Any:
        self.check_name(node, node.arg)
        node.annotation = None
        return super().visit_arg(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.returns = None
        return super().visit_FunctionDef(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        target = node.target
        if isinstance(target, ast.Name) or not _is_plain(target):
            return super().visit_AugAssign(node)
        # Each of the three parts is rewritten by its own rule; the operator is a function of ours.
        read = self.visit(ast.copy_location(_loaded(target), target))
        written = self.visit(target)
        value = self.visit(node.value)
        operation = ast.Call(
            func=ast.Name("_inplacevar_", ast.Load()),
            args=[ast.Constant(IOPERATOR_TO_STR[type(node.op)]), read, value],
            keywords=[],
        )
        assigned = ast.Assign(targets=[written], value=operation)
        copy_locations(assigned, node)
        return assigned

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id == "print" and isinstance(node.ctx, ast.Load):
            return node  # RestrictedPython would collect what is printed in a variable
        if node.id == "printed":
            self.error(node, "the name 'printed' is reserved")
        return super().visit_Name(node)

    # -- refused besides

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        if node.bases or node.keywords:
            self.error(node, f"class {node.name} has a base class or arguments")
        if node.decorator_list:
            self.error(node, f"class {node.name} has a decorator")
        return super().visit_ClassDef(node)

    def visit_Global(self, node: ast.Global) -> Any:
        self.not_allowed(node)

    def visit_TemplateStr(self, node: ast.AST) -> Any:
        self.not_allowed(node)

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        if node.attr in _FORMATTING:
            self.error(node, f".{node.attr}() reads attributes unseen; use an f-string")
        return super().visit_Attribute(node)

    # -- imports

    def visit_Import(self, node: ast.Import) -> Any:
        for alias in node.names:
            if alias.name not in MODULES:
                self.error(node, f"import of {alias.name!r}: only {', '.join(MODULES)} can be")
        return super().visit_Import(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        names = [alias.name for alias in node.names]
        if node.module == "__future__" and not node.level:
            if names != ["annotations"]:
                self.error(node, f"from __future__ import {', '.join(names)}")
            return ast.copy_location(ast.Pass(), node)
        if node.level == 1 and node.module and "." not in node.module:
            self.siblings.setdefault(node.module, node.lineno)
        elif node.level or node.module is None:
            self.error(node, "relative imports are of the form `from .module import name`")
        elif node.module not in MODULES:
            self.error(node, f"import of {node.module!r}: only {', '.join(MODULES)} can be")
        else:
            for name in names:
                if name not in MODULES[node.module]:
                    self.error(node, f"import of {name!r} from {node.module!r}, where it is not among the named ones")
        return super().visit_ImportFrom(node)


def _loaded(target: ast.expr) -> ast.expr:
    if isinstance(target, ast.Attribute):
        return ast.Attribute(value=target.value, attr=target.attr, ctx=ast.Load())
    assert isinstance(target, ast.Subscript)
    return ast.Subscript(value=target.value, slice=target.slice, ctx=ast.Load())


def _is_plain(target: ast.expr) -> bool:
    """Return whether `target` can be evaluated twice with the same result and no effect."""
    if isinstance(target, ast.Attribute):
        return isinstance(target.value, ast.Name)
    if not isinstance(target, ast.Subscript) or not isinstance(target.value, ast.Name):
        return False
    index = target.slice.operand if isinstance(target.slice, ast.UnaryOp) else target.slice  # -1
    return isinstance(index, ast.Name | ast.Constant)
