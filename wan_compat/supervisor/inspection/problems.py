"""What is wrong with a model's files, gathered while they are read: one broken file must not hide the rest."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from wan_compat.policies.findings import FINDINGS, Finding, finding
from wan_compat.protocol.errors import WanCompatError

# Of one code. A folder of a thousand dangling links is described as well by its first twenty.
MAX_PER_CODE = 20


class Defect(Exception):
    """Ends the reading of one file; `finding` tells why."""

    def __init__(self, found: Finding) -> None:
        super().__init__(found.message)
        self.finding = found


class Exhausted(Exception):
    """The budget for the whole model is spent: what was not read yet stays unread."""


class Problems:
    """Findings in the order of their discovery, with a limit for each code and a count of those beyond it."""

    def __init__(self) -> None:
        self._found: list[Finding] = []
        self._count: collections.Counter[str] = collections.Counter()

    def add(self, *found: Finding) -> None:
        for item in found:
            self._count[item.code] += 1
            if self._count[item.code] <= MAX_PER_CODE:
                self._found.append(item)

    def all(self) -> tuple[Finding, ...]:
        """Return the findings; of more than MAX_PER_CODE of a code, one without a path tells how many more."""
        beyond = {code: count - MAX_PER_CODE for code, count in self._count.items() if count > MAX_PER_CODE}
        return (
            *self._found,
            *(finding(code, f"and {count} more: {FINDINGS[code].meaning}") for code, count in beyond.items()),
        )


def problem(code: str, path: str, message: str) -> Finding:
    """Return a finding about the file at `path` in the model; its component is the top folder that it lies in."""
    folder, slash, _ = path.partition("/")
    return finding(code, message, path=path, component=folder if slash else None)


def raise_first_error(found: Iterable[Finding]) -> None:
    """Raise the error of the first finding of severity `error`. For readers of one file, which have no root to name."""
    for item in found:
        if item.severity == "error":
            raise as_error(item)


def as_error(found: Finding) -> WanCompatError:
    return FINDINGS[found.code].error(found.message, hint=found.fix, details={"finding": found.code})
