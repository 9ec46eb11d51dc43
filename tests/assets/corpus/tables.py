"""Names and shapes of the tensors of real classes, recorded once, in few bytes.

`tables.json` holds for each class its whole configuration and its tensors as patterns: `blocks.{0-29}.attn1.to_q.bias`
stands for thirty names. It was recorded from the installed diffusers and transformers by `record.py`; a test records a
part of it again and compares.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]
Tensors = dict[str, Shape]

PATH = Path(__file__).with_name("tables.json")


@functools.cache
def _tables() -> Mapping[str, Any]:
    return json.loads(PATH.read_text())


@functools.cache
def recorded_tensors(name: str) -> Tensors:
    """Return the tensors of a recorded class."""
    return expand(_tables()[name]["tensors"])


def recorded_config(name: str) -> dict[str, Any]:
    """Return the configuration that the recorded class writes, `_class_name` first."""
    return dict(_tables()[name]["config"])


def recorded_names() -> list[str]:
    return list(_tables())


def expand(patterns: Mapping[str, str]) -> Tensors:
    found: Tensors = {}
    for pattern, shapes in patterns.items():
        shape = tuple(int(side) for side in shapes.split("x") if side)
        pieces = [
            [piece] if index % 2 == 0 else _numbers(piece)
            for index, piece in enumerate(re.split(r"\{(.*?)\}", pattern))
        ]
        for name in itertools.product(*pieces):
            found["".join(name)] = shape
    return found


def compress(tensors: Mapping[str, Iterable[int]]) -> dict[str, str]:
    """The inverse of `expand`."""
    groups: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for name, shape in tensors.items():
        numbers = tuple(int(word) for word in re.findall(r"(?<=\.)\d+(?=\.|$)", name))
        template = re.sub(r"(?<=\.)\d+(?=\.|$)", "{}", name)
        groups.setdefault((template, "x".join(map(str, shape))), set()).add(numbers)
    found: dict[str, str] = {}
    for (template, shape), rows in groups.items():
        for block in _blocks(rows):
            found[template.format(*("{" + _ranges(numbers) + "}" for numbers in block))] = shape
    return found


def _blocks(rows: set[tuple[int, ...]]) -> list[list[list[int]]]:
    """Split rows of numbers into full products of columns."""
    columns = [sorted(set(column)) for column in zip(*rows, strict=True)]
    size = 1
    for column in columns:
        size *= len(column)
    if size == len(rows):
        return [columns]
    first: dict[int, set[tuple[int, ...]]] = {}
    for row in rows:
        first.setdefault(row[0], set()).add(row[1:])
    alike: dict[frozenset[tuple[int, ...]], list[int]] = {}
    for number, rest in first.items():
        alike.setdefault(frozenset(rest), []).append(number)
    return [[sorted(numbers), *block] for rest, numbers in alike.items() for block in _blocks(set(rest))]


def _ranges(numbers: list[int]) -> str:
    words, start = [], 0
    for index, number in enumerate(numbers):
        if index + 1 == len(numbers) or numbers[index + 1] != number + 1:
            words.append(str(number) if index == start else f"{numbers[start]}-{number}")
            start = index + 1
    return ",".join(words)


def _numbers(text: str) -> list[str]:
    found: list[str] = []
    for word in text.split(","):
        first, _, last = word.partition("-")
        found.extend(str(number) for number in range(int(first), int(last or first) + 1))
    return found
