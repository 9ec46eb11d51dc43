"""What the journals say about the items, and what is left to do, in which order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wan_compat.policies.batch.items import Item
from wan_compat.policies.batch.records import Done, Failed, OfItem, Released, Started


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, both from 1. It has every count-th item."""

    number: int = 1
    count: int = 1

    @property
    def name(self) -> str:
        return f"{self.number}-of-{self.count}"

    def has(self, item: Item) -> bool:
        return (item.index - 1) % self.count == self.number - 1


class Progress:
    """The last record of every item. Takes records of all journals of a folder, in any order."""

    def __init__(self, records: Iterable[Any] = ()) -> None:
        self._last: dict[str, OfItem] = {}
        self._outputs: dict[str, str] = {}
        for record in records:
            self.take(record)

    def take(self, record: Any) -> None:
        if not isinstance(record, OfItem):
            return
        known = self._last.get(record.key)
        if known is None or (record.n, isinstance(record, Done)) > (known.n, isinstance(known, Done)):
            self._last[record.key] = record
        if isinstance(record, Started | Done):
            self._outputs[record.key] = record.output

    def last(self, key: str) -> OfItem | None:
        return self._last.get(key)

    def next_number(self, key: str) -> int:
        """Return the number that the next record about an item gets."""
        known = self._last.get(key)
        return 1 if known is None else known.n + 1

    def output(self, key: str) -> str | None:
        """Return the name that an item's output was given, by whichever run."""
        return self._outputs.get(key)

    @property
    def outputs(self) -> Mapping[str, str]:
        """Key -> name of every output that was ever begun here."""
        return self._outputs

    def done(self, key: str) -> Done | None:
        record = self._last.get(key)
        return record if isinstance(record, Done) else None

    def failed(self, key: str) -> Failed | None:
        record = self._last.get(key)
        return record if isinstance(record, Failed) else None

    def begun(self, key: str) -> Started | None:
        """An attempt that no record ends: it runs somewhere, or its process died."""
        record = self._last.get(key)
        return record if isinstance(record, Started) else None

    def is_waiting(self, key: str) -> bool:
        record = self._last.get(key)
        return record is None or isinstance(record, Released | Started)


def left_to_do(
    items: Sequence[Item], progress: Progress, *, retry_failed: bool = False, shard: Shard | None = None
) -> list[Item]:
    """Return what a run has to do, in its order: what a crash interrupted first, then model by model, so that a warm
    worker is used for all it can do before another model takes its place; within a model as in the file."""
    part = shard or Shard()
    found = [
        item
        for item in items
        if part.has(item) and progress.done(item.key) is None and (retry_failed or progress.failed(item.key) is None)
    ]
    first_of: dict[str, int] = {}
    for item in found:
        first_of.setdefault(item.request.model, item.index)
    return sorted(found, key=lambda item: (progress.begun(item.key) is None, first_of[item.request.model], item.index))


def remaining_s(seconds: Sequence[float], left: int, at_once: int) -> float | None:
    """Return about how long `left` items will take, from how long the last ones took; None where nothing is known."""
    lately = seconds[-20:]
    if not lately or left <= 0:
        return None
    return sum(lately) / len(lately) * left / max(1, at_once)


# Another attempt at the same can end otherwise; for all others it is a waste, or a refusal that stays one.
_WORTH_ANOTHER_TRY = frozenset((
    "generation_failed", "worker_died", "worker_start_failed", "worker_silent", "worker_stalled", "encoding_failed",
    "unusable_frames", "deadline_exceeded", "memory_exceeded", "wan_compat_error",
))  # fmt: skip


def is_worth_another_try(code: str) -> bool:
    return code in _WORTH_ANOTHER_TRY


def parse_shard(text: str) -> Shard:
    """Return the shard that `i/n` means. Raises ValueError."""
    number, slash, count = text.partition("/")
    if not slash or not number.isdecimal() or not count.isdecimal() or len(text) > 9:
        raise ValueError(f"{text!r} is not a part like 2/4")
    shard = Shard(int(number), int(count))
    if not 1 <= shard.number <= shard.count:
        raise ValueError(f"{text!r} is not a part: the first is 1/{shard.count}")
    return shard
