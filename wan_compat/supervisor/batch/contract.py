"""What a run is told, what it says of itself while it goes, and how it ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from wan_compat.policies.batch.items import Item
from wan_compat.policies.batch.progress import Shard
from wan_compat.policies.batch.records import Done, Failed, Released
from wan_compat.protocol.errors import WanCompatError
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.batch.leases import BEAT_S, STALE_S


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a batch is run.

    Args:
        fields: What every request gets: mode, limits, isolation.
        max_retries: Attempts after the first at an item, in this run.
        fail_fast: Start nothing more after the first item that failed.
        overwrite: Replace files that stand where videos shall be, once the video is whole.
        stale_s, beat_s: Of the leases.
    """

    workers: int = 1
    shard: Shard = dataclasses.field(default_factory=Shard)
    max_retries: int = 0
    fail_fast: bool = False
    overwrite: bool = False
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stale_s: float = STALE_S
    beat_s: float = BEAT_S


@dataclasses.dataclass
class Outcome:
    """How a run ended.

    Args:
        done, failed: Items that this run brought to that end; `found` of the done ones stood there already.
        left: Items that it had to do, and did not.
        elsewhere: Items that other runs ended meanwhile.
        interrupted: By whom ("ctrl-c", "terminated"), empty if it came to its end.
        fatal: What would have failed every item.
    """

    done: int = 0
    found: int = 0
    failed: int = 0
    left: int = 0
    elsewhere: int = 0
    seconds: float = 0.0
    interrupted: str = ""
    fatal: WanCompatError | None = None


class BatchView(Protocol):
    """Shows a batch as it goes. Called from the thread that runs it, only."""

    def started(self, item: Item, attempt: int) -> None: ...

    def event(self, item: Item, event: ev.Event) -> None: ...

    def ended(self, item: Item, record: Done | Failed | Released) -> None: ...

    def counts(self, done: int, failed: int, total: int, eta_s: float | None) -> None: ...

    def note(self, text: str) -> None: ...
