"""The values of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from wan_compat.protocol.errors import clean_text
from wan_compat.protocol.values import GenerationRequest

# Of one file. Ten thousand videos are weeks of work; more belong into several batches.
MAX_ITEMS = 10_000
MAX_SEEDS = 1000  # of one line
MAX_FIELDS = 64  # of one line
MAX_PROBLEMS = 100  # that are told


@dataclasses.dataclass(frozen=True)
class Line:
    """One line as it was read: the number where it begins, from 1 (0: not of a file), and its fields by the names
    that the file uses."""

    number: int
    fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a batch cannot start. `field` is empty where the whole line, or the file, is meant."""

    line: int
    field: str
    why: str

    def describe(self, file: str) -> str:
        """Return `file:line: field: why`, cleaned and on one line: all of it may be anybody's text."""
        where = f"{file}:{self.line}" if self.line else file
        text = ": ".join(part for part in (where, self.field, self.why) if part)
        return clean_text(text.replace("\n", "\\n"), 1000)


@dataclasses.dataclass(frozen=True)
class Item:
    """One video to make.

    Args:
        index: Place in the expanded batch, from 1.
        line: Of the file.
        key: Hash of what is asked for; the same in every run, whatever comes before it in the file.
        request: Without an output; its seed is set.
        output: Name of the file, or of the folder of pictures, in the batch's folder.
        moved: A part of the key was added to the name, since a video of an earlier item has it.
    """

    index: int
    line: int
    key: str
    request: GenerationRequest
    output: str
    moved: bool = False

    @property
    def seed(self) -> int:
        assert self.request.seed is not None
        return self.request.seed

    @property
    def title(self) -> str:
        """What a person recognises it by."""
        return clean_text(" ".join(self.request.prompt.split()), 120)
