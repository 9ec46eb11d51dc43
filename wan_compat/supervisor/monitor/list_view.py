"""The list of the monitor: one line for each supervisor, worker and job."""

from __future__ import annotations

import dataclasses

from rich.cells import cell_len
from rich.text import Text

from wan_compat.protocol.status import JobStatus
from wan_compat.supervisor.monitor.characters import (
    Characters,
    model_name,
    show_length,
    show_rate,
    show_share,
    show_size,
)
from wan_compat.supervisor.monitor.model import State
from wan_compat.supervisor.monitor.rows import Condition, Row, Seen, Sort
from wan_compat.supervisor.monitor.styles import PROBLEM, TRUST, WARNING, Line, load_style, row_of

EMPTY = (
    "No supervisor of yours is running.",
    "",
    "One appears here as soon as it has had a job. For example",
    "",
    '    wan-compat generate path/to/model --prompt "a red fox" --output fox.mp4',
    "    wan-compat batch run prompts.jsonl --model path/to/model --out folder",
    "    wan-compat serve",
    "",
    "or a program of yours that uses wan_compat.Supervisor.",
    "Those of other users are not listed.",
)
PHASES = {
    "start_worker": "starting",
    "load": "loading",
    "text_encode": "prompt",
    "denoise": "denoise",
    "decode": "decode",
    "encode": "encode",
    "open": "opening",
    "convert": "writing",
}
_ACTIVITY = {"busy": "green", "idle": "", "starting": "cyan", "ending": "yellow"}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Widths for this width of the terminal, each with the space after it. What has no room has width 0."""

    width: int
    tier: int
    model: int
    memory_bar: int
    memory: int
    history: int
    vram: int
    step_bar: int
    program: int

    @staticmethod
    def of(width: int) -> Columns:
        tier = 5 if width >= 100 else 2
        bar = 9 if width >= 76 else 0
        history = 0 if width < 96 else min(41, (width - 88) // 2)
        vram = 8 if width >= 112 else 0
        model = width - _FIXED - tier - bar - _MEMORY - history - vram
        steps, program = (10 if width < 100 else 20), max(20, width - 52)
        return Columns(width, tier, max(0, model), bar, _MEMORY, history, vram, steps, program)


_ID, _PID, _STATE, _MODE, _CPU, _MEMORY = 6, 8, 9, 6, 6, 13
_FIXED = 2 + _ID + _PID + _STATE + _MODE + _CPU


def list_lines(state: State, width: int, height: int, chars: Characters) -> list[Text]:
    """Return at most `height` lines: the heading and the part of the list around the selection."""
    rows = state.rows()
    if not rows:
        return _nothing(state, width, chars)[: max(0, height)]
    columns = Columns.of(width)
    lines = [_heading(state, columns, width, chars)] if height > 4 else []
    room = max(1, height - len(lines))
    place = next((index for index, row in enumerate(rows) if row.target == state.selected), 0)
    first = min(max(0, place - room // 2), max(0, len(rows) - room))
    airy = len(rows) + len(state.supervisors) <= room
    for row in rows[first : first + room]:
        if airy and row.kind == "supervisor" and row is not rows[0]:
            lines.append(row_of([], width, chars))
        lines.append(_row(row, state, columns, width, chars))
    return lines


def _nothing(state: State, width: int, chars: Characters) -> list[Text]:
    if not state.looked:
        return [row_of([(" Looking for supervisors ...", "dim")], width, chars)]
    if state.text:
        text = f"Nothing matches {chars.line(state.text)!r}. Esc shows everything again."
        return [row_of([], width, chars), row_of([(f"  {text}", "")], width, chars)]
    return [row_of([], width, chars), *(row_of([(f"  {line}", "")], width, chars) for line in EMPTY)]


def _heading(state: State, columns: Columns, width: int, chars: Characters) -> Text:
    names = (
        ("ID", _ID),
        ("PID", _PID),
        ("STATE", _STATE),
        ("MODE", _MODE),
        ("TIER" if columns.tier > 2 else "T", columns.tier),
        ("MODEL", columns.model),
        ("  CPU", _CPU),
        ("MEMORY", columns.memory_bar + columns.memory),
        ("", columns.history),
        ("   VRAM", columns.vram),
    )
    text = "".join(chars.fit(name, size) for name, size in names).rstrip()
    sorted_by = f" by {state.sort}{chars.up if state.reverse else ''} "
    is_news = state.sort is not Sort.AGE or state.reverse
    return row_of([(f"  {text}", "dim")], width, chars, [(sorted_by, "yellow")] if is_news else None)


def _row(row: Row, state: State, columns: Columns, width: int, chars: Characters) -> Text:
    parts, right = _parts(row, state, columns, width, chars)
    if row.target is None or row.target != state.selected:
        if row.seen.condition is not Condition.LIVE:
            parts = [(text, "dim") for text, _ in parts]
        return row_of([(" ", ""), *parts], width, chars, right)
    # The mark as well as the colours turned round: one of both is seen on every terminal. Of the colours only red
    # stays, or the line would be a row of patches.
    kept = [(text, look if "red" in look else "bold" if "bold" in look else "") for text, look in [*parts, *right]]
    cut = len(parts)
    return row_of([(chars.pointer, "bold"), *kept[:cut]], width, chars, kept[cut:], style="reverse")


def _parts(row: Row, state: State, columns: Columns, width: int, chars: Characters) -> tuple[Line, Line]:
    match row.kind:
        case "supervisor":
            return _supervisor(row.seen, state, columns, chars)
        case "worker":
            return _worker(row, columns, chars), []
        case "running":
            return _running(row, columns, chars), []
        case "waiting":
            return _waiting(row, chars), []
        case "ended":
            return _ended(row, chars), []
        case "remark":
            return [(f"   {chars.ellipsis} {row.text}  (e lists all)", "dim")], []


def _supervisor(seen: Seen, state: State, columns: Columns, chars: Characters) -> tuple[Line, Line]:
    status = seen.status
    parts: Line = [(seen.id, "bold cyan")]
    right: Line = []
    if seen.condition is Condition.GONE:
        right = [("  gone", WARNING)]
    elif status is None and seen.trouble:
        return [*parts, (f"  {chars.line(seen.trouble)}", PROBLEM)], []
    elif seen.condition is Condition.SILENT or (status is None and state.now_s - seen.heard_s > 2):
        right = [(f"  no answer for {show_length(max(0.0, state.now_s - seen.heard_s))} ", PROBLEM)]
    if status is None:
        return [*parts, ("  was asked" if not right else "", "")], right
    program = chars.line(status.program)
    parts.append((f"  {chars.fit(program, min(cell_len(program), columns.program))}", "bold"))
    if seen.trouble:
        return [*parts, (f"  {chars.line(seen.trouble)}", PROBLEM)], right
    for is_so, word, style in (
        (status.mode == "trust", "TRUST", TRUST),
        (status.paused, "PAUSED", "bold yellow"),
        (status.draining, "DRAINING", "yellow"),
        (status.serves, "serves", "cyan"),
        (status.read_only, "read-only", "dim"),
    ):
        if is_so:
            parts.append((f"  {word}", style))
    if seen.condition is not Condition.SILENT:
        if columns.history and seen.condition is Condition.LIVE:
            right.append((f"  {len(status.workers)}/{status.max_workers} workers", ""))
        if seen.condition is Condition.LIVE:
            right.append((f"  {_many(status.queued_count)} waiting", ""))
        right.append((f"  {_many(status.done_count)} done", "green" if status.done_count else ""))
        right.append((f"  {_many(status.failed_count)} failed ", PROBLEM if status.failed_count else ""))
    pid = f"  pid {status.pid}"
    if sum(cell_len(text) for text, _ in [*parts, *right]) + len(pid) < columns.width:
        parts.append((pid, "dim"))
    return parts, right


def _worker(row: Row, columns: Columns, chars: Characters) -> Line:
    worker = row.worker
    assert worker is not None
    share = worker.rss_bytes / worker.memory_limit_bytes if worker.memory_limit_bytes else 0.0
    cpu = "" if worker.cpu_percent is None else f"{worker.cpu_percent:.0f}%"
    model = chars.line(model_name(worker.model))
    parts: Line = [
        (" ", ""),
        (_cell(chars, chars.line(worker.id), _ID), ""),
        (_cell(chars, str(worker.pid), _PID), "dim"),
        (_cell(chars, worker.activity, _STATE), _ACTIVITY.get(worker.activity, "")),
        (_cell(chars, "TRUST" if worker.mode == "trust" else "safe", _MODE), TRUST if worker.mode == "trust" else ""),
        (_cell(chars, worker.tier, columns.tier), ""),
        (_cell(chars, model, columns.model), ""),
        (chars.fit(cpu, _CPU - 1, right=True) + " ", ""),
    ]
    if columns.memory_bar:
        full, empty = chars.bar(share, columns.memory_bar - 1)
        parts += [(full, load_style(share)), (empty, "dim"), (" ", "")]
    parts.append((_cell(chars, show_share(worker.rss_bytes, worker.memory_limit_bytes), columns.memory), ""))
    if columns.history:
        past = row.seen.memory.get(worker.id, ())
        parts.append((chars.sparkline(past, columns.history - 1) + " ", load_style(share)))
    if columns.vram:
        shown = "" if worker.vram_bytes is None else show_size(worker.vram_bytes)
        parts.append((chars.fit(shown, columns.vram - 1, right=True), ""))
    return parts


def _cell(chars: Characters, text: str, width: int) -> str:
    """Return the text and at least one space after it."""
    return chars.fit(text, width - 1) + " " if width > 0 else ""


def _running(row: Row, columns: Columns, chars: Characters) -> Line:
    job, worker = row.job, row.worker
    assert job is not None
    parts: Line = [
        (f"  {chars.branch} ", "dim"),
        (_cell(chars, chars.line(job.id), 6), "bold"),
        (_cell(chars, PHASES.get(job.phase, chars.line(job.phase)), 9), "cyan"),
    ]
    if job.total:
        full, empty = chars.bar(job.step / job.total, columns.step_bar)
        parts += [(full, "blue"), (empty, "dim"), (" " + _cell(chars, f"{job.step}/{job.total}", 8), "")]
        parts.append((_cell(chars, show_rate(job.rate_s), 10), ""))
        parts.append((_cell(chars, f"{show_length(job.eta_s)} left" if job.eta_s is not None else "", 11), ""))
    if job.num_videos > 1:
        parts.append((f"video {job.video + 1}/{job.num_videos}  ", ""))
    if job.attempt > 1:
        parts.append((f"attempt {job.attempt}  ", WARNING))
    if worker is not None and worker.unusual:
        parts.append((f"! {chars.line(worker.unusual[0], 60)}  ", WARNING))
    parts.append((_words(job, chars), ""))
    return parts


def _waiting(row: Row, chars: Characters) -> Line:
    job = row.job
    assert job is not None
    parts: Line = [
        (f"  {chars.dot} ", "dim"),
        (_cell(chars, chars.line(job.id), 6), ""),
        (_cell(chars, f"waits #{row.place}", 12), "dim"),
    ]
    if job.priority:
        parts.append((f"priority {job.priority}  ", "yellow" if job.priority > 0 else "dim"))
    if job.mode == "trust":
        parts.append(("TRUST  ", TRUST))
    if job.group:
        parts.append((f"{chars.line(job.group, 16)}  ", "dim"))
    parts.append((_words(job, chars), ""))
    return parts


def _ended(row: Row, chars: Characters) -> Line:
    job = row.job
    assert job is not None
    mark, style = {
        "done": (chars.done, "green"),
        "failed": (chars.failed, PROBLEM),
    }.get(job.state, (chars.cancelled, WARNING))
    took = job.ended_unix_s - job.started_unix_s if job.ended_unix_s and job.started_unix_s else None
    parts: Line = [
        (f"  {mark} ", style),
        (_cell(chars, chars.line(job.id), 6), "dim"),
        (_cell(chars, job.state, 11), style),
        (_cell(chars, show_length(None if took is None else max(0.0, took)), 9), "dim"),
    ]
    if job.state == "failed":
        parts.append((f"{chars.line(job.error_code or '', 40)}  ", style))
    parts.append((_words(job, chars), "dim"))
    return parts


def _words(job: JobStatus, chars: Characters) -> str:
    """Return what a person knows the job by."""
    return chars.line(job.label or job.prompt or job.output or model_name(job.model))


def _many(count: int) -> str:
    return str(count) if count < 1_000_000 else ">999999"
