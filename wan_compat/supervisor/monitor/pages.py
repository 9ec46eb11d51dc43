"""What can cover the list: details of the selection, all events, help."""

from __future__ import annotations

from rich.text import Text

from wan_compat.protocol.status import JobStatus, Note, SupervisorStatus, WorkerStatus
from wan_compat.supervisor.monitor.characters import (
    Characters,
    show_clock,
    show_length,
    show_moment,
    show_rate,
    show_share,
    show_size,
)
from wan_compat.supervisor.monitor.model import State
from wan_compat.supervisor.monitor.rows import Row
from wan_compat.supervisor.monitor.styles import PROBLEM, TRUST, WARNING, load_style, row_of

HELP = (
    ("up down j k", "select; page up, page down, g and G go further"),
    ("enter", "details of what is selected: whole prompt, error, memory"),
    ("c", "cancel the selected job, running or waiting; asks first"),
    ("x", "kill the selected worker; asks first. Its job fails"),
    ("p", "pause the supervisor: what runs goes on, nothing starts; resume"),
    ("/", "filter by id, pid, model, prompt, group, state; esc ends it"),
    ("s  r", "sort workers by age, memory, cpu, eta, model; reverse"),
    ("e", "list all waiting and ended jobs, or the first few"),
    ("v", "all events and refusals"),
    ("ctrl-l", "draw the screen anew"),
    ("q  ctrl-c", "quit; what is watched goes on"),
)
MEANING = (
    ("T", "tier of the worker's sandbox, A is the strongest"),
    ("TRUST", "runs code of its repository that you approved, in the sandbox"),
    ("s/it", "seconds per step; the time left is that of the phase"),
    ("no answer", "the supervisor exists, and what is shown of it is old"),
)
_LEVEL = {"info": ("", " "), "warning": (WARNING, "!"), "error": (PROBLEM, "!!")}


def help_page(width: int, height: int, chars: Characters, *, scroll: int) -> list[Text]:
    lines = [_blank(width, chars)]
    for names in (HELP, MEANING):
        lines += [row_of([(f"   {chars.fit(key, 13)}", "bold cyan"), (does, "")], width, chars) for key, does in names]
        lines.append(_blank(width, chars))
    return lines[scroll:][:height]


def events_page(state: State, width: int, height: int, chars: Characters) -> list[Text]:
    lines = event_lines(state, width, chars)
    if not lines:
        return [_blank(width, chars), row_of([("   Nothing has happened yet.", "")], width, chars)]
    return lines[state.scroll :][:height]


def event_lines(state: State, width: int, chars: Characters) -> list[Text]:
    """Return the events of all supervisors, newest first."""
    notes = [(note, seen.id) for seen in state.supervisors if seen.status for note in seen.status.notes]
    notes.sort(key=lambda each: -each[0].at_unix_s)
    several = len(state.supervisors) > 1
    return [_event(note, supervisor if several else "", width, chars) for note, supervisor in notes]


def _event(note: Note, supervisor: str, width: int, chars: Characters) -> Text:
    style, mark = _LEVEL[note.level]
    about = " ".join(part for part in (supervisor, note.job, note.worker) if part)
    parts = [(f" {show_clock(note.at_unix_s)} ", "dim"), (f"{mark:<2} ", style)]
    if about:
        parts.append((f"{chars.line(about)}  ", "dim"))
    parts.append((chars.line(note.text), style))
    return row_of(parts, width, chars)


def details_page(state: State, width: int, height: int, chars: Characters) -> list[Text]:
    row = state.selected_row()
    if row is None or row.seen.status is None:
        return [_blank(width, chars), row_of([("   It is gone.", "")], width, chars)]
    if row.kind == "supervisor":
        facts = _of_supervisor(row.seen.status)
    elif row.kind == "worker" and row.worker is not None:
        facts = _of_worker(row.worker, state.now_unix_s)
    else:
        assert row.job is not None
        facts = _of_job(row.job)
    lines = [_blank(width, chars)]
    for name, value, style in facts:
        lines += _fact(name, value, style, width, chars)
    if row.kind != "supervisor" and row.worker is not None:
        lines += _memory(row, row.worker, width, chars)
    return lines[:height]


def _of_supervisor(status: SupervisorStatus) -> list[tuple[str, str, str]]:
    return [
        ("supervisor", status.id, "bold"),
        ("program", status.program, ""),
        ("pid", str(status.pid), ""),
        ("version", status.version, ""),
        ("mode", _mode(status.mode), TRUST if status.mode == "trust" else ""),
        ("started", show_moment(status.started_unix_s), ""),
        ("workers", f"{len(status.workers)} of {status.max_workers}", ""),
        ("jobs", f"{len(status.running)} running, {status.queued_count} waiting", ""),
        ("", f"{status.done_count} done, {status.failed_count} failed, {status.cancelled_count} cancelled", ""),
        ("takes", _takes(status), ""),
    ]


