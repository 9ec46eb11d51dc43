"""The monitor's reducer: what keys do, and above all what they do not do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest

from tests.supervisor.monitor.statuses import a_job, a_status, a_worker, waiting
from wan_compat.protocol.status import SupervisorStatus
from wan_compat.supervisor.monitor import model
from wan_compat.supervisor.monitor.model import Answered, Failed, Found, Heard, Order, Page, Pressed, State, Tick
from wan_compat.supervisor.monitor.reducer import reduce
from wan_compat.supervisor.monitor.rows import Condition, Sort, Target

JOB, WORKER = Target("aaaa", "job", "j12"), Target("aaaa", "worker", "w1")


def after(state: State, *events: model.Event) -> State:
    for event in events:
        state, orders = reduce(state, event)
        assert orders == ()
    return state


def watching(*statuses: SupervisorStatus, **fields: bool) -> State:
    statuses = statuses or (a_status(),)
    heard = [Heard(status.id, status) for status in statuses]
    return after(State(**fields), Tick(100.0, 1e9), Found(tuple(status.id for status in statuses)), *heard)


def press(state: State, keys: Iterable[str]) -> tuple[State, list[Order]]:
    given = []
    for key in keys:
        state, orders = reduce(state, Pressed(key))
        given += orders
    return state, given


def on(state: State, target: Target) -> State:
    return dataclasses.replace(state, selected=target)


# -- orders ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "keys", "orders"),
    [
        (JOB, "cy", [Order("aaaa", "cancel", "j12")]),
        (WORKER, "cy", [Order("aaaa", "cancel", "j12")]),
        (Target("aaaa", "job", "j14"), "cY", [Order("aaaa", "cancel", "j14")]),
        (WORKER, "xy", [Order("aaaa", "kill", "w1")]),
        (JOB, "xy", [Order("aaaa", "kill", "w1")]),
        (Target("aaaa", "supervisor", "aaaa"), "p", [Order("aaaa", "pause")]),
        (JOB, "p", [Order("aaaa", "pause")]),
        (JOB, "cn", []),
        (JOB, "cjjqxy", [Order("aaaa", "kill", "w1")]),  # j moves nothing meanwhile, q is a no; then another question
        (Target("aaaa", "supervisor", "aaaa"), "cyxy", []),
        (Target("aaaa", "worker", "w2"), "cy", []),  # idle: it has no job
        (Target("aaaa", "job", "j11"), "cy", []),  # over already
        (Target("aaaa", "job", "j13"), "xy", []),  # waits: it has no worker
    ],
)
def test_orders_are_given_for_what_is_selected_and_after_a_yes(target: Target, keys: str, orders: list[Order]) -> None:
    assert press(on(watching(), target), keys)[1] == orders


def test_a_question_takes_nothing_but_yes_and_no() -> None:
    state, given = press(on(watching(), JOB), ["c", "j", "x", "p", "/", "?", "7", "down"])
    assert (given, state.asking, state.selected) == ([], Order("aaaa", "cancel", "j12"), JOB)


def test_a_question_keeps_its_target_when_the_list_moves() -> None:
    state, _ = press(on(watching(), JOB), "c")
    state = after(state, Heard("aaaa", a_status(running=(), queued=(), queued_count=0)))
    assert state.selected != JOB
    assert press(state, "y")[1] == [Order("aaaa", "cancel", "j12")]


def test_a_paused_supervisor_is_resumed() -> None:
    assert press(watching(a_status(paused=True)), "p")[1] == [Order("aaaa", "resume")]


@pytest.mark.parametrize("keys", ["cy", "xy", "p"])
def test_read_only_gives_no_orders(keys: str) -> None:
    for state in (watching(read_only=True), watching(a_status(read_only=True))):
        assert press(on(state, JOB), keys)[1] == []
        state, _ = press(on(state, JOB), keys[0])
        assert state.asking is None
        assert state.message is not None
        assert "read-only" in state.message.text


def test_nobody_gives_orders_to_what_is_gone_or_was_never_heard() -> None:
    gone = after(watching(), Found(()))
    silent = after(State(), Tick(1.0, 1e9), Found(("bbbb",)))
    assert press(gone, ["c", "y", "p"])[1] == press(silent, ["c", "y", "p"])[1] == []


@pytest.mark.parametrize("key", ["q", "interrupt"])
def test_quits(key: str) -> None:
    assert press(watching(), [key])[0].quit


def test_q_is_text_while_a_filter_is_typed_and_a_no_to_a_question() -> None:
    assert press(watching(), "/q")[0].text == "q"
    assert not press(watching(), "/q")[0].quit
    assert not press(on(watching(), JOB), "cq")[0].quit


# -- the list ----------------------------------------------------------------------------------------------------------


def ids(state: State) -> list[str]:
    return [row.target.id for row in state.rows() if row.target is not None]


def test_the_list_has_workers_with_their_jobs_then_what_waits_then_what_ended() -> None:
    assert ids(watching()) == ["aaaa", "w1", "j12", "w2", "j13", "j14", "j11"]


def test_a_running_job_without_a_worker_is_listed() -> None:
    assert ids(watching(a_status(workers=())))[:2] == ["aaaa", "j12"]


def test_long_queues_are_cut_and_counted_until_expanded() -> None:
    status = a_status(queued=tuple(waiting(f"j{number}") for number in range(20, 60)), queued_count=900)
    rows = watching(status).rows()
    assert [row.text for row in rows if row.kind == "remark"] == ["895 more waiting"]
    rows = press(watching(status), "e")[0].rows()
    assert sum(row.kind == "waiting" for row in rows) == 40
    assert [row.text for row in rows if row.kind == "remark"] == ["860 more waiting"]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (Sort.AGE, ["w1", "w2", "w3"]),
        (Sort.MEMORY, ["w3", "w1", "w2"]),
        (Sort.CPU, ["w2", "w1", "w3"]),
        (Sort.ETA, ["w1", "w2", "w3"]),
        (Sort.MODEL, ["w3", "w2", "w1"]),
    ],
)
def test_workers_are_sorted(sort: Sort, order: list[str]) -> None:
    workers = (
        a_worker("w1", rss_bytes=5, cpu_percent=50.0, model="/m/Zeta", started_unix_s=1.0),
        a_worker("w2", rss_bytes=4, cpu_percent=90.0, model="/m/beta", started_unix_s=2.0, job=None),
        a_worker("w3", rss_bytes=9, cpu_percent=None, model="/m/Alpha", started_unix_s=3.0, job=None),
    )
    state = watching(a_status(workers=workers))
    while state.sort is not sort:
        state, _ = press(state, "s")
    assert [id for id in ids(state) if id.startswith("w")] == order
    assert [id for id in ids(press(state, "r")[0]) if id.startswith("w")] == order[::-1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("KITE", ["aaaa", "j14"]),
        ("fox", ["aaaa", "w1", "j12", "j11"]),
        ("4721", ["aaaa", "w2"]),
        ("idle", ["aaaa", "w2"]),
        ("not_found", ["aaaa", "j11"]),
        ("app.py", ["aaaa", "w1", "j12", "w2", "j13", "j14", "j11"]),
        ("nothing like it", []),
    ],
)
def test_a_filter_keeps_what_matches_and_where_it_belongs(text: str, found: list[str]) -> None:
    state, _ = press(watching(), ["/", *text, "enter"])
    assert (ids(state), state.typing) == (found, False)
    state, _ = press(state, ["escape"])
    assert len(ids(state)) == 7


def test_a_filter_is_edited_and_bounded() -> None:
    assert press(watching(), ["/", "a", "b", "backspace"])[0].text == "a"
    assert press(watching(), ["/", "a", "clear", "b"])[0].text == "b"
    assert len(press(watching(), ["/", *"x" * 500])[0].text) == model.MAX_FILTER_CHARS
    state, _ = press(watching(), ["/", "a", "escape"])
    assert (state.text, state.typing) == ("", False)


def test_the_selection_moves_and_stays_within_the_list() -> None:
    state = watching()
    assert state.selected == Target("aaaa", "supervisor", "aaaa")
    assert press(state, ["k", "up", "page_up"])[0].selected == state.selected
    assert press(state, ["j", "down"])[0].selected == JOB
    assert press(state, ["G", "j"])[0].selected == Target("aaaa", "job", "j11")
    assert press(state, ["end", "g"])[0].selected == state.selected


def test_the_selection_stays_with_its_job_while_lines_come_and_go() -> None:
    state = on(watching(), Target("aaaa", "job", "j13"))
    state = after(state, Heard("aaaa", a_status(workers=(), running=(a_job("j13"),), queued=(), queued_count=0)))
    assert state.selected == Target("aaaa", "job", "j13")
    state = after(state, Heard("aaaa", a_status(workers=(), running=(), queued=(), queued_count=0)))
    assert state.selected is not None
    assert state.selected in [row.target for row in state.rows()]


def test_pages_open_and_close() -> None:
    state = watching()
    for keys, page in (("?", Page.HELP), ("h", Page.HELP), ("v", Page.EVENTS), (["enter"], Page.DETAILS)):
        opened, _ = press(state, keys)
        assert opened.page is page
        assert press(opened, keys)[0].page is Page.LIST
        assert press(opened, ["escape"])[0].page is Page.LIST
    events, _ = press(state, ["v", "j", "j", "j", "G"])
    assert (events.scroll, events.selected) == (1, state.selected)  # two events: the last one is the furthest


# -- time and silence --------------------------------------------------------------------------------------------------


def condition(state: State) -> list[tuple[str, Condition]]:
    return [(seen.id, seen.condition) for seen in state.supervisors]


def test_who_does_not_answer_is_silent_until_heard_again() -> None:
    state = after(watching(), Tick(100.0 + model.SILENT_AFTER_S + 0.1, 1e9))
    assert condition(state) == [("aaaa", Condition.SILENT)]
    assert condition(after(state, Heard("aaaa", a_status()))) == [("aaaa", Condition.LIVE)]
    state = after(watching(), Failed("aaaa", "speaks version 9"))
    assert (state.supervisors[0].condition, state.supervisors[0].trouble) == (Condition.SILENT, "speaks version 9")


def test_who_is_gone_is_shown_for_a_while_and_then_dropped() -> None:
    state = after(watching(a_status(), a_status("bbbb")), Found(("bbbb",)))
    assert condition(state) == [("aaaa", Condition.GONE), ("bbbb", Condition.LIVE)]
    assert ids(state)[:2] == ["aaaa", "bbbb"]  # its workers are no more
    state = after(state, Heard("bbbb", a_status("bbbb")), Tick(101.0 + model.GONE_FOR_S, 1e9))
    assert [seen.id for seen in state.supervisors] == ["bbbb"]


def test_a_late_answer_of_who_was_dropped_does_not_bring_it_back() -> None:
    state = after(State(), Tick(1.0, 1e9), Found(()), Heard("aaaa", a_status()))
    assert state.supervisors == ()


def test_history_is_sampled_at_a_pace_and_bounded() -> None:
    state = watching()
    for step in range(1000):
        state = after(state, Tick(100.0 + step / 2, 1e9), Heard("aaaa", a_status()))
        assert len(state.ram) <= model.SAMPLES
    assert len(state.ram) == model.SAMPLES
    assert {len(past) for past in state.supervisors[0].memory.values()} == {model.SAMPLES}
    state = after(watching(), *[Heard("aaaa", a_status())] * 10)
    assert len(state.ram) == 1
    state = after(state, Tick(200.0, 1e9), Heard("aaaa", a_status(workers=())))
    assert state.supervisors[0].memory == {}


def test_supervisors_are_bounded() -> None:
    state = after(State(), Tick(1.0, 1e9), Found(tuple(f"s{number}" for number in range(500))))
    assert len(state.supervisors) == model.MAX_SUPERVISORS


def test_answers_to_orders_are_shown_for_a_while() -> None:
    state = after(watching(), Answered("j12 was asked to stop"))
    assert state.message is not None
    assert after(state, Tick(100.1 + model.MESSAGE_S, 1e9)).message is None
