"""A batch as a person sees it, on stderr: a bar for all of it and one for each video, or plain lines, or nothing."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from wan_compat.protocol.errors import clean_text
from wan_compat.supervisor.cli.progress import PHASES, describe_pace, describe_recovery, describe_sandbox
from wan_compat.supervisor.cli.quantities import show_seconds
from wan_compat.supervisor.cli.session import Session, can_redraw, has_color

if TYPE_CHECKING:
    from rich.progress import TaskID

    from wan_compat.policies.batch.items import Item
    from wan_compat.policies.batch.records import Done, Failed, Released
    from wan_compat.supervisor.events import Event

_NAME_CHARS = 36


def batch_view(session: Session) -> BatchLines:
    """Return the view that fits the session and its stderr."""
    return BatchBars(session) if can_redraw(sys.stderr) and not session.quiet else BatchLines(session)


class BatchLines:
    """One line when a video begins, and one when it ends. Use as a context manager, as the bars are."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sandbox_told = False
        self._counts = ""

    def __enter__(self) -> BatchLines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def started(self, item: Item, attempt: int) -> None:
        self.note(f"Making {item.output}{f', attempt {attempt}' if attempt > 1 else ''}: {item.title}")

    def event(self, item: Item, event: Event) -> None:
        from wan_compat.supervisor import events

        match event:
            case events.Started(tier=tier, layers=layers):
                if not self._sandbox_told:  # the same for all, and the result of each has its own
                    self._sandbox_told = True
                    self.note(describe_sandbox(self._session, tier, layers))
            case events.Warned(message=message):
                if self._session.verbose:
                    self.note(f"{item.output}: Warning: {message}")
            case events.Recovering() | events.Recovered():
                self.note(f"{item.output}: {describe_recovery(event)}")
            case _:
                pass

    def ended(self, item: Item, record: Done | Failed | Released) -> None:
        from wan_compat.policies.batch.records import Done, Failed

        if isinstance(record, Done):
            how = "found finished" if record.found else f"done in {record.seconds:.1f} s"
            self.note(f"{record.output}: {how}")
        elif isinstance(record, Failed):
            self.note(f"{item.output}: failed ({record.code}): {record.message}")

    def counts(self, done: int, failed: int, total: int, eta_s: float | None) -> None:
        words = describe_counts(done, failed, total, eta_s)
        if done + failed and words.split(";")[0] != self._counts.split(";")[0]:
            self.note(words)
        self._counts = words

    def note(self, text: str) -> None:
        self._session.note(text)


class BatchBars(BatchLines):
    """Bars, redrawn in place; what is worth a line scrolls by above them."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[steps]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True, no_color=not has_color(sys.stderr), highlight=False),
        )
        self._whole = self._progress.add_task("Batch", total=None, steps="")
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> BatchBars:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def started(self, item: Item, attempt: int) -> None:
        name = item.output if len(item.output) <= _NAME_CHARS else f"{item.output[: _NAME_CHARS - 1]}…"
        self._tasks[item.key] = self._progress.add_task(clean_text(name), total=None, steps="waiting")

    def event(self, item: Item, event: Event) -> None:
        from wan_compat.supervisor import events

        task = self._tasks.get(item.key)
        if task is not None and isinstance(event, events.PhaseStarted):
            self._progress.update(task, completed=0, total=None, steps=PHASES[event.phase])
        elif task is not None and isinstance(event, events.Progress):
            steps = f"{PHASES[event.phase]} {event.step}/{event.total} {describe_pace(event)}".rstrip()
            self._progress.update(task, completed=event.step, total=event.total, steps=steps)
        else:
            super().event(item, event)

    def ended(self, item: Item, record: Done | Failed | Released) -> None:
        if (task := self._tasks.pop(item.key, None)) is not None:
            self._progress.remove_task(task)
        super().ended(item, record)

    def counts(self, done: int, failed: int, total: int, eta_s: float | None) -> None:
        words = describe_counts(done, failed, total, eta_s)
        self._progress.update(self._whole, completed=done + failed, total=total, steps=words)

    def note(self, text: str) -> None:
        self._progress.console.print(clean_text(text), markup=False, highlight=False)


def describe_counts(done: int, failed: int, total: int, eta_s: float | None) -> str:
    """Return how far a batch has come."""
    words = f"{done} of {total} done" + (f", {failed} failed" if failed else "")
    return words + (f"; about {show_seconds(eta_s)} left" if eta_s is not None and eta_s >= 1 else "")
