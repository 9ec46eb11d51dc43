"""Which waiting job is next: the highest priority; inside one, each group in turn; inside a group, whoever came first.

A group is whoever should not be able to crowd out the others: a user of a service, a batch. A group that was served
goes behind the others, and one that comes back starts behind those that wait, so that a thousand jobs of one group
delay the first job of another by one job at most.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

MIN_PRIORITY, MAX_PRIORITY = -100, 100

T = TypeVar("T", bound=Hashable)


class FairOrder(Generic[T]):
    """Waiting items in the order in which they will be taken. Not thread-safe."""

    def __init__(self) -> None:
        # Ordered dictionaries for their constant time at both ends and in the middle: priority -> group -> items.
        self._waiting: dict[int, OrderedDict[str, OrderedDict[T, None]]] = {}
        self._places: dict[T, tuple[int, str]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, item: object) -> bool:
        return item in self._places

    def add(self, item: T, *, priority: int = 0, group: str = "") -> None:
        """Put an item that is not waiting behind those of its group."""
        groups = self._waiting.setdefault(priority, OrderedDict())
        groups.setdefault(group, OrderedDict())[item] = None
        self._places[item] = (priority, group)

    def take(self) -> T | None:
        """Remove and return the next item, None if nothing waits."""
        if not self._waiting:
            return None
        priority = max(self._waiting)
        groups = self._waiting[priority]
        group = next(iter(groups))
        item = next(iter(groups[group]))
        self.remove(item)
        if group in groups:
            groups.move_to_end(group)
        return item

    def remove(self, item: T) -> bool:
        """Remove an item wherever it stands; return whether it was waiting."""
        place = self._places.pop(item, None)
        if place is None:
            return False
        priority, group = place
        groups = self._waiting[priority]
        del groups[group][item]
        if not groups[group]:
            del groups[group]
        if not groups:
            del self._waiting[priority]
        return True

    def __iter__(self) -> Iterator[T]:
        """Yield the items in the order in which `take` would return them if none were added."""
        for priority in sorted(self._waiting, reverse=True):
            turns = [iter(items) for items in self._waiting[priority].values()]
            while turns:
                left = []
                for turn in turns:
                    for item in turn:
                        yield item
                        left.append(turn)
                        break
                turns = left
