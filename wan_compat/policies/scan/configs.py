"""What a configuration asks a library to do: keys that name code, repositories, kernels, addresses, paths; templates.

The keys are those by which diffusers and transformers fetched or ran code, with the advisory where there was one:
CVE-2026-4372 (`_attn_implementation_internal`), CVE-2026-5241 (a config's own `trust_remote_code`), CVE-2025-66448
(`auto_map`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from wan_compat.policies.scan.rules import Observation

MAX_JSON_BYTES = 4 << 20
MAX_VALUES = 250_000
MAX_DEPTH = 64
MAX_SHOWN = 20  # of one rule in one file

_KEY_RULES = {
    "auto_map": "config-auto-map",
    "custom_code": "config-auto-map",
    "module_file": "config-auto-map",
    "trust_remote_code": "config-remote-code",
    "custom_pipeline": "config-pipeline",
    "custom_pipelines": "config-pipeline",
    "custom_revision": "config-pipeline",
    "code_revision": "config-pipeline",
    "_attn_implementation_internal": "config-kernel",
    "kernel_config": "config-kernel",
    "use_kernels": "config-kernel",
    "kernels": "config-kernel",
    "hub_kernels": "config-kernel",
}
_REPOSITORY_KEYS = frozenset({"repo_id", "pretrained_model_name_or_path", "base_model_name_or_path", "repository"})
_ATTENTION_KEYS = frozenset({"attn_implementation", "_attn_implementation", "attention_backend"})
_LIBRARIES = frozenset({"diffusers", "transformers"})

_ADDRESS = re.compile(r"\b(?:https?|ftp|s3|gs|ssh|file|git\+\w+)://[^\s\"'<>]{3,}", re.IGNORECASE)
_LOCAL_PATH = re.compile(r"(?:/(?:home|root|Users|mnt|data|workspace|tmp|opt|var|etc)/|[A-Za-z]:\\)\S+")
_CLIMBS = re.compile(r"(?:^|[/\\])\.\.[/\\]")
# Their strings are pieces of text, among them `../` and `http://`.
_VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json"})
# Printable letters, digits and _ as \u escapes: no writer of JSON does that.
_ESCAPED_LETTER = re.compile(rb"\\u00(?:3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aA])")
_CODE_WORDS = tuple(f'"{key}"'.encode() for key in _KEY_RULES)

_TEMPLATE_BLOCK = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_TEMPLATE_DANGER = re.compile(
    r"__|\bmro\b|\|\s*attr\b|\blipsum\b|\bcycler\b|\bjoiner\b|\bpopen\b|\bglobals\b|\bsubclasses\b|\\x5f|\\u005f"
    r"|\brequest\b\s*[.\[]|\bself\s*\.\s*_|\bos\s*\.\s*\w+\s*\(|\bgetattr\b|\bimport_module\b",
    re.IGNORECASE,
)
_TEMPLATE_INCLUDE = re.compile(r"\{%-?\s*(?:include|import|from|extends)\b")
_YAML_CODE = re.compile(rb"!!?python[/:]|tag:yaml\.org,2002:python|^%TAG", re.MULTILINE)


class _TwiceTheSame(Exception):
    """A key stands twice in an object. The text names it."""


def read_json(raw: bytes, path: str) -> list[Observation]:
    """Return what a JSON file asks for. Larger files than a configuration is are searched for words only.

    Args:
        raw: The whole file.
        path: Of the file within the repository; `model_index.json` has rules of its own.
    """
    found: list[Observation] = []
    if _escapes_letters(raw):
        found.append(Observation("config-escaped-letters", "plain letters are written as \\u escapes"))
    if len(raw) > MAX_JSON_BYTES or raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_VALUES:
        words = [word for word in _CODE_WORDS if word in raw]
        found += [
            Observation(_KEY_RULES[word[1:-1].decode()], f"has the word {word.decode()}", _line(raw, word))
            for word in words
        ]
        return found
    try:
        value = _parse(raw)
    except _TwiceTheSame as error:
        return [*found, Observation("config-duplicate-key", f"the key {error} stands twice")]
    except (ValueError, RecursionError) as error:
        return [*found, Observation("config-corrupt", f"not valid JSON: {error}")]
    counts: dict[str, int] = {}
    if path in ("model_index.json", "modular_model_index.json") and isinstance(value, dict):
        found += _index(value, raw)
    for item in _walk(value, raw, is_vocabulary=path.rpartition("/")[2] in _VOCABULARIES):
        counts[item.rule] = counts.get(item.rule, 0) + 1
        if counts[item.rule] <= MAX_SHOWN:
            found.append(item)
    return found


def read_yaml(raw: bytes) -> list[Observation]:
    """Return what a YAML file asks for, by its words: nothing here builds what it describes."""
    found = [
        Observation("config-yaml-code", f"the tag {match[0].decode()!r}", raw.count(b"\n", 0, match.start()) + 1)
        for match in list(_YAML_CODE.finditer(raw))[:MAX_SHOWN]
    ]
    for key, rule in _KEY_RULES.items():
        match = re.search(
            rf"^[ \t-]*[\"']?{key}[\"']?[ \t]*:[ \t]*+(?!false|null|~|\s*$)".encode(), raw, re.MULTILINE | re.I
        )
        if match is not None:
            found.append(Observation(rule, f"sets {key}", raw.count(b"\n", 0, match.start()) + 1))
    return found


def read_template(text: str) -> Iterator[Observation]:
    """Yield what a Jinja template reaches for beyond its messages. `text` is one template."""
    include = _TEMPLATE_INCLUDE.search(text)
    if include is not None:
        yield Observation("template-includes", f"{include[0]} ...", text.count("\n", 0, include.start()) + 1)
    for block in _TEMPLATE_BLOCK.finditer(text):
        danger = _TEMPLATE_DANGER.search(block[0])
        if danger is not None:
            line = text.count("\n", 0, block.start()) + 1
            yield Observation("template-dangerous", f"the template has {block[0][:120]!r}", line)
            return


def _escapes_letters(raw: bytes) -> bool:
    for match in _ESCAPED_LETTER.finditer(raw):
        before = raw[max(0, match.start() - 64) : match.start()]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:  # an even number of backslashes: this one is not escaped
            return True
    return False


def _parse(raw: bytes) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                raise _TwiceTheSame(repr(key[:80]))
            found[key] = value
        return found

    return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=pairs)


def _walk(value: Any, raw: bytes, *, is_vocabulary: bool) -> Iterator[Observation]:
    pending: list[tuple[str, Any, int]] = [("", value, 0)]
    while pending:
        key, value, depth = pending.pop()
        if depth > MAX_DEPTH:
            yield Observation("config-corrupt", f"nested deeper than {MAX_DEPTH}")
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from _key(name, inner, raw)
                pending.append((name, inner, depth + 1))
        elif isinstance(value, list):
            pending.extend((key, inner, depth + 1) for inner in value)
        elif isinstance(value, str) and not is_vocabulary:
            yield from _text(key, value, raw)


def _index(index: dict[str, Any], raw: bytes) -> Iterator[Observation]:
    class_name = index.get("_class_name")
    if isinstance(class_name, list):
        yield Observation("config-pipeline", f"_class_name is {class_name!r}", _line(raw, b'"_class_name"'))
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) < 2:
            continue
        library = value[0]
        if library is not None and library not in _LIBRARIES:
            yield Observation(
                "config-library", f"component {name!r} is {value[:2]!r}", _line(raw, json.dumps(name).encode())
            )


def _key(name: str, value: Any, raw: bytes) -> Iterator[Observation]:
    line = _line(raw, json.dumps(name).encode())
    rule = _KEY_RULES.get(name)
    if rule is not None and value not in (None, False, [], {}, "", 0):
        yield Observation(rule, f"{name} is {repr(value)[:120]}", line)
    if name in _REPOSITORY_KEYS and isinstance(value, str) and value.count("/") == 1:
        yield Observation("config-repository", f"{name} is {value[:120]!r}", line)
    # "org/kernel" and "org/kernel:function" are fetched from the hub; plain words are implementations of the library.
    if name in _ATTENTION_KEYS and isinstance(value, str) and ("/" in value or ":" in value):
        yield Observation("config-kernel", f"{name} is {value[:120]!r}", line)


def _text(key: str, value: str, raw: bytes) -> Iterator[Observation]:
    if "{%" in value or "{{" in value:
        yield from (
            Observation(item.rule, item.message, _line(raw, json.dumps(key).encode())) for item in read_template(value)
        )
        return
    if len(value) > 4096:
        return
    line = _line(raw, json.dumps(value).encode())
    if _CLIMBS.search(value):
        yield Observation("config-path", f"{key or 'a value'} is {value[:120]!r}", line)
    elif (address := _ADDRESS.search(value)) is not None:
        yield Observation("config-url", f"{key or 'a value'} is {address[0][:120]!r}", line)
    elif _LOCAL_PATH.match(value):
        yield Observation("config-local-path", f"{key or 'a value'} is {value[:120]!r}", line)


def _line(raw: bytes, text: bytes) -> int | None:
    """The line on which a key or value stands, as far as plain search tells."""
    position = raw.find(text)
    return None if position < 0 else raw.count(b"\n", 0, position) + 1
