"""A job's events as a person sees them, on stderr: bars on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from wan_compat.protocol.errors import clean_text
from wan_compat.supervisor.cli.quantities import show_seconds
from wan_compat.supervisor.cli.session import Session, can_redraw, has_color

if TYPE_CHECKING:
    from rich.progress import TaskID

    from wan_compat.supervisor.events import Event, Progress, Recovered, Recovering

PHASES = {
    "start_worker": "Starting worker",
    "load": "Loading model",
    "text_encode": "Reading prompt",
    "denoise": "Denoising",
    "decode": "Decoding",
    "encode": "Encoding",
    "open": "Opening weights",
    "convert": "Writing",
}

# Without a terminal a line per step would drown a log; this many seconds pass between two lines of one phase.
LINE_INTERVAL_S = 5.0


def progress_view(session: Session) -> ProgressView:
    """Return the view that fits the session and its stderr."""
    if session.quiet:
        return ProgressView()
    return BarProgress(session) if can_redraw(sys.stderr) else LineProgress(session)


class ProgressView:
    """Shows nothing; the base of those that do. Use as a context manager around the events of one job."""

    def show(self, event: Event) -> None:
        """Take in one event."""

    def __enter__(self) -> ProgressView:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass


class LineProgress(ProgressView):
    """One line when a phase starts, then at most one every LINE_INTERVAL_S."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._phase = ("", 0)
        self._last_line = 0.0

    def show(self, event: Event) -> None:
        from wan_compat.supervisor import events

        match event:
            case events.PhaseStarted(phase=phase, video=video):
                self._start(phase, video)
            case events.Progress(phase=phase, step=step, total=total, video=video):
                self._start(phase, video)
                if time.monotonic() - self._last_line >= LINE_INTERVAL_S:
                    pace = describe_pace(event)
                    self._line(f"{describe_phase(phase, video)}: {step}/{total}{', ' if pace else ''}{pace}")
            case events.Started(tier=tier, layers=layers):
                self._line(describe_sandbox(self._session, tier, layers))
            case events.Warned(message=message):
                self._session.warned.add(message)
                self._line(f"Warning: {message}")
            case events.Unusual(worker=worker, what=what):
                self._line(f"Unusual: worker {worker} {what}")
            case events.Recovering() | events.Recovered():
                self._line(describe_recovery(event))
            case _:
                pass

    def _start(self, phase: str, video: int) -> None:
        if (phase, video) != self._phase:
            self._phase = (phase, video)
            self._line(f"{describe_phase(phase, video)} ...")

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._session.note(text)


class BarProgress(ProgressView):
    """One bar per phase, redrawn in place."""

    def __init__(self, session: Session) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._session = session
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[steps]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True, no_color=not has_color(sys.stderr), highlight=False),
        )
        self._tasks: dict[tuple[str, int], TaskID] = {}

    def show(self, event: Event) -> None:
        from wan_compat.supervisor import events

        match event:
            case events.PhaseStarted(phase=phase, video=video):
                self._task(phase, video)
            case events.Progress(phase=phase, step=step, total=total, video=video):
                shown = f"{step}/{total} {describe_pace(event)}".rstrip()
                self._progress.update(self._task(phase, video), completed=step, total=total, steps=shown)
            case events.Started(tier=tier, layers=layers):
                self._remark(describe_sandbox(self._session, tier, layers))
            case events.Warned(message=message):
                self._session.warned.add(message)
                self._remark(f"Warning: {message}")
            case events.Unusual(worker=worker, what=what):
                self._remark(f"Unusual: worker {worker} {what}")
            case events.Recovering() | events.Recovered():
                self._remark(describe_recovery(event))
            case events.Finished():
                self._finish_all()
            case _:
                pass

    def __enter__(self) -> BarProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def _task(self, phase: str, video: int) -> TaskID:
        """Return the phase's bar; the first event of a phase makes it. Phases may overlap, decode and encode do."""
        key = (phase, video)
        if key not in self._tasks:
            if phase not in ("decode", "encode"):
                self._finish_all()
            self._tasks[key] = self._progress.add_task(describe_phase(phase, video), total=None, steps="")
        return self._tasks[key]

    def _finish_all(self) -> None:
        for task in self._progress.tasks:
            total = task.total or 1
            self._progress.update(task.id, completed=total, total=total)
            self._progress.stop_task(task.id)

    def _remark(self, text: str) -> None:
        self._progress.console.print(clean_text(text), markup=False, highlight=False)


def describe_phase(phase: str, video: int) -> str:
    """Return the name of a phase, and of which video where it is not the first."""
    return PHASES[phase] if video == 0 else f"{PHASES[phase]} (video {video + 1})"


def describe_sandbox(session: Session, tier: str, layers: tuple[str, ...]) -> str:
    """Return the one line on the confinement in force; --verbose names every layer."""
    return f"Sandbox: tier {tier}, {len(layers)} layers" + (f" ({', '.join(layers)})" if session.verbose else "")


def describe_pace(event: Progress) -> str:
    """Return how long a step takes and how long the phase will; nothing where that is no news."""
    if event.rate_s is None or event.eta_s is None or event.step >= event.total:
        return ""
    # A step is a component, a mebibyte or a latent frame elsewhere: whose rate nobody asks for.
    rate = f"{event.rate_s:.1f} s a step, " if event.phase == "denoise" and event.rate_s >= 0.1 else ""
    return f"{rate}{show_seconds(event.eta_s)} left" if event.eta_s >= 1 else ""


def describe_recovery(event: Recovering | Recovered) -> str:
    """Return the line on a failed attempt and what is tried, or on how that went."""
    from wan_compat.supervisor import events

    if isinstance(event, events.Recovering):
        return f"Failed: {event.error}\nTrying: {event.action}"
    return f"Recovery: {event.action}: {event.outcome}"
