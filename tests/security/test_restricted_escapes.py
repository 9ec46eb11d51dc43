"""Known ways out of RestrictedPython, and those that torch adds: each is refused when compiled or denied when run.

None of this is the boundary (tests/security/test_restricted_sandbox.py is about that). Each escape is also made in plain
Python, where it works: what is denied is the escape, not a mistake in its spelling.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.sandbox.harness import PROGRAMS, REPOSITORY
from wan_compat.protocol.restricted_policy import MAX_NODES, MAX_SOURCE_BYTES, MODULES, restrict


@dataclasses.dataclass(frozen=True)
class Escape:
    """`source` is the body of generate(pipe, request), `top` what stands before it. `plain`: plain Python runs it."""

    name: str
    source: str
    ends: str  # "refused" or "denied"
    because: str = ""
    top: str = ""
    plain: bool = True

    @property
    def code(self) -> str:
        top = textwrap.dedent(self.top).strip()
        body = textwrap.dedent(self.source).strip()
        return f"{top}\ndef generate(pipe, request):\n{textwrap.indent(body, '    ')}\n"

    def __str__(self) -> str:
        return self.name


R, D = "refused", "denied"
_T = "import torch"
_FRAME = "g = (g.gi_frame.f_back.f_back for x in [1])\nfor frame in g: return frame"

ESCAPES = (
    # -- CVE-2023-41039 (GHSA-xjw2-6jm9-rf67): attributes read by format strings; with string.Formatter, GHSA-h7ff-cfc9-wmmh
    Escape("format", "return '{0.__class__}'.format(request)", R, ".format()"),
    Escape("format_map", "return '{x.__class__}'.format_map({'x': request})", R, ".format_map()"),
    Escape("format-by-getattr", "return getattr('{0.__class__}', 'format')(request)", D, "'format'"),
    Escape("format-of-the-type", "return getattr(str, 'format')('{0.__class__}', request)", D, "'format'"),
    Escape("format-by-map", "return list(map(getattr(str, 'format_map'), ['{x}'], [{'x': 1}]))", D, "'format_map'"),
    Escape("string-formatter", "return string.Formatter().get_field('0.__class__', (1,), {})", R, "'string'", "import string"),
    # -- CVE-2023-37271 (GHSA-wqc8-x2pr-7jqh): frames of generators and coroutines
    Escape("generator-frame", _FRAME, R, "gi_frame"),
    Escape("generator-frame-by-getattr", "g = (x for x in [1])\nreturn getattr(g, 'gi_frame')", D, "gi_frame"),
    Escape("generator-code", "return getattr((x for x in [1]), 'gi_code')", D, "gi_code"),
    Escape("generator-throw", "g = (x for x in [1])\nreturn g.close", D, "'close'"),
    Escape("coroutine", "async def f(): pass\nreturn f", R, "AsyncFunctionDef"),
    Escape("frame-of-a-traceback", "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    return e.__traceback__.tb_frame", R, "__traceback__"),
    Escape("traceback-by-getattr", "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    return getattr(e, '__traceback__')", D, "__traceback__"),
    Escape("with_traceback", "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    return e.with_traceback", D, "with_traceback"),
    Escape("object-of-an-error", "try:\n    getattr(5, 'x')\nexcept AttributeError as e:\n    return e.obj", D, "'obj'"),
    # -- CVE-2025-22153 (GHSA-gmj9-h825-chq2): except* and its type confusion
    Escape("except-star", "try:\n    raise ValueError(1)\nexcept* ValueError as e:\n    pass\nreturn 1", R, "TryStar"),
    Escape("exception-group", "return ExceptionGroup('x', [ValueError(1)])", D, "ExceptionGroup"),
    # -- CVE-2026-55830: guards shadowed by positional-only arguments
    Escape("positional-only", "def f(_getattr_, /):\n    return request.prompt\nreturn f(lambda o, n: o)", R, "_getattr_"),
    Escape("positional-only-lambda", "return (lambda _getattr_, /: 1)(1)", R, "_getattr_"),
    # -- other places where a name of a guard could be bound
    Escape("argument", "def f(_write_): return 1\nreturn f(1)", R, "_write_"),
    Escape("keyword-only", "def f(*, _write_=1): return 1\nreturn f()", R, "_write_"),
    Escape("star-arguments", "def f(*_write_, **_apply_): return 1\nreturn f()", R, "_write_"),
    Escape("loop", "for _getiter_ in [1]: pass\nreturn 1", R, "_getiter_"),
    Escape("comprehension", "return [_getiter_ for _getiter_ in [1]]", R, "_getiter_"),
    Escape("walrus", "return (_getattr_ := 1)", R, "_getattr_"),
    Escape("walrus-in-comprehension", "return [(_getattr_ := x) for x in [1]]", R, "_getattr_"),
    Escape("except-name", "try:\n    1 / 0\nexcept ZeroDivisionError as _getattr_:\n    return 1", R, "_getattr_"),
    Escape("with-name", "with torch.no_grad() as _getattr_:\n    return 1", R, "_getattr_", _T),
    Escape("unpacking", "a, (_getattr_, c) = 1, (2, 3)\nreturn a", R, "_getattr_"),
    Escape("import-name", "return 1", R, "_getattr_", "import math as _getattr_"),
    Escape("from-import-name", "return 1", R, "_getattr_", "from math import sqrt as _getattr_"),
    Escape("function-name", "def _getattr_(a, b): return 1\nreturn 1", R, "_getattr_"),
    Escape("class-name", "class _getattr_: pass\nreturn 1", R, "_getattr_"),
    Escape("global-statement", "global _getattr_\nreturn 1", R, "Global"),
    Escape("match-capture", "match 1:\n    case _getattr_:\n        return 1", R, "Match"),
    Escape("match-class", "match request:\n    case object(__class__=c):\n        return c", R, "Match"),
    Escape("del-guard", "del _getattr_\nreturn 1", R, "_getattr_", plain=False),
    Escape("builtins-name", "return __builtins__", R, "__builtins__"),
    Escape("keyword-argument", "return dict(__class__=1)", R, "__class__"),
    # -- attributes: classes, code, modules
    Escape("dunder", "return request.__class__.__mro__", R, "__class__"),
    Escape("dunder-by-getattr", "return getattr(request, '__class__')", D, "__class__"),
    Escape("dunder-joined", "return getattr(request, '_' + '_class_' + '_')", D, "__class__"),
    Escape("dunder-in-f-string", "return f'{request.__class__}'", R, "__class__"),
    Escape("dunder-of-fullwidth-letters", "return request.__ｃlass__", R, "__class__"),
    Escape("name-that-is-no-text", "class N:\n    n = 1\nreturn getattr(request, N())", D, "cannot name", plain=False),
    Escape("globals-of-a-function", "def f(): pass\nreturn getattr(f, '__globals__')", D, "__globals__"),
    Escape("self-of-a-builtin", "return getattr(len, '__self__')", D, "__self__"),
    Escape("function-of-a-method", "return pipe.decode.__func__", R, "__func__"),
    Escape("type-with-one-argument", "return type(request)", D, "'type'"),
    Escape("mro-of-a-class", "class A: pass\nreturn A.mro()", D, "'mro'"),
    Escape("subclasses", "return list(getattr(Exception, '__subclasses__')())", D, "__subclasses__"),
    Escape("what-the-handle-holds", "return pipe._model is None", R, "_model"),
    Escape("what-the-handle-holds-by-getattr", "return getattr(pipe, '_model') is None", D, "_model"),
    Escape("members-of-a-proxy", "return getattr(torch, '__dict__')", D, "__dict__", _T),
    # -- classes
    Escape("metaclass", "class A(metaclass=type): pass\nreturn A", R, "class A has a base"),
    Escape("base-class", "class A(torch.Tensor): pass\nreturn A", R, "class A has a base", _T),
    Escape("torch-function", "class A:\n    def __torch_function__(self): pass\nreturn A", R, "__torch_function__"),
    Escape("operator-of-its-own", "class A:\n    def __eq__(self, other): return True\nreturn A() == 1", R, "__eq__"),
    Escape("class-decorator", "@print\nclass A: pass\nreturn 1", R, "class A has a decorator"),
    Escape("class-body-name", "class A:\n    __getattr__ = print\nreturn A", R, "__getattr__"),
    Escape("class-through-type", "return type('A', (), {})", D, "'type'"),
    Escape("super", "class A:\n    def __init__(self): self.s = super()\nreturn A().s", D, "'super'"),
    Escape("decorator-that-reaches", "@request.__class__\ndef f(): pass\nreturn f", R, "__class__", plain=False),
    # -- imports
    Escape("import-os", "return os.popen('true')", R, "'os'", "import os"),
    Escape("import-star", "return 1", R, '"*" imports', "from math import *"),
    Escape("import-submodule", "return torch.hub", R, "'torch.hub'", "import torch.hub"),
    Escape("import-submodule-as", "return h", R, "'torch.hub'", "import torch.hub as h"),
    Escape("from-torch-import", "return hub", R, "'hub'", "from torch import hub"),
    Escape("import-by-builtin", "return __import__('os')", R, "__import__"),
    Escape("import-from-nowhere", "return 1", R, "relative imports", "from . import secrets", plain=False),
    Escape("import-from-above", "return 1", R, "relative imports", "from ..x import y", plain=False),
    Escape("import-in-a-string", "return eval('__import__(\"os\")')", R, "Eval"),
    Escape("exec", "exec('import os')\nreturn 1", R, "Exec"),
    Escape("exec-by-another-name", "e = compile\nreturn e('1', '', 'eval')", D, "'compile'"),
    Escape("importlib", "return importlib.import_module('os')", R, "'importlib'", "import importlib"),
    Escape("operator-module", "return operator.attrgetter('__class__')(request)", R, "'operator'", "import operator"),
    Escape("functools-module", "return functools.reduce(getattr, ['__class__'], request)", R, "'functools'", "import functools"),
    Escape("sys-modules", "return sys.modules", R, "'sys'", "import sys"),
    # -- builtins
    Escape("open", "return open('/etc/hostname').read()", D, "'open'"),
    Escape("vars", "return vars(request)", D, "'vars'", plain=False),
    Escape("globals", "return globals()", D, "'globals'"),
    Escape("setattr", "class A: pass\na = A()\nsetattr(a, '__class__', A)\nreturn 1", D, "'setattr'"),
    Escape("print-to-a-file", "print('x', file=open('/dev/null', 'w'))\nreturn 1", D, "'open'"),
    Escape("print-to-an-object", "class A:\n    def write(self, x): self.x = x\na = A()\nprint('x', file=a)\nreturn a.x", D, "'file'"),
    Escape("memoryview", "return memoryview(b'x').obj", D, "'memoryview'"),
    # -- torch: functions that are there for others
    Escape("torch-os", "return torch.os.popen('true')", D, "torch has no 'os'", _T),
    Escape("torch-sys", "return torch.sys.modules", D, "torch has no 'sys'", _T),
    Escape("torch-load", "return torch.load", D, "'load'", _T),
    Escape("torch-save", "return torch.save", D, "'save'", _T),
    Escape("torch-jit", "return torch.jit.load", D, "'jit'", _T),
    Escape("torch-ops", "return torch.ops.load_library", D, "'ops'", _T),
    Escape("torch-classes", "return torch.classes.load_library", D, "'classes'", _T),
    Escape("torch-hub", "return torch.hub.load", D, "'hub'", _T),
    Escape("torch-compile", "return torch.compile(lambda x: x)", D, "'compile'", _T),
    Escape("torch-utils", "return torch.utils.data", D, "'utils'", _T + "\nimport math"),
    Escape("torch-from-file", "return torch.from_file", D, "'from_file'", _T),
    Escape("torch-c", "return torch._C", R, "_C", _T),
    Escape("torch-nn-module", "return torch.nn.Module", D, "'Module'", _T),
    Escape("torch-functional-torch", "return F.torch", D, "'torch'", "import torch.nn.functional as F"),
    Escape("torch-functional-warnings", "return F.warnings.sys", D, "'warnings'", "import torch.nn.functional as F"),
    Escape("globals-of-a-proxied-function", "return getattr(F.interpolate, '__globals__')", D, "__globals__", "import torch.nn.functional as F"),
    Escape("wrapped-by-a-decorator", "@torch.no_grad()\ndef f(): pass\nreturn f.__wrapped__", R, "__wrapped__", _T),
    Escape("attribute-of-a-type", "return torch.Tensor.numpy", D, "'numpy'", _T),
    Escape("patching-a-proxy", "torch.ones = 1\nreturn 1", D, "cannot be changed", _T, plain=False),
    Escape("patching-a-type", "torch.Tensor.numpy = 1\nreturn 1", D, "cannot be changed", _T, plain=False),
    # -- tensors
    Escape("tensor-numpy", "return torch.ones(1).numpy().base", D, "'numpy'", _T),
    Escape("tensor-storage", "return torch.ones(1).untyped_storage", D, "'untyped_storage'", _T),
    Escape("tensor-pointer", "return torch.ones(1).data_ptr()", D, "'data_ptr'", _T),
    Escape("tensor-data", "return torch.ones(1).data", D, "'data'", _T),
    Escape("tensor-set-data", "t = torch.ones(1)\nt.data = torch.zeros(1)\nreturn t", D, "cannot be set", _T),
    Escape("tensor-apply", "return torch.ones(1).apply_(lambda x: x)", D, "'apply_'", _T),
    Escape("tensor-map", "return torch.ones(1).map_(torch.ones(1), lambda x, y: x)", D, "'map_'", _T),
    Escape("tensor-hook", "t = torch.ones(1, requires_grad=True)\nreturn t.register_hook(print)", D, "'register_hook'", _T),
    Escape("tensor-grad-function", "return (torch.ones(1, requires_grad=True) * 2).grad_fn", D, "'grad_fn'", _T),
    Escape("tensor-backward", "return torch.ones(1, requires_grad=True).sum().backward", D, "'backward'", _T),
    Escape("tensor-as-subclass", "return torch.ones(1).as_subclass(torch.Tensor)", D, "'as_subclass'", _T),
    Escape("tensor-as-strided", "return torch.ones(4).as_strided((2,), (1,))", D, "'as_strided'", _T),
    Escape("tensor-resize", "return torch.ones(1).resize_(4)", D, "'resize_'", _T),
    Escape("tensor-set", "return torch.ones(1).set_()", D, "'set_'", _T),
    Escape("tensor-share", "return torch.ones(1).share_memory_()", D, "'share_memory_'", _T),
    Escape("tensor-type", "return torch.ones(1).type('torch.DoubleTensor')", D, "'type'", _T),
    Escape("tensor-reduce", "return torch.ones(1).__reduce_ex__(2)", R, "__reduce_ex__", _T),
    Escape("generator-state", "return torch.Generator().set_state", D, "'set_state'", _T),
)  # fmt: skip


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, str]]:
    program = [sys.executable, str(PROGRAMS / "restricted_snippets.py")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    order = json.dumps([(escape.name, escape.code, escape.plain) for escape in ESCAPES] + [("allowed", ALLOWED, True)])
    ran = subprocess.run(program, input=order, env=environment, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found: dict[str, dict[str, str]] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize("escape", ESCAPES, ids=str)
def test_escape_is_refused_or_denied(escape: Escape, outcomes: dict[str, dict[str, str]]) -> None:
    outcome = outcomes[escape.name]["guarded"]
    assert outcome.startswith(f"{escape.ends}: ") and escape.because in outcome


@pytest.mark.parametrize("escape", [escape for escape in ESCAPES if escape.plain], ids=str)
def test_escape_works_in_plain_python(escape: Escape, outcomes: dict[str, dict[str, str]]) -> None:
    assert outcomes[escape.name]["plain"].startswith("gained: ")


def test_names_of_escapes_are_unique() -> None:
    assert len({escape.name for escape in ESCAPES}) == len(ESCAPES)


# What pipelines are made of, each construct at least once: a policy that denies everything would pass the tests above.
ALLOWED = """
from __future__ import annotations
import math
import torch
import torch.nn.functional as F
from typing import Optional
from torch import Tensor

