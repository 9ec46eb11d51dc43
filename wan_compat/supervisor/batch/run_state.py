"""Where one run of a batch stands: what is left, what runs, how often it was tried, and whether it is to stop.

Belongs to the thread that runs the batch.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from typing import Any

from wan_compat.policies.batch.items import Item
from wan_compat.policies.batch.progress import remaining_s
from wan_compat.protocol.errors import WanCompatError
from wan_compat.supervisor.batch.books import Books
from wan_compat.supervisor.batch.contract import BatchView, Outcome


@dataclasses.dataclass
class Running:
    """An item whose job was submitted. `learned`: with what other items taught; `cancelled`: by this run."""

    item: Item
    output: str
    job: Any
    attempt: int
    began: float
    learned: bool
    cancelled: bool = False


class RunState:
    """
    Args:
        items: All of the batch.
        left: Those that this run has to do.

    Attributes:
        todo, running: By key.
        attempts, disk_failures: Of this run, by key.
        unlearned: Items that failed with what was learned, and go without it.
        seconds: What the videos took.
        stopping: Nothing more is started.
        killing: And what runs is cancelled.
    """

    def __init__(self, items: int, left: Sequence[Item], workers: int, books: Books, view: BatchView) -> None:
        self._items, self._workers, self._books, self._view = items, workers, books, view
        self.todo = {item.key: item for item in left if not books.is_done(item)}
        self.running: dict[str, Running] = {}
        self.attempts: dict[str, int] = {}
        self.disk_failures: dict[str, int] = {}
        self.unlearned: set[str] = set()
        self.seconds: list[float] = []
        self.stopping = self.killing = False
        self.outcome = Outcome()

    def hear_signal(self, number: int) -> None:
        """Stop in an orderly way at the first Ctrl-C, at once at the second and at any other signal."""
        if number != signal.SIGINT:
            self.outcome.interrupted = "terminated"
            self.kill()
        elif not self.stopping or not self.outcome.interrupted:
            self.outcome.interrupted = "ctrl-c"
            self.stopping = True
            if self.running:
                many = "the videos" if len(self.running) > 1 else "the video"
                self._view.note(f"Finishing {many} that are being made ... (Ctrl-C again to stop now)")
        else:
            self._view.note("Stopping now ...")
            self.kill()

    def kill(self) -> None:
        """Cancel what runs."""
        self.stopping = self.killing = True
        for running in self.running.values():
            running.cancelled = True
            running.job.cancel()

    def end_all(self, error: WanCompatError) -> None:
        """Start nothing more: what happened would happen to every item."""
        if self.outcome.fatal is None:
            self.outcome.fatal = error
        self.stopping = True

    def show(self) -> None:
        """Show how far it is."""
        eta_s = remaining_s(self.seconds, len(self.todo), self._workers)
        books = self._books
        self._view.counts(len(books.done), len(books.failed), self._items, eta_s)
