"""What a pickle would import and call, read from its opcodes, without loading anything.

A symbolic machine with the unpickler's stack and memo, which knows strings, names, and "something" for the rest. It
follows CPython's C unpickler where the two of the standard library differ, and reports what it saw up to the first
opcode that no reader gets over: by then, that has run.

    opcodes           https://github.com/python/cpython/blob/main/Lib/pickletools.py
    torch's own list  torch/_weights_only_unpickler.py

Every byte is looked at a bounded number of times, and all counts are limited: `problems` says when a limit ended it.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator
from typing import Any

from wan_compat.policies.scan.rules import Observation

MAX_OPCODES = 2_000_000
MAX_STACK = 500_000
MAX_PICKLES = 64  # of one stream; torch's old format has five
TRIAL_OPCODES = 20_000  # to find out whether something is a pickle at all
MAX_NESTING = 3
MAX_NAMED = 200  # different names that are kept
MAX_NAME_CHARS = 1000


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What torch.save and numpy's arrays name. Exact pairs: `torch` with the name `os.system` is another pair.
_EXPECTED_NAMES = {
    "torch": _words(
        """
        DoubleStorage FloatStorage HalfStorage LongStorage IntStorage ShortStorage CharStorage ByteStorage BoolStorage
        BFloat16Storage ComplexDoubleStorage ComplexFloatStorage QUInt8Storage QInt8Storage QInt32Storage UntypedStorage
        float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool complex64 complex128
        half float double long int short quint8 qint8 qint32 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz
        Size device Tensor strided sparse_coo per_tensor_affine per_channel_affine
        """
    ),
    "torch._utils": _words(
        """
        _rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state
        _rebuild_qtensor _rebuild_sparse_tensor _rebuild_meta_tensor_no_storage _rebuild_nested_tensor
        """
    ),
    "torch.storage": _words("UntypedStorage TypedStorage"),
    "torch.nn.parameter": _words("Parameter"),
    "torch.serialization": _words("_get_layout"),
    "collections": _words("OrderedDict"),
    "_codecs": _words("encode"),
    "builtins": _words("set bytearray"),
    "__builtin__": _words("set bytearray"),
    "numpy": _words("dtype ndarray"),
    "numpy.core.multiarray": _words("_reconstruct scalar"),
    "numpy._core.multiarray": _words("_reconstruct scalar"),
}

# Modules whose only use in a pickle is to run something. Naming them makes the message plain; what is in neither list
# is refused just the same.
_DANGEROUS_MODULES = _words(
    """
    os posix nt ntpath posixpath subprocess _posixsubprocess sys shutil socket _socket pty commands runpy importlib imp
    ctypes _ctypes cffi code codeop types marshal pickle _pickle dill cloudpickle joblib builtins __builtin__ operator
    _operator functools _functools webbrowser pip urllib urllib2 http requests httpx aiohttp asyncio multiprocessing
    threading _thread signal timeit cProfile profile pdb bdb trace doctest test unittest distutils setuptools ensurepip
    venv zipimport pkgutil site sysconfig tempfile pathlib io _io linecache platform idlelib lib2to3 tkinter smtplib
    ftplib telnetlib xmlrpc sqlite3 uuid pydoc inspect atexit gc ast symtable nturl2path
    numpy.testing torch.hub torch.utils torch.jit torch.distributed torch._inductor torch.fx torch._dynamo
    """
)

_NAME = re.compile(r"[^\W\d]\w*(?:\.(?:[^\W\d]\w*|<locals>))*")


@dataclasses.dataclass(frozen=True)
class Name:
    """Something imported: `module.name`, at a byte position. `called` once an opcode calls it."""

    module: str
    name: str
    position: int

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def is_expected(self) -> bool:
        return self.name in _EXPECTED_NAMES.get(self.module, ())

    @property
    def is_dangerous(self) -> bool:
        parts = self.module.split(".")
        return any(".".join(parts[:end]) in _DANGEROUS_MODULES for end in range(1, len(parts) + 1))


@dataclasses.dataclass(frozen=True)
class PickleReport:
    """What was read of one pickle.

    Args:
        names: What it imports, in order, each pair once.
        calls: Opcodes that call something (REDUCE, INST, OBJ, NEWOBJ, BUILD).
        call_text: The first calls with their texts, as `os.system('id')`.
        problems: Rule and words for everything that is odd, beside the names.
        end: Position after STOP, or where reading ended.
        stopped: STOP was reached with one value on the stack.
    """

    protocol: int
    names: tuple[Name, ...]
    calls: int
    call_text: tuple[str, ...]
    opcodes: int
    end: int
    stopped: bool
    problems: tuple[Observation, ...] = ()

    @property
    def acts(self) -> bool:
        """Whether it imports or calls anything before its end."""
        return bool(self.names) or self.calls > 0 or any(item.rule == "pickle-extension" for item in self.problems)


class _Mark:
    pass


_MARK = _Mark()
_SOMETHING = object()


class _Broken(Exception):
    """No reader gets over this opcode."""


class _Limit(Exception):
    """Too much to go on."""


def walk(data: bytes, start: int = 0, *, nesting: int = 0, max_opcodes: int = MAX_OPCODES) -> PickleReport:
    """Read one pickle at `start`. Never raises, always ends.

    Args:
        data: The stream, or as much as the caller is willing to read; a pickle that is cut shows as malformed.
        nesting: Depth of pickles within strings of pickles.
    """
    machine = _Machine(data, start, nesting, max_opcodes)
    problems = machine.problems
    stopped = False
    try:
        machine.run()
        stopped = True
    except _Broken as error:
        problems.append(Observation("pickle-malformed", f"byte {machine.position}: {error}"))
    except _Limit as error:
        problems.append(Observation("pickle-limit", f"byte {machine.position}: {error}"))
    return PickleReport(
        protocol=machine.protocol,
        names=tuple(machine.names.values()),
        calls=machine.calls,
        call_text=tuple(machine.call_text),
        opcodes=machine.opcodes,
        end=machine.position,
        stopped=stopped,
        problems=tuple(problems),
    )


def walk_stream(
    data: bytes, start: int = 0, *, limit: int = MAX_PICKLES, max_opcodes: int = MAX_OPCODES
) -> tuple[list[PickleReport], int]:
    """Read pickles one after the other, as long as one follows the other; return them and the position after the last.

    A stream ends at its first byte that is not the start of a pickle with a protocol of its own.
    """
    found = [walk(data, start, max_opcodes=max_opcodes)]
    budget = max_opcodes - found[0].opcodes
    while found[-1].stopped and len(found) < limit and budget > 0 and _begins(data, found[-1].end):
        found.append(walk(data, found[-1].end, max_opcodes=budget))
        budget -= found[-1].opcodes
    return found, found[-1].end


def is_pickle(data: bytes) -> bool:
    """Whether data without a mark of its own is a pickle."""
    return bool(data) and reads_as_pickle(walk(data, max_opcodes=TRIAL_OPCODES), len(data))


def reads_as_pickle(report: PickleReport, size: int) -> bool:
    """Whether a trial walk shows a pickle: data that do something as one, or are one from start to end."""
    plausible = all(_NAME.fullmatch(item.module) for item in report.names)
    if report.acts and report.calls and plausible:
        return True
    if not report.stopped:
        return False
    # A text such as `N.` reads as a pickle of nothing; without an import only a whole file that is one counts.
    return plausible if report.names else report.end == size and report.opcodes > 3


def observations(reports: list[PickleReport]) -> Iterator[Observation]:
    """Yield what is to be said of pickles that were read: names first, then what else is odd."""
    seen: set[tuple[str, str]] = set()
    for report in reports:
        for name in report.names:
            pair = (name.module, name.name)
            if name.is_expected or pair in seen:
                continue
            seen.add(pair)
            call = next((text for text in report.call_text if text.startswith(f"{name}(")), "")
            words = f"imports {name} at byte {name.position}" + (f" and calls {call}" if call else "")
            yield Observation("pickle-dangerous-global" if name.is_dangerous else "pickle-unexpected-global", words)
        yield from report.problems


def _begins(data: bytes, position: int) -> bool:
    return data[position : position + 1] == b"\x80" and data[position + 1 : position + 2] <= b"\x05"


class _Machine:
    """The unpickler's stack and memo, symbolically. Values are str, bytes, Name, tuple of values, or _SOMETHING."""

    def __init__(self, data: bytes, start: int, nesting: int, max_opcodes: int) -> None:
        self.data = data
        self.position = start
        self.nesting = nesting
        self.max_opcodes = max_opcodes
        self.protocol = 0
        self.opcodes = 0
        self.calls = 0
        self.call_text: list[str] = []
        self.names: dict[tuple[str, str], Name] = {}
        self.problems: list[Observation] = []
        self.stack: list[Any] = []
        self.marks = 0
        self.memo: dict[int, Any] = {}

    def run(self) -> None:
        data, end = self.data, len(self.data)
        while True:
            if self.position >= end:
                raise _Broken("it ends without STOP")
            if self.opcodes >= self.max_opcodes:
                raise _Limit(f"more than {self.max_opcodes:,} opcodes")
            opcode = data[self.position]
            at = self.position
            self.position += 1
            self.opcodes += 1
            if opcode == _STOP:
                if not self.stack or self.stack[-1] is _MARK:
                    raise _Broken("STOP with nothing on the stack")
                return
            act = _ACTS.get(opcode)
            if act is None:
                self.position = at
                raise _Broken(f"no opcode is 0x{opcode:02x}")
            act(self, at)
            if len(self.stack) > MAX_STACK or len(self.memo) > MAX_STACK:
                raise _Limit(f"more than {MAX_STACK:,} values at once")

    # -- bytes

    def take(self, count: int) -> bytes:
        if count < 0 or self.position + count > len(self.data):
            raise _Broken(f"an argument of {count:,} bytes goes beyond the end")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise _Broken("a line without an end")
        found = self.data[self.position : end]
        self.position = end + 1
        return found

    # -- stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Broken("too little on the stack")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        found: list[Any] = []
        if not self.marks:
            raise _Broken("no MARK on the stack")
        while (value := self.stack.pop()) is not _MARK:
            found.append(value)
        self.marks -= 1
        found.reverse()
        return found

    # -- meaning

    def name(self, module: str, name: str, at: int) -> Name:
        found = Name(module[:MAX_NAME_CHARS], name[:MAX_NAME_CHARS], at)
        pair = (found.module, found.name)
        if pair not in self.names:
            if len(self.names) >= MAX_NAMED:
                raise _Limit(f"more than {MAX_NAMED} different imports")
            self.names[pair] = found
        return found

    def call(self, what: Any, arguments: Any) -> None:
        self.calls += 1
        if isinstance(what, Name) and not what.is_expected and len(self.call_text) < MAX_NAMED:
            inside = arguments if isinstance(arguments, tuple) else ("…",)
            words = ", ".join(repr(item[:200]) if isinstance(item, str | bytes) else _word(item) for item in inside[:8])
            self.call_text.append(f"{what}({words})")

    def text(self, value: str | bytes) -> None:
        """Push a string, and look whether it is a pickle itself."""
        self.push(value)
        raw = value.encode("latin-1", "ignore") if isinstance(value, str) else value
        if len(raw) < 4 or not (_begins(raw, 0) or raw[:1] == b"c"):
            return
        if self.nesting >= MAX_NESTING:
            raise _Limit(f"pickles within pickles, more than {MAX_NESTING} deep")
        left = self.max_opcodes - self.opcodes
        inner = walk(raw, nesting=self.nesting + 1, max_opcodes=left)
        self.opcodes += inner.opcodes
        if inner.acts and all(_NAME.fullmatch(item.module) for item in inner.names):
            shown = ", ".join(str(item) for item in inner.names[:5])
            self.problems.append(Observation("pickle-nested", f"a string at byte {self.position} is a pickle: {shown}"))