STEPS: int = 3


class Fade:
    strength: float = 0.5

    def __init__(self, length: int) -> None:
        self.length = length
        self.calls = 0

    def weight(self, index: int) -> float:
        self.calls += 1
        return self.strength * math.sin(index / self.length)


def words(*parts: str, join: str = " ", **options) -> str:
    return join.join(parts) + "".join(f" {key}={value!r:>5}" for key, value in sorted(options.items()))


@torch.no_grad()
def soften(x: Tensor, size: Optional[int] = None) -> Tensor:
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), size or 3, stride=1)


def frames(count):
    for index in range(count):
        yield torch.full((3, 4, 4), index / count)


def generate(pipe, request):
    fade = Fade(STEPS)
    prompt = words(request.prompt, "at dusk", **{"seed": request.seed})
    made = [frame * fade.weight(index) for index, frame in enumerate(frames(5))]
    made[0] += 0.25
    made[-1] *= 2
    made[1][0, :2] = 1.0
    total = 0.0
    while total < 1:
        total += 0.5
    values, places = torch.stack(made).flatten(1).max(dim=0)
    best = torch.max(torch.stack(made), dim=0).values
    soft = soften(torch.stack(made))
    try:
        [][0]
    except IndexError as error:
        reason = str(error)
    (a, (b, *rest)), table = (1, (2, 3, 4)), {"x": [1, 2], "y": []}
    table["x"].append(a + b + len(rest))
    if (n := len(table["x"])) == 3 and hasattr(soft, "shape") and not hasattr(soft, "nothing"):
        pairs = {key: value for key, value in zip("ab", map(lambda v: v * 2, sorted([3, 1])))}
    with torch.no_grad():
        soft = torch.lerp(soft, torch.stack(made), 0.5)
    print(prompt, reason, pairs, "%d of %s" % (n, tuple(best.shape)))
    return fade.calls, prompt, tuple(soft.shape), pairs, total
