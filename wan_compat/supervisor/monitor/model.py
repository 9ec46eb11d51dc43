"""The monitor's state, and what changes it: keys, statuses, silence and the clock. Pure.

    reduce(state, event) -> (state, orders)

An order leaves only from here, so that what `--read-only`, a gone supervisor and an unanswered question forbid is
forbidden in one place. What is irreversible is asked first, and the question keeps its target: the answer is about what
was asked, whatever the list does meanwhile.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Literal

from wan_compat.protocol.status import MachineStatus, SupervisorStatus
from wan_compat.supervisor.monitor.rows import Condition, Row, Seen, Sort, Target, list_rows

SAMPLE_S = 2.0
SAMPLES = 60  # of history: two minutes
SILENT_AFTER_S = 5.0
GONE_FOR_S = 30.0  # how long a supervisor that ended stays on the screen
MESSAGE_S = 6.0
PAGE_ROWS = 10
MAX_FILTER_CHARS = 60
MAX_SUPERVISORS = 64


class Page(enum.StrEnum):
    LIST = "list"
    DETAILS = "details"
    EVENTS = "events"
    HELP = "help"


@dataclasses.dataclass(frozen=True)
class Order:
    """What a supervisor is asked to do. `target` is a job's or a worker's id."""

    supervisor: str
    verb: Literal["cancel", "kill", "pause", "resume"]
    target: str = ""


@dataclasses.dataclass(frozen=True)
class Message:
    """A line at the bottom for MESSAGE_S seconds."""

    text: str
    is_problem: bool
    until_s: float


@dataclasses.dataclass(frozen=True)
class State:
    """Everything that the screen shows.

    Args:
        index: Where the selected line was last, for when what was selected is gone.
        typing: Whether keys go into `text`, the filter.
        asking: The order that waits for a yes.
        machine: As the supervisor that answered last sees it; `ram` and `vram` are its shares in use, oldest first.
        looked: Whether the supervisors of this user have been looked for at all.
    """

    read_only: bool = False
    supervisors: tuple[Seen, ...] = ()
    looked: bool = False
    selected: Target | None = None
    index: int = 0
    page: Page = Page.LIST
    scroll: int = 0
    sort: Sort = Sort.AGE
    reverse: bool = False
    expanded: bool = False
    text: str = ""
    typing: bool = False
    asking: Order | None = None
    message: Message | None = None
    machine: MachineStatus | None = None
    ram: tuple[float, ...] = ()
    vram: tuple[float, ...] = ()
    sampled_s: float = float("-inf")
    now_s: float = 0.0
    now_unix_s: float = 0.0
    quit: bool = False

    def rows(self) -> tuple[Row, ...]:
        return list_rows(self.supervisors, sort=self.sort, reverse=self.reverse, text=self.text, expanded=self.expanded)

    def seen(self, supervisor: str) -> Seen | None:
        return next((seen for seen in self.supervisors if seen.id == supervisor), None)

    def selected_row(self) -> Row | None:
        if self.selected is None:
            return None
        return next((row for row in self.rows() if row.target == self.selected), None)


@dataclasses.dataclass(frozen=True)
class Found:
    """These supervisors exist now; the others that were known are gone."""

    ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Heard:
    """A supervisor answered."""

    id: str
    status: SupervisorStatus


@dataclasses.dataclass(frozen=True)
class Failed:
    """A supervisor did not answer, or not with what is understood here."""

    id: str
    why: str


@dataclasses.dataclass(frozen=True)
class Answered:
    """How an order ended."""

    text: str
    is_problem: bool = False


@dataclasses.dataclass(frozen=True)
class Pressed:
    key: str


@dataclasses.dataclass(frozen=True)
class Tick:
    """Time passed. The only event that moves the state's clock."""

    now_s: float
    now_unix_s: float


Event = Found | Heard | Failed | Answered | Pressed | Tick


def reduce(state: State, event: Event) -> tuple[State, tuple[Order, ...]]:
    """Return the state after `event`, and the orders to carry out."""
    match event:
        case Pressed(key=key):
            state, orders = _pressed(state, key)
            return _settled(state), orders
        case Tick(now_s=now_s, now_unix_s=now_unix_s):
            return _settled(_passed(dataclasses.replace(state, now_s=now_s, now_unix_s=now_unix_s))), ()
        case Found(ids=ids):
            return _settled(_found(state, ids)), ()
        case Heard(id=id, status=status):
            return _settled(_heard(state, id, status)), ()
        case Failed(id=id, why=why):
            return _changed(state, id, condition=Condition.SILENT, trouble=why), ()
        case Answered(text=text, is_problem=is_problem):
            return _say(state, text, is_problem=is_problem), ()


# -- what is heard -----------------------------------------------------------------------------------------------------


def _found(state: State, ids: tuple[str, ...]) -> State:
    known = {seen.id for seen in state.supervisors}
    kept = []
    for seen in state.supervisors:
        if seen.id not in ids and seen.condition is not Condition.GONE:
            seen = dataclasses.replace(seen, condition=Condition.GONE, trouble="", trouble_s=state.now_s)
        elif seen.id in ids and seen.condition is Condition.GONE:
            seen = dataclasses.replace(seen, condition=Condition.SILENT, heard_s=state.now_s)
        kept.append(seen)
    new = [Seen(id, heard_s=state.now_s) for id in ids if id not in known]
    room = max(0, MAX_SUPERVISORS - len(kept))
    return dataclasses.replace(state, supervisors=(*kept, *new[:room]), looked=True)