def _word(value: Any) -> str:
    return str(value) if isinstance(value, Name) else "…"


# -- the opcodes -------------------------------------------------------------------------------------------------------


def _decoded(raw: bytes, encoding: str, errors: str = "strict") -> str:
    try:
        return raw.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise _Broken(f"a string that is not {encoding}") from error


def _protocol(machine: _Machine, at: int) -> None:
    machine.protocol = machine.take(1)[0]
    if machine.protocol > 5:
        raise _Broken(f"protocol {machine.protocol}")


def _global(machine: _Machine, at: int) -> None:
    module, name = _decoded(machine.line(), "utf-8"), _decoded(machine.line(), "utf-8")
    machine.push(machine.name(module, name, at))


def _stack_global(machine: _Machine, at: int) -> None:
    name, module = machine.pop(), machine.pop()
    if isinstance(name, str) and isinstance(module, str):
        machine.push(machine.name(module, name, at))
        return
    if _SOMETHING not in (name, module) and not isinstance(name, Name) and not isinstance(module, Name):
        raise _Broken("STACK_GLOBAL without two strings")
    machine.problems.append(Observation("pickle-computed-global", f"an import at byte {at} takes its name from a call"))
    machine.push(_SOMETHING)


def _instance(machine: _Machine, at: int) -> None:
    module, name = _decoded(machine.line(), "ascii"), _decoded(machine.line(), "ascii")
    machine.call(machine.name(module, name, at), tuple(machine.pop_mark()))
    machine.push(_SOMETHING)


