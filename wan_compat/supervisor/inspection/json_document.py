"""JSON as models have it, parsed within limits: size, depth, number of values, one meaning only.

What a library would read otherwise than we do (a key twice, half a character, numbers that lose digits) is refused.
What it would refuse or understand in its own way, but which has one meaning, is noted: a byte order mark, NaN.
"""

from __future__ import annotations

import codecs
import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from wan_compat.policies.facts import FileFact
from wan_compat.policies.findings import Finding, Severity, finding
from wan_compat.protocol.errors import clean_text
from wan_compat.supervisor.inspection.budget import Budget
from wan_compat.supervisor.inspection.opening import LFS_START, changed, lfs_pointer, opened, read_at
from wan_compat.supervisor.inspection.problems import Defect, as_error, problem, raise_first_error

MAX_JSON_BYTES = 2 << 20
MAX_JSON_DEPTH = 32
# Of one document, counted before anything is built: `[[],[],...` costs a byte of file per 30 bytes of memory.
MAX_JSON_VALUES = 60_000
# A character beyond U+FFFF makes Python keep four bytes for each one of a text.
MAX_WIDE_BYTES = 1 << 20

_NAMES = frozenset((
    "model_index.json", "modular_model_index.json", "modular_config.json", "config.json", "scheduler_config.json",
    "tokenizer_config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json",
    "configuration.json", "adapter_config.json", "guider_config.json",
))  # fmt: skip
# diffusers puts a variant (`fp16`) before the last suffix.
_SHARD_INDEX = re.compile(r".+\.safetensors\.index(\.[\w-]{1,40})?\.json", re.ASCII)

_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: one deeper, one less deep
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NOT_WIDE = bytes(range(0xF0))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A document, what is to be said about it, and about how many values it has."""

    document: dict[str, Any]
    notes: tuple[Finding, ...]
    values: int


def is_document(path: str) -> bool:
    """Say whether a file is a configuration that decisions use."""
    name = path.rpartition("/")[2]
    return name in _NAMES or _SHARD_INDEX.fullmatch(name) is not None


def read_document(fact: FileFact, budget: Budget) -> Decoded:
    """Read and parse one configuration.

    Raises:
        Defect: It cannot be used.
        Exhausted: The model's budget is spent.
    """
    if fact.size > MAX_JSON_BYTES:
        raise _too_large(fact.path, f"{fact.size} bytes, more than any configuration needs")
    budget.take("json_bytes", fact.size)
    with opened(fact) as descriptor:
        raw = read_at(descriptor, fact.size + 1, 0)
    if raw.startswith(LFS_START):
        raise lfs_pointer(fact.path, "configuration")
    if len(raw) != fact.size:
        raise changed(fact)
    decoded = decode(raw, fact.path)
    budget.take("json_values", decoded.values)
    return decoded


def parse_json(raw: bytes, name: str) -> Mapping[str, Any]:
    """Parse one JSON object strictly. Raises ModelCorrupt naming `name`."""
    try:
        if len(raw) > MAX_JSON_BYTES:
            raise _too_large(name, f"{len(raw)} bytes, more than any configuration needs")
        decoded = decode(raw, name)
    except Defect as defect:
        raise as_error(defect.finding) from defect
    raise_first_error(decoded.notes)
    return decoded.document


def decode(raw: bytes, path: str, max_values: int = MAX_JSON_VALUES) -> Decoded:
    """Parse one JSON object. Raises Defect."""
    notes: list[Finding] = []
    for mark, encoding in _BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            notes.append(problem("json_byte_order_mark", path, f"{path} starts with a byte order mark ({encoding})"))
            try:
                raw = raw.decode(encoding).encode()
            except UnicodeError as error:
                raise _corrupt(path, f"is not valid JSON: {error}") from error
            break
    values = _check_size(raw, path, max_values)
    constants: set[str] = set()

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            # Two readers may take different ones: what was checked must be what is loaded.
            raise Defect(problem("json_duplicate_key", path, f"{path} has the key {clean_text(twice, 80)!r} twice"))
        return found

    def integer(digits: str) -> int:
        # 64 bits, with or without a sign, is what the libraries' own readers keep.
        if len(digits) > 20 or not -(1 << 63) <= (value := int(digits)) < 1 << 64:
            raise Defect(problem("out_of_range", path, f"{path} has the number {clean_text(digits, 40)}"))
        return value

    def real(digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            constants.add("Infinity")
        return value

    def constant(name: str) -> float:
        constants.add(name)
        return float(name)

    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=pairs, parse_int=integer, parse_float=real, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"is not valid JSON: {clean_text(str(error), 200)}") from error
    if not isinstance(value, dict):
        message = f"{path} holds a {type(value).__name__}, not an object"
        raise Defect(problem("json_not_an_object", path, message))
    if _SURROGATE.search(raw) and _SURROGATE.search(_PAIR.sub(b"", raw.replace(rb"\\", b"  "))):
        # Half a character makes a Python string that can be neither printed nor sent.
        raise _corrupt(path, "holds half a character (\\uD800 to \\uDFFF)")
    if constants:
        # diffusers itself writes -Infinity (lambda_min_clipped of DPMSolverMultistepScheduler).
        severity = Severity.WARNING if "NaN" in constants else Severity.INFO
        message = f"{path} has {', '.join(sorted(constants))}, which only Python takes for JSON"
        notes.append(finding("json_constant", message, path=path, severity=severity))
    return Decoded(value, tuple(notes), values)


def _check_size(raw: bytes, path: str, max_values: int) -> int:
    # Signs inside strings count too, which only makes the limits stricter.
    opening, closing = raw.count(b"[") + raw.count(b"{"), raw.count(b"]") + raw.count(b"}")
    values = raw.count(b",") + opening
    if max(values, closing) > max_values:
        raise _too_large(path, f"{max(values, closing)} values, more than any configuration or header needs")
    steps = memoryview(raw.translate(_STEPS, _NOT_BRACKETS)).cast("b")
    if max(itertools.accumulate(steps), default=0) > MAX_JSON_DEPTH:
        raise _too_large(path, f"lists and objects in each other beyond a depth of {MAX_JSON_DEPTH}")
    if len(raw) > MAX_WIDE_BYTES and raw.translate(None, _NOT_WIDE):
        raise _too_large(path, f"{len(raw)} bytes with characters that take much memory")
    return values


def _too_large(path: str, what: str) -> Defect:
    return Defect(problem("json_too_large", path, f"{path} has {what}"))


def _corrupt(path: str, why: str) -> Defect:
    return Defect(problem("json_corrupt", path, f"{path} {why}"))