"""


def test_ordinary_code_runs_as_in_plain_python(outcomes: dict[str, dict[str, str]]) -> None:
    assert outcomes["allowed"]["guarded"].startswith("gained: (5, 'a fox at dusk seed=")
    assert outcomes["allowed"]["guarded"] == outcomes["allowed"]["plain"]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (b"#" * (MAX_SOURCE_BYTES + 1), "bytes"),
        (b"x = [" + b"1," * MAX_NODES + b"]", "parts"),
        (b"(" * 5000, "nested"),
        (b"x = " + b"-" * 50_000 + b"1", "nested"),
        (b"x = " + b".".join([b"a"] * 20_000), "nested"),
        (b"\xff\xfe", "UTF-8"),
        (b"x = 1\0", "null"),
        (b"def f(:\n", "invalid syntax"),
    ],
    ids=["long", "many-parts", "parentheses", "signs", "dots", "no-text", "zero", "no-python"],
)
def test_source_beyond_any_pipeline_is_refused_in_bounded_time(source: bytes, why: str) -> None:
    found = restrict(source)
    assert found.tree is None and why in found.breaches[0].what


def test_breaches_tell_the_line_and_the_construct() -> None:
    found = restrict(b"import math\n\n\ndef f():\n    global x\n    return math.__loader__\n")
    assert [breach.line for breach in found.breaches] == [5, 6, 6]
    assert "Global" in found.breaches[0].what and "__loader__" in found.breaches[1].what


def test_no_module_of_the_table_has_a_name_that_reaches_files_processes_or_code() -> None:
    named = frozenset().union(*MODULES.values())
    forbidden = "load save compile jit ops hub os sys utils package export fx library classes serialization storage"
    assert not named & frozenset(forbidden.split())
    assert set(MODULES) == {"math", "typing", "torch", "torch.nn", "torch.nn.functional"}