def _object(machine: _Machine, at: int) -> None:
    values = machine.pop_mark()
    if not values:
        raise _Broken("OBJ without a class")
    machine.call(values[0], tuple(values[1:]))
    machine.push(_SOMETHING)


def _reduce(machine: _Machine, at: int) -> None:
    arguments, what = machine.pop(), machine.pop()
    machine.call(what, arguments)
    machine.push(_SOMETHING)


def _new_object_ex(machine: _Machine, at: int) -> None:
    _, arguments, what = machine.pop(), machine.pop(), machine.pop()
    machine.call(what, arguments)
    machine.push(_SOMETHING)


def _build(machine: _Machine, at: int) -> None:
    machine.pop()
    if not machine.stack or machine.stack[-1] is _MARK:
        raise _Broken("BUILD of nothing")
    machine.calls += 1


def _extension(form: str) -> Any:
    def act(machine: _Machine, at: int) -> None:
        code = machine.number(form)
        machine.problems.append(Observation("pickle-extension", f"imports extension {code} at byte {at}"))
        machine.push(_SOMETHING)

    return act


def _constant(machine: _Machine, at: int) -> None:
    machine.push(_SOMETHING)


def _empty_tuple(machine: _Machine, at: int) -> None:
    machine.push(())


def _fixed(count: int) -> Any:
    def act(machine: _Machine, at: int) -> None:
        machine.take(count)
        machine.push(_SOMETHING)

    return act


