"""The books of a run: all that the journals of a folder say, and the one journal that this run writes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from wan_compat.policies.batch.items import Item
from wan_compat.policies.batch.records import Learned
from wan_compat.protocol.base import Value
from wan_compat.supervisor.batch.journal import Follower, Journal
from wan_compat.supervisor.batch.leases import Owner
from wan_compat.supervisor.batch.preflight import BatchPlan


class Books:
    """What is known about the items of a batch.

    Attributes:
        progress: The last record of every item, whoever wrote it.
        lessons: By model, the fields that helped an item of it.
        done, failed: Keys of the items that are so now.
    """

    def __init__(self, plan: BatchPlan, journal: Journal, owner: Owner) -> None:
        self.progress = plan.progress
        self.lessons: dict[str, dict[str, str | bool]] = {}
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self.began_at = time.time()
        self._folder, self._journal, self._owner = plan.folder, journal, owner
        self._keys = {item.key for item in plan.items}
        self._follower = Follower()
        for key in self._keys:
            self._count(key)
        # Before the shard was held, somebody else may have written to its journal.
        for record in journal.records:
            self._take(record)

    def append(self, kind: Any, **fields: Any) -> Any:
        """Write a record of this run, and return it: then it is on the disk.

        Raises:
            DiskExceeded, OutputNotWritable: As `Journal.append`.
        """
        record: Value = kind(run=self._owner.run, at=time.time(), **fields)
        self._journal.append(record)
        self._take(record)
        return record

    def of_item(self, kind: Any, item: Item, **fields: Any) -> Any:
        """Write a record about an item whose lease is held."""
        return self.append(kind, key=item.key, n=self.progress.next_number(item.key), **fields)

    def news(self) -> Iterator[Any]:
        """Yield what other runs recorded since the last time; it is taken in by then."""
        mine = self._journal.path
        for record in self._follower.fresh([path for path in self._folder.journals() if path != mine]):
            self._take(record)
            yield record

    def is_done(self, item: Item) -> bool:
        """Whether an item is done, and its video is there."""
        done = self.progress.done(item.key)
        return done is not None and os.path.lexists(self._folder.output(done.output))

    def failed_elsewhere(self, item: Item) -> bool:
        """Whether another run tried it since this one began."""
        failed = self.progress.failed(item.key)
        return failed is not None and failed.run != self._owner.run and failed.at > self.began_at

    def _take(self, record: Any) -> None:
        self.progress.take(record)
        if isinstance(record, Learned):
            self.lessons[record.model] = dict(record.fields)
        elif isinstance(key := getattr(record, "key", None), str) and key in self._keys:
            self._count(key)

    def _count(self, key: str) -> None:
        for found, keys in ((self.progress.done(key), self.done), (self.progress.failed(key), self.failed)):
            (keys.discard if found is None else keys.add)(key)