def _heard(state: State, id: str, status: SupervisorStatus) -> State:
    if (before := state.seen(id)) is None:
        return state  # not among those that were found: gone since it was asked
    sample = state.now_s - before.sampled_s >= SAMPLE_S
    state = _changed(
        state,
        id,
        status=status,
        heard_s=state.now_s,
        condition=Condition.LIVE,
        trouble="",
        memory=_sampled(before.memory, status) if sample else before.memory,
        sampled_s=state.now_s if sample else before.sampled_s,
    )
    machine = status.machine
    state = dataclasses.replace(state, machine=machine)
    # One line of history for the machine, however many supervisors tell of it.
    if state.now_s - state.sampled_s >= SAMPLE_S:
        ram = (*state.ram, ram_share(machine))[-SAMPLES:]
        vram = (*state.vram, vram_share(machine))[-SAMPLES:]
        state = dataclasses.replace(state, ram=ram, vram=vram, sampled_s=state.now_s)
    return state


def _sampled(memory: Mapping[str, tuple[float, ...]], status: SupervisorStatus) -> Mapping[str, tuple[float, ...]]:
    whole = status.machine.ram_total_bytes
    return {
        worker.id: (*memory.get(worker.id, ()), worker.rss_bytes / max(1, worker.memory_limit_bytes or whole))[
            -SAMPLES:
        ]
        for worker in status.workers
    }


def _passed(state: State) -> State:
    kept = []
    for seen in state.supervisors:
        if seen.condition is Condition.GONE and state.now_s - seen.trouble_s > GONE_FOR_S:
            continue
        if seen.condition is Condition.LIVE and state.now_s - seen.heard_s > SILENT_AFTER_S:
            seen = dataclasses.replace(seen, condition=Condition.SILENT, trouble="")
        kept.append(seen)
    message = state.message if state.message is not None and state.now_s < state.message.until_s else None
    return dataclasses.replace(state, supervisors=tuple(kept), message=message)


def _changed(state: State, id: str, **fields: object) -> State:
    supervisors = tuple(
        dataclasses.replace(seen, **fields) if seen.id == id else seen  # type: ignore[arg-type]
        for seen in state.supervisors
    )
    return dataclasses.replace(state, supervisors=supervisors)


def _say(state: State, text: str, *, is_problem: bool = False) -> State:
    return dataclasses.replace(state, message=Message(text, is_problem, state.now_s + MESSAGE_S))


def ram_share(machine: MachineStatus) -> float:
    return (machine.ram_total_bytes - machine.ram_available_bytes) / max(1, machine.ram_total_bytes)


def vram_share(machine: MachineStatus) -> float:
    return (machine.vram_used_bytes or 0) / max(1, machine.vram_total_bytes or 0)


# -- keys --------------------------------------------------------------------------------------------------------------

_MOVES = {
    **dict.fromkeys(("up", "k"), -1),
    **dict.fromkeys(("down", "j"), 1),
    "page_up": -PAGE_ROWS,
    "page_down": PAGE_ROWS,
    **dict.fromkeys(("home", "g"), -1_000_000),
    **dict.fromkeys(("end", "G"), 1_000_000),
}


def _pressed(state: State, key: str) -> tuple[State, tuple[Order, ...]]:
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
            return _say(dataclasses.replace(state, sort=following), f"workers sorted by {following}"), ()
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
        return _say(state, "nothing is selected"), ()
    seen, status = row.seen, row.seen.status
    if state.read_only:
        return _say(state, "this monitor was started with --read-only: it gives no orders", is_problem=True), ()
    if seen.condition is Condition.GONE:
        return _say(state, f"{seen.id} is gone", is_problem=True), ()
    if status is None:
        return _say(state, f"{seen.id} has not answered yet", is_problem=True), ()
    if status.read_only:
        return _say(state, f"{seen.id} takes no orders: it is read-only", is_problem=True), ()
    if key == "p":
        return state, (Order(seen.id, "resume" if status.paused else "pause"),)
    if key == "c":
        if row.job is None:
            return _say(state, "select a job to cancel it"), ()
        if row.job.state not in ("running", "queued"):
            return _say(state, f"{row.job.id} is over already"), ()
        return dataclasses.replace(state, asking=Order(seen.id, "cancel", row.job.id)), ()
    if row.worker is None:
        return _say(state, "select a worker to kill it"), ()
    return dataclasses.replace(state, asking=Order(seen.id, "kill", row.worker.id)), ()


def _answer(state: State, order: Order, key: str) -> tuple[State, tuple[Order, ...]]:
    if key in ("y", "Y"):
        return _say(dataclasses.replace(state, asking=None), f"{order.verb} {order.target} ..."), (order,)
    if key in ("n", "N", "escape", "q", "enter"):
        return _say(dataclasses.replace(state, asking=None), "nothing was done"), ()
    return state, ()  # neither yes nor no: the question stays


def _settled(state: State) -> State:
    """Keep the selection on something that is there: the same thing, or what now stands in its place."""
    targets = [row.target for row in state.rows() if row.target is not None]
    if not targets:
        return dataclasses.replace(state, selected=None, index=0)
    if state.selected in targets:
        return dataclasses.replace(state, index=targets.index(state.selected))
    index = min(state.index, len(targets) - 1)
    return dataclasses.replace(state, selected=targets[index], index=index)