def _counted(form: str) -> Any:
    def act(machine: _Machine, at: int) -> None:
        machine.take(machine.number(form))
        machine.push(_SOMETHING)

    return act


def _bytes(form: str) -> Any:
    def act(machine: _Machine, at: int) -> None:
        machine.text(machine.take(machine.number(form)))

    return act


def _string(form: str, encoding: str, errors: str) -> Any:
    def act(machine: _Machine, at: int) -> None:
        machine.text(_decoded(machine.take(machine.number(form)), encoding, errors))

    return act


def _number_line(machine: _Machine, at: int) -> None:
    line = machine.line()
    if len(line) > 4300 + 2 or not re.fullmatch(rb"\s*[-+0-9a-fA-FxXoOeEinyNIYL_.]+\s*\0?", line):
        raise _Broken("a number that is none")
    machine.push(_SOMETHING)


def _quoted_line(machine: _Machine, at: int) -> None:
    raw = machine.line().strip(b" \t\r\f\v")
    if len(raw) < 2 or raw[0] != raw[-1] or raw[:1] not in (b'"', b"'"):
        raise _Broken("STRING without quotes")
    inside = raw[1:-1]
    machine.text(_decoded(_ESCAPE.sub(_unescaped, inside), "latin-1"))


_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([0-7]{1,3})|(.)|$)", re.DOTALL)
_SIMPLE = dict(zip(b"abfnrtv\\'\"", b"\a\b\f\n\r\t\v\\'\"", strict=True))


def _unescaped(found: re.Match[bytes]) -> bytes:
    """One escape of a protocol 0 string, as `codecs.escape_decode` reads it."""
    if found[1]:
        return bytes([int(found[1], 16)])
    if found[2]:
        return bytes([int(found[2], 8) & 0xFF])
    if not found[3] or found[3] == b"x":
        raise _Broken("STRING with an escape that means nothing")
    simple = _SIMPLE.get(found[3][0])
    return b"\\" + found[3] if simple is None else bytes([simple])


def _unicode_line(machine: _Machine, at: int) -> None:
    machine.text(_decoded(machine.line(), "raw-unicode-escape"))


def _persistent_line(machine: _Machine, at: int) -> None:
    machine.line()
    machine.push(_SOMETHING)


def _persistent(machine: _Machine, at: int) -> None:
    machine.pop()
    machine.push(_SOMETHING)


def _frame(machine: _Machine, at: int) -> None:
    length = machine.number("<Q")
    if machine.position + length > len(machine.data):
        raise _Broken(f"a frame of {length:,} bytes goes beyond the end")


def _next_buffer(machine: _Machine, at: int) -> None:
    machine.push(_SOMETHING)


def _read_only(machine: _Machine, at: int) -> None:
    machine.push(machine.pop())


def _mark(machine: _Machine, at: int) -> None:
    machine.stack.append(_MARK)
    machine.marks += 1


def _pop(machine: _Machine, at: int) -> None:
    if machine.stack and machine.stack[-1] is _MARK:
        machine.pop_mark()
    else:
        machine.pop()


def _pop_to_mark(machine: _Machine, at: int) -> None:
    machine.pop_mark()


