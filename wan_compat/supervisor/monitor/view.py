"""The screen as lines: a pure function of the state, the size of the terminal and its characters.

     wan-compat monitor  2 supervisors  3 workers  2 running  14 waiting            14:03:22
     RAM  ██████████░░░░░░░░░░ 14.2/25.3 GB ▁▂▃▅▆▇             load 3.2 on 16 cores
       WORKER  PID     STATE ...                                                    <- list, scrolls with the selection
     ── events ──────────────────────────────────────────────────────────────
     14:03:12 ...
     j/k select  enter details ...                                                  <- or a question, or a message

Only the sixteen colours that every terminal has, and nothing is told by colour alone: what is red says so in words too.
Each line has exactly the width of the terminal, whatever a prompt or a path contains.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from wan_compat.supervisor.monitor import list_view, pages
from wan_compat.supervisor.monitor.characters import Characters, show_clock, show_share
from wan_compat.supervisor.monitor.model import Order, Page, State, ram_share, vram_share
from wan_compat.supervisor.monitor.rows import Condition
from wan_compat.supervisor.monitor.styles import Line, load_style, row_of

SMALLEST = (20, 4)  # columns and lines; below it only that is said


def render(state: State, width: int, height: int, chars: Characters) -> list[Text]:
    """Return `height` lines of `width` cells."""
    if width < SMALLEST[0] or height < SMALLEST[1]:
        return _filled([row_of([("too small", "")], width, chars)], width, height, chars)
    top = [_title(state, width, chars)]
    if height >= 10:
        top += _machine(state, width, chars)
    bottom = [_footer(state, width, chars)]
    room = height - len(top) - len(bottom)
    match state.page:
        case Page.HELP:
            middle = pages.help_page(width, room, chars, scroll=state.scroll)
        case Page.DETAILS:
            middle = pages.details_page(state, width, room, chars)
        case Page.EVENTS:
            middle = pages.events_page(state, width, room, chars)
        case Page.LIST:
            events = 0 if height < 16 else min(5, max(3, height // 5)) if height < 30 else height // 4
            middle = list_view.list_lines(state, width, room - events, chars)
            if events:
                middle = _filled(middle, width, room - events, chars)
                middle += [rule("events", width, chars), *pages.event_lines(state, width, chars)[: events - 1]]
    return _filled([*top, *middle], width, height - len(bottom), chars) + bottom


def render_once(state: State, width: int, chars: Characters) -> list[Text]:
    """Return everything once, as many lines as it takes: for `--once`, where nothing scrolls and no key is read."""
    lines = [_title(state, width, chars), *_machine(state, width, chars)]
    lines += list_view.list_lines(state, width, 100_000, chars)
    if events := pages.event_lines(state, width, chars):
        lines += [rule("events", width, chars), *events[:20]]
    return lines


def rule(title: str, width: int, chars: Characters) -> Text:
    start = f" {chars.rule * 2} {title} "
    return row_of([(start, "dim"), (chars.rule * max(0, width - len(start) - 1), "dim")], width, chars)


def _title(state: State, width: int, chars: Characters) -> Text:
    statuses = [seen.status for seen in state.supervisors if seen.status and seen.condition is not Condition.GONE]
    there = sum(seen.condition is not Condition.GONE for seen in state.supervisors)
    parts: Line = [(" wan-compat monitor", "bold cyan"), ("  ", "")]
    parts.append((_count(there, "supervisor"), ""))
    if statuses:
        parts.append((f"  {_count(sum(len(status.workers) for status in statuses), 'worker')}", ""))
        parts.append((f"  {sum(len(status.running) for status in statuses)} running", ""))
        parts.append((f"  {sum(status.queued_count for status in statuses)} waiting", ""))
    right: Line = [("  READ-ONLY", "yellow")] if state.read_only else []
    right.append((f"  {show_clock(state.now_unix_s)} ", "dim"))
    return row_of(parts, width, chars, right)


def _machine(state: State, width: int, chars: Characters) -> list[Text]:
    machine = state.machine
    if machine is None:
        return [row_of([], width, chars)]
    bar = max(10, min(40, width // 4))
    history = min(60, max(0, width - bar - 48))
    lines = []
    used = show_share(machine.ram_total_bytes - machine.ram_available_bytes, machine.ram_total_bytes)
    load = f"  load {min(machine.load_1, 9999):.1f} on {_count(machine.cpu_count, 'core')} "
    right: Line = [(load, "dim")] if width >= 64 else []
    lines.append(row_of(_gauge("RAM ", ram_share(machine), used, state.ram, bar, history, chars), width, chars, right))
    if machine.vram_total_bytes:
        shown = show_share(machine.vram_used_bytes or 0, machine.vram_total_bytes)
        lines.append(row_of(_gauge("VRAM", vram_share(machine), shown, state.vram, bar, history, chars), width, chars))
    return lines


def _gauge(
    name: str, share: float, shown: str, past: Sequence[float], bar: int, history: int, chars: Characters
) -> Line:
    full, empty = chars.bar(share, bar)
    return [
        (f" {name} ", "bold"),
        (full, load_style(share)),
        (empty, "dim"),
        (f" {chars.fit(shown, 13)} ", ""),
        (chars.sparkline(past, history), load_style(share)),
    ]


def _footer(state: State, width: int, chars: Characters) -> Text:
    if state.asking is not None:
        return row_of(
            [(f" {_question(state, state.asking, chars)}  y yes, n no ", "bold")], width, chars, style="reverse"
        )
    if state.typing:
        return row_of([(" / ", "bold"), (chars.line(state.text), ""), ("_", "reverse")], width, chars)
    if state.message is not None:
        style = "bold red" if state.message.is_problem else "green"
        return row_of([(f" {chars.line(state.message.text)}", style)], width, chars)
    if state.page is not Page.LIST:
        moves = {Page.DETAILS: (("j k", "next"),), Page.EVENTS: (("j k", "scroll"),)}.get(state.page, ())
        return row_of(_keys((("esc", "back"), *moves, ("q", "quit"))), width, chars)
    orders = () if state.read_only else (("c", "cancel"), ("x", "kill"), ("p", "pause"))
    sort = (("s", "sort"),) if width >= 90 else ()
    if state.text:
        # Always in sight: who forgot a filter would believe that the rest is gone.
        shown = chars.line(state.text)
        badge: Line = [(f" filter: {chars.fit(shown, min(cell_len(shown), 30))} ", "bold yellow")]
        return row_of(badge + _keys((("esc", "shows all"), *orders, ("/", "change"))), width, chars)
    names = (("j k", "select"), ("enter", "details"), *orders, ("/", "filter"), *sort, ("?", "help"), ("q", "quit"))
    return row_of(_keys(names), width, chars)


def _keys(names: Sequence[tuple[str, str]]) -> Line:
    parts: Line = []
    for key, does in names:
        parts += [(f" {key}", "bold cyan"), (f" {does} ", "")]
    return parts


def _question(state: State, order: Order, chars: Characters) -> str:
    seen = state.seen(order.supervisor)
    where = f" of {order.supervisor}" if len(state.supervisors) > 1 else ""
    if order.verb == "kill":
        job = None
        if seen is not None and seen.status is not None:
            job = next((worker.job for worker in seen.status.workers if worker.id == order.target), None)
        return f"Kill worker {order.target}{where}{f' in the middle of {job}' if job else ''}?"
    prompt = ""
    if seen is not None and seen.status is not None:
        jobs = (*seen.status.running, *seen.status.queued)
        prompt = next((job.label or job.prompt for job in jobs if job.id == order.target), "")
    return f"Cancel {order.target}{where}{f' ({chars.line(prompt, 30)})' if prompt else ''}?"


def _filled(lines: list[Text], width: int, height: int, chars: Characters) -> list[Text]:
    return (lines + [row_of([], width, chars)] * (height - len(lines)))[:height]


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
