"""What keys do to the state, and which orders they give. Pure.

An order leaves only from here, so that what `--read-only`, a gone supervisor and an unanswered question forbid is
forbidden in one place. What is irreversible is asked first, and the question keeps its target: the answer is about what
was asked, whatever the list does meanwhile.
"""

from __future__ import annotations

import dataclasses

from wan_compat.supervisor.monitor.model import MAX_FILTER_CHARS, PAGE_ROWS, Order, Page, State, say
from wan_compat.supervisor.monitor.rows import Condition, Sort

_MOVES = {
    **dict.fromkeys(("up", "k"), -1),
    **dict.fromkeys(("down", "j"), 1),
    "page_up": -PAGE_ROWS,
    "page_down": PAGE_ROWS,
    **dict.fromkeys(("home", "g"), -1_000_000),
    **dict.fromkeys(("end", "G"), 1_000_000),
}


def pressed(state: State, key: str) -> tuple[State, tuple[Order, ...]]:
    """Return the state after a key (keys.py has their names), and the orders that it gives."""
    if key == "interrupt":
        return dataclasses.replace(state, quit=True), ()
    if state.asking is not None:
        return _answer(state, state.asking, key)
    if state.typing:
        return _typed(state, key), ()
    state = dataclasses.replace(state, message=None)
    if key in _MOVES:
        return _moved(state, _MOVES[key]), ()
    match key:
        case "q":
            return dataclasses.replace(state, quit=True), ()
        case "?" | "h":
            return _turned(state, Page.HELP), ()
        case "v":
            return _turned(state, Page.EVENTS), ()
        case "enter":
            return (_turned(state, Page.DETAILS) if state.selected is not None else state), ()
        case "escape":
            if state.page is not Page.LIST:
                return dataclasses.replace(state, page=Page.LIST, scroll=0), ()
            return dataclasses.replace(state, text=""), ()
        case "/":
            return dataclasses.replace(state, page=Page.LIST, scroll=0, typing=True), ()
        case "s":
            sorts = list(Sort)
            following = sorts[(sorts.index(state.sort) + 1) % len(sorts)]
            return say(dataclasses.replace(state, sort=following), f"workers sorted by {following}"), ()
        case "r":
            return dataclasses.replace(state, reverse=not state.reverse), ()
        case "e":
            return dataclasses.replace(state, expanded=not state.expanded), ()
        case "p" | "c" | "x":
            return _ordered(state, key)
        case _:
            return state, ()


def _turned(state: State, page: Page) -> State:
    """Open a page, or close it where it is open."""
    return dataclasses.replace(state, page=Page.LIST if state.page is page else page, scroll=0)


def _moved(state: State, by: int) -> State:
    if state.page is Page.EVENTS:
        last = max(0, sum(len(seen.status.notes) for seen in state.supervisors if seen.status) - 1)
        return dataclasses.replace(state, scroll=min(max(0, state.scroll + by), last))
    if state.page is Page.HELP:
        return state
    targets = [row.target for row in state.rows() if row.target is not None]
    if not targets:
        return state
    index = targets.index(state.selected) if state.selected in targets else state.index
    index = min(max(0, index + by), len(targets) - 1)
    return dataclasses.replace(state, selected=targets[index], index=index)


def _typed(state: State, key: str) -> State:
    match key:
        case "enter":
            return dataclasses.replace(state, typing=False)
        case "escape":
            return dataclasses.replace(state, typing=False, text="")
        case "backspace":
            return dataclasses.replace(state, text=state.text[:-1])
        case "clear":
            return dataclasses.replace(state, text="")
        case _ if len(key) == 1 and len(state.text) < MAX_FILTER_CHARS:
            return dataclasses.replace(state, text=state.text + key)
        case _ if key in ("up", "down"):
            return _moved(state, _MOVES[key])
        case _:
            return state


def _ordered(state: State, key: str) -> tuple[State, tuple[Order, ...]]:
    row = state.selected_row()
    if row is None:
        return say(state, "nothing is selected"), ()
    seen, status = row.seen, row.seen.status
    if state.read_only:
        return say(state, "this monitor was started with --read-only: it gives no orders", is_problem=True), ()
    if seen.condition is Condition.GONE:
        return say(state, f"{seen.id} is gone", is_problem=True), ()
    if status is None:
        return say(state, f"{seen.id} has not answered yet", is_problem=True), ()
    if status.read_only:
        return say(state, f"{seen.id} takes no orders: it is read-only", is_problem=True), ()
    if key == "p":
        return state, (Order(seen.id, "resume" if status.paused else "pause"),)
    if key == "c":
        if row.job is None:
            return say(state, "select a job to cancel it"), ()
        if row.job.state not in ("running", "queued"):
            return say(state, f"{row.job.id} is over already"), ()
        return dataclasses.replace(state, asking=Order(seen.id, "cancel", row.job.id)), ()
    if row.worker is None:
        return say(state, "select a worker to kill it"), ()
    return dataclasses.replace(state, asking=Order(seen.id, "kill", row.worker.id)), ()


def _answer(state: State, order: Order, key: str) -> tuple[State, tuple[Order, ...]]:
    if key in ("y", "Y"):
        return say(dataclasses.replace(state, asking=None), f"{order.verb} {order.target} ..."), (order,)
    if key in ("n", "N", "escape", "q", "enter"):
        return say(dataclasses.replace(state, asking=None), "nothing was done"), ()
    return state, ()  # neither yes nor no: the question stays