def _duplicate(machine: _Machine, at: int) -> None:
    value = machine.pop()
    machine.push(value)
    machine.push(value)


def _tuple(count: int) -> Any:
    def act(machine: _Machine, at: int) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.push(tuple(_flat(value) for value in reversed(values)))

    return act


def _tuple_from_mark(machine: _Machine, at: int) -> None:
    machine.push(tuple(_flat(value) for value in machine.pop_mark()[:16]))


def _flat(value: Any) -> Any:
    # Tuples of tuples are not needed for any message, and would let a pickle build a structure without a bound.
    return _SOMETHING if isinstance(value, tuple) else value


def _collect(machine: _Machine, at: int) -> None:
    """LIST, DICT, FROZENSET: everything above the mark becomes one value."""
    machine.pop_mark()
    machine.push(_SOMETHING)


def _into(machine: _Machine, at: int) -> None:
    """APPENDS, SETITEMS, ADDITEMS: everything above the mark goes into the value below it."""
    machine.pop_mark()
    machine.push(machine.pop())


def _append(machine: _Machine, at: int) -> None:
    machine.pop()
    machine.push(machine.pop())


def _set_item(machine: _Machine, at: int) -> None:
    machine.pop()
    machine.pop()
    machine.push(machine.pop())


def _put_line(machine: _Machine, at: int) -> None:
    _remember(machine, _index(machine.line()))


def _put(form: str) -> Any:
    def act(machine: _Machine, at: int) -> None:
        _remember(machine, machine.number(form))

    return act


def _memoize(machine: _Machine, at: int) -> None:
    _remember(machine, len(machine.memo))


def _remember(machine: _Machine, index: int) -> None:
    value = machine.pop()
    machine.push(value)
    machine.memo[index] = value


def _get_line(machine: _Machine, at: int) -> None:
    _recall(machine, _index(machine.line()))


def _get(form: str) -> Any:
    def act(machine: _Machine, at: int) -> None:
        _recall(machine, machine.number(form))

    return act


def _recall(machine: _Machine, index: int) -> None:
    if index not in machine.memo:
        raise _Broken(f"memo {index} was never written")
    machine.push(machine.memo[index])


def _index(line: bytes) -> int:
    if not re.fullmatch(rb"\s*\+?[0-9_]{1,20}\s*", line):
        raise _Broken("a memo index that is none")
    try:
        return int(line)
    except ValueError as error:
        raise _Broken("a memo index that is none") from error


_STOP = ord(".")
_OPCODES: dict[str | int, Any] = {
    0x80: _protocol, "c": _global, 0x93: _stack_global, "i": _instance, "o": _object, "R": _reduce,
    0x81: _reduce, 0x92: _new_object_ex, "b": _build,
    0x82: _extension("<B"), 0x83: _extension("<H"), 0x84: _extension("<i"),
    "N": _constant, 0x88: _constant, 0x89: _constant, "]": _constant, "}": _constant, 0x8F: _constant,
    ")": _empty_tuple, "K": _fixed(1), "M": _fixed(2), "J": _fixed(4), "G": _fixed(8),
    0x8A: _counted("<B"), 0x8B: _counted("<i"),
    "I": _number_line, "L": _number_line, "F": _number_line,
    "S": _quoted_line, "T": _string("<i", "latin-1", "strict"), "U": _string("<B", "latin-1", "strict"),
    "B": _bytes("<I"), "C": _bytes("<B"), 0x8E: _bytes("<Q"), 0x96: _bytes("<Q"),
    "V": _unicode_line, "X": _string("<I", "utf-8", "surrogatepass"),
    0x8C: _string("<B", "utf-8", "surrogatepass"), 0x8D: _string("<Q", "utf-8", "surrogatepass"),
    "P": _persistent_line, "Q": _persistent, 0x95: _frame, 0x97: _next_buffer, 0x98: _read_only,
    "(": _mark, "0": _pop, "1": _pop_to_mark, "2": _duplicate,
    0x85: _tuple(1), 0x86: _tuple(2), 0x87: _tuple(3), "t": _tuple_from_mark,
    "l": _collect, "d": _collect, 0x91: _collect, "e": _into, "u": _into, 0x90: _into,
    "a": _append, "s": _set_item,
    "p": _put_line, "q": _put("<B"), "r": _put("<I"), 0x94: _memoize,
    "g": _get_line, "h": _get("<B"), "j": _get("<I"),
}  # fmt: skip
_ACTS = {ord(key) if isinstance(key, str) else key: act for key, act in _OPCODES.items()}
