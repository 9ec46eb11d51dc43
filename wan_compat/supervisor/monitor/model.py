"""The monitor's state, and the events that change it (reducer.py). Pure values."""

from __future__ import annotations

import dataclasses
import enum
from typing import Literal

from wan_compat.protocol.status import MachineStatus, SupervisorStatus
from wan_compat.supervisor.monitor.rows import Row, Seen, Sort, Target, list_rows

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


def say(state: State, text: str, *, is_problem: bool = False) -> State:
    """Return the state with a message at the bottom."""
    return dataclasses.replace(state, message=Message(text, is_problem, state.now_s + MESSAGE_S))


def ram_share(machine: MachineStatus) -> float:
    return (machine.ram_total_bytes - machine.ram_available_bytes) / max(1, machine.ram_total_bytes)


def vram_share(machine: MachineStatus) -> float:
    return (machine.vram_used_bytes or 0) / max(1, machine.vram_total_bytes or 0)
