"""What each event makes of the state: keys, statuses, silence and the clock. Pure.

reduce(state, event) -> (state, orders)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wan_compat.protocol.status import SupervisorStatus
from wan_compat.supervisor.monitor.commands import pressed
from wan_compat.supervisor.monitor.model import (
    GONE_FOR_S,
    MAX_SUPERVISORS,
    SAMPLE_S,
    SAMPLES,
    SILENT_AFTER_S,
    Answered,
    Event,
    Failed,
    Found,
    Heard,
    Order,
    Pressed,
    State,
    Tick,
    ram_share,
    say,
    vram_share,
)
from wan_compat.supervisor.monitor.rows import Condition, Seen


def reduce(state: State, event: Event) -> tuple[State, tuple[Order, ...]]:
    """Return the state after `event`, and the orders to carry out."""
    match event:
        case Pressed(key=key):
            state, orders = pressed(state, key)
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
            return say(state, text, is_problem=is_problem), ()


def _settled(state: State) -> State:
    """Keep the selection on something that is there: the same thing, or what now stands in its place."""
    targets = [row.target for row in state.rows() if row.target is not None]
    if not targets:
        return dataclasses.replace(state, selected=None, index=0)
    if state.selected in targets:
        return dataclasses.replace(state, index=targets.index(state.selected))
    index = min(state.index, len(targets) - 1)
    return dataclasses.replace(state, selected=targets[index], index=index)


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