def _takes(status: SupervisorStatus) -> str:
    if status.draining:
        return "no more jobs: it finishes what it has"
    orders = "no orders" if status.read_only else "orders"
    jobs = " and jobs of other programs" if status.serves else ""
    return f"{orders}{jobs}{'; paused: nothing new starts' if status.paused else ''}"


def _of_worker(worker: WorkerStatus, now_unix_s: float) -> list[tuple[str, str, str]]:
    age = now_unix_s - worker.started_unix_s if worker.started_unix_s else None
    facts = [
        ("worker", worker.id, "bold"),
        ("pid", str(worker.pid), ""),
        ("state", f"{worker.activity}{f' with {worker.job}' if worker.job else ''}", ""),
        ("mode", _mode(worker.mode), TRUST if worker.mode == "trust" else ""),
        ("sandbox", f"tier {worker.tier}", ""),
        ("model", worker.model, ""),
        ("runs for", show_length(None if age is None else max(0.0, age)), ""),
        ("jobs done", str(worker.jobs_done), ""),
        ("cpu", "" if worker.cpu_percent is None else f"{worker.cpu_percent:.0f}% of a core", ""),
        ("vram", "" if worker.vram_bytes is None else show_size(worker.vram_bytes), ""),
    ]
    return facts + [("unusual", text, WARNING) for text in worker.unusual]


def _of_job(job: JobStatus) -> list[tuple[str, str, str]]:
    pace = ", ".join(
        part for part in (f"{job.step} of {job.total}" if job.total else "", show_rate(job.rate_s), _left(job)) if part
    )
    return [
        ("job", job.id, "bold"),
        ("state", f"{job.state}{f', attempt {job.attempt}' if job.attempt > 1 else ''}", ""),
        ("phase", f"{job.phase}{f': {pace}' if pace else ''}" if job.phase else "", ""),
        ("video", f"{job.video + 1} of {job.num_videos}" if job.num_videos > 1 else "", ""),
        ("error", f"{job.error_code or ''}{': ' if job.error_code and job.error else ''}{job.error or ''}", PROBLEM),
        ("label", job.label, ""),
        ("prompt", job.prompt, ""),
        ("model", job.model, ""),
        ("mode", _mode(job.mode), TRUST if job.mode == "trust" else ""),
        ("priority", str(job.priority) if job.priority else "", ""),
        ("group", job.group, ""),
        ("output", job.output or "", ""),
        ("submitted", show_moment(job.submitted_unix_s), ""),
        ("started", show_moment(job.started_unix_s) if job.started_unix_s else "", ""),
        ("ended", show_moment(job.ended_unix_s) if job.ended_unix_s else "", ""),
    ]


def _left(job: JobStatus) -> str:
    return "" if job.eta_s is None else f"{show_length(job.eta_s)} left in this phase"


def _mode(mode: str) -> str:
    return "TRUST: runs approved code of its repository" if mode == "trust" else "safe: runs no code of its repository"


def _fact(name: str, value: str, style: str, width: int, chars: Characters) -> list[Text]:
    """Return a fact, on as many lines as it needs; none where it is empty."""
    text = chars.line(value, 2000)
    room = max(10, width - 16)
    lines = []
    for piece in _wrapped(text, room):
        lines.append(row_of([(f"   {chars.fit(name, 11)}", "dim"), (piece, style)], width, chars))
        name = ""
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    from rich.console import Console

    console = Console(width=width, color_system=None, force_terminal=False)
    return [line.plain for line in Text(text).wrap(console, width)] if text else []


def _memory(row: Row, worker: WorkerStatus, width: int, chars: Characters) -> list[Text]:
    share = worker.rss_bytes / worker.memory_limit_bytes if worker.memory_limit_bytes else 0.0
    shown = show_share(worker.rss_bytes, worker.memory_limit_bytes)
    full, empty = chars.bar(share, 20)
    past = chars.sparkline(row.seen.memory.get(worker.id, ()), max(0, min(60, width - 56))).lstrip()
    parts = [
        (f"   {chars.fit('memory', 11)}", "dim"),
        (full, load_style(share)),
        (empty, "dim"),
        (f" {chars.fit(shown, 16)}", ""),
        (past, load_style(share)),
    ]
    return [row_of(parts, width, chars)]


def _blank(width: int, chars: Characters) -> Text:
    return row_of([], width, chars)
