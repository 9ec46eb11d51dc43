"""What a configuration asks a library to do: keys that name code, repositories, kernels, addresses, paths; templates.

The keys are those by which diffusers and transformers fetched or ran code, with the advisory where there was one:
CVE-2026-4372 (`_attn_implementation_internal`), CVE-2026-5241 (a config's own `trust_remote_code`), CVE-2025-66448
(`auto_map`).
"""

from __future__ import annotations

import dataclasses
import itertools
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

_TEMPLATE_OPENING = re.compile(r"\{\{|\{%")
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
    is_vocabulary = path.rpartition("/")[2] in _VOCABULARIES
    if len(raw) > MAX_JSON_BYTES or raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_VALUES:
        found += [
            Observation(_KEY_RULES[word[1:-1].decode()], f"has the word {word.decode()}", _line(raw, word))
            for word in _CODE_WORDS
            if word in raw
        ]
        if not is_vocabulary or b"_template" in raw:
            found.append(Observation("scan-limit", f"{len(raw):,} bytes, read for a few words only"))
        return found
    try:
        value = _parse(raw)
    except _TwiceTheSame as error:
        return [*found, Observation("config-duplicate-key", f"the key {error} stands twice")]
    except (ValueError, RecursionError) as error:
        return [*found, Observation("config-corrupt", f"not valid JSON: {error}")]
    noted = list(_index(value)) if path in ("model_index.json", "modular_model_index.json") else []
    counts: dict[str, int] = {}
    for item in itertools.chain(noted, _walk(value, is_vocabulary=is_vocabulary)):
        counts[item.rule] = counts.get(item.rule, 0) + 1
        if counts[item.rule] <= MAX_SHOWN:
            # Only now: looking for the line of every key would be quadratic.
            found.append(Observation(item.rule, item.message, _line(raw, json.dumps(item.at).encode())))
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
    for start, block in _template_blocks(text):
        danger = _TEMPLATE_DANGER.search(block)
        if danger is not None:
            where = max(0, danger.start() - 40)
            line = text.count("\n", 0, start + danger.start()) + 1
            yield Observation("template-dangerous", f"the template has {block[where : danger.end() + 60]!r}", line)
            return


def _template_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield what stands between the marks of Jinja, with its place. One that is not closed goes to the end."""
    position = 0
    while (opening := _TEMPLATE_OPENING.search(text, position)) is not None:
        end = text.find("}}" if opening[0] == "{{" else "%}", opening.end())
        if end < 0:
            yield opening.start(), text[opening.start() :]
            return
        yield opening.start(), text[opening.start() : end]
        position = end


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


@dataclasses.dataclass(frozen=True)
class _Noted:
    """An observation before its line is known: that of the text `at`."""

    rule: str
    message: str
    at: str


def _walk(value: Any, *, is_vocabulary: bool) -> Iterator[_Noted]:
    pending: list[tuple[str, Any, int]] = [("", value, 0)]
    while pending:
        key, value, depth = pending.pop()
        if depth > MAX_DEPTH:
            yield _Noted("config-corrupt", f"nested deeper than {MAX_DEPTH}", key)
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from _key(name, inner)
                pending.append((name, inner, depth + 1))
        elif isinstance(value, list):
            pending.extend((key, inner, depth + 1) for inner in value)
        elif isinstance(value, str) and (not is_vocabulary or "template" in key):
            yield from _text(key, value)


def _index(index: Any) -> Iterator[_Noted]:
    if not isinstance(index, dict):
        return
    class_name = index.get("_class_name")
    if isinstance(class_name, list):
        yield _Noted("config-pipeline", f"_class_name is {repr(class_name)[:120]}", "_class_name")
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) < 2:
            continue
        if value[0] is not None and value[0] not in _LIBRARIES:
            yield _Noted("config-library", f"component {name!r} is {repr(value[:2])[:120]}", name)


def _key(name: str, value: Any) -> Iterator[_Noted]:
    rule = _KEY_RULES.get(name)
    if rule is not None and value not in (None, False, [], {}, "", 0):
        yield _Noted(rule, f"{name} is {repr(value)[:120]}", name)
    if name in _REPOSITORY_KEYS and isinstance(value, str) and value.count("/") == 1:
        yield _Noted("config-repository", f"{name} is {value[:120]!r}", name)
    # "org/kernel" and "org/kernel:function" are fetched from the hub; plain words are implementations of the library.
    if name in _ATTENTION_KEYS and isinstance(value, str) and ("/" in value or ":" in value):
        yield _Noted("config-kernel", f"{name} is {value[:120]!r}", name)


def _text(key: str, value: str) -> Iterator[_Noted]:
    if "{%" in value or "{{" in value:
        yield from (_Noted(item.rule, item.message, key) for item in read_template(value))
    elif len(value) > 4096:
        return
    elif _CLIMBS.search(value):
        yield _Noted("config-path", f"{key or 'a value'} is {value[:120]!r}", value)
    elif (address := _ADDRESS.search(value)) is not None:
        yield _Noted("config-url", f"{key or 'a value'} is {address[0][:120]!r}", value)
    elif _LOCAL_PATH.match(value):
        yield _Noted("config-local-path", f"{key or 'a value'} is {value[:120]!r}", value)


def _line(raw: bytes, text: bytes) -> int | None:
    """The line on which a key or value stands, as far as plain search tells."""
    position = raw.find(text)
    return None if position < 0 else raw.count(b"\n", 0, position) + 1
