"""Each phase has its time, however it is written; and whatever a worker says of its phase gains it none."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_compat.policies.limits import LEAST_PHASE_S, LONGEST_PHASE_S, Deadlines, deadlines
from wan_compat.policies.phases import (
    ALL_PHASES,
    CONVERSION_PHASES,
    LEAST_PACED_S,
    PACE_FACTOR,
    PHASES,
    PhaseClock,
    parse_conversion_timeouts,
    parse_phase_timeouts,
    phase_timeouts,
    read_all_timeouts,
    read_phase_timeouts,
)
from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.values import FrameSpec, GenerationRequest

GENERATION = ("text_encode", "denoise", "decode")
SAID = st.sampled_from((*GENERATION, "load", "encode", "start_worker", ""))


def clock(**asked: float) -> PhaseClock:
    return PhaseClock(deadlines(weight_bytes=0, timeout_s=None, asked=asked))


def test_every_phase_has_a_least_and_a_request_takes_each():
    assert set(LEAST_PHASE_S) == set(ALL_PHASES) == {*PHASES, *CONVERSION_PHASES}
    request = GenerationRequest(model="m", prompt="p", phase_timeouts=dict.fromkeys(PHASES, 1.0))
    assert set(request.phase_timeouts) == set(PHASES)
    conversion = ConversionRequest(model="m", output="o", phase_timeouts=dict.fromkeys(CONVERSION_PHASES, 1.0))
    assert set(conversion.phase_timeouts) == set(CONVERSION_PHASES)


def test_conversions_have_phases_of_their_own_and_settings_have_both():
    assert parse_conversion_timeouts(["open=2m", "stall=90"]) == {"open": 120.0, "stall": 90.0}
    with pytest.raises(InvalidRequest, match="'denoise' is no phase"):
        parse_conversion_timeouts(["denoise=2m"])
    with pytest.raises(InvalidRequest, match="'convert' is no phase"):
        parse_phase_timeouts(["convert=2m"])
    assert read_all_timeouts("convert=1h, denoise=2h") == {"convert": 3600.0, "denoise": 7200.0}


def test_a_timeout_is_read_as_people_write_it():
    said = {"load": 1200.0, "text_encode": 90.0, "decode": 5400.0}
    assert parse_phase_timeouts(["load=20m", "text-encode=90", " decode = 1.5h "]) == said
    assert read_phase_timeouts("load=20m, text_encode=90s,decode=1.5h,") == said
    assert read_phase_timeouts({"load": "20m", "text_encode": 90, "decode": 5400.0}) == said
    assert parse_phase_timeouts(None) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("load", "no timeout"),
        ("lead=1m", "'lead' is no phase"),
        ("\x1b[31mload=1m", "no phase"),
        ("load=soon", "load: 'soon' is not a length"),
        ("load=0", "not more than 0"),
        ("load=169h", "at most 7 days"),
        ("load=-1", "is not a length"),
    ],
)
def test_what_is_no_timeout_is_named(text, words):
    with pytest.raises(InvalidRequest, match=words) as caught:
        parse_phase_timeouts([text])
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("table", [{"load": True}, {"load": None}, {"load": [1]}, {"load": float("nan")}, {"x": 1}])
def test_what_is_no_length_in_a_table_is_refused(table):
    with pytest.raises(InvalidRequest):
        read_phase_timeouts(table)


def test_a_phase_is_named_once():
    with pytest.raises(InvalidRequest, match="given twice"):
        parse_phase_timeouts(["text-encode=1", "text_encode=2"])


def test_a_job_asks_for_no_more_than_the_settings_and_takes_theirs_where_it_is_silent():
    assert phase_timeouts({"load": 50, "decode": 5}, {"load": 20, "encode": 9}) == {
        "load": 20, "decode": 5, "encode": 9,
    }  # fmt: skip


def test_larger_models_and_videos_get_more_time_and_none_gets_more_than_a_week():
    small = deadlines(weight_bytes=10**9, timeout_s=None, frames=FrameSpec(height=480, width=832, num_frames=17))
    large = deadlines(
        weight_bytes=57 * 10**9, timeout_s=None, frames=FrameSpec(height=720, width=1280, num_frames=81), num_media=2
    )
    for name in ("load_s", "text_encode_s", "decode_s", "encode_tail_s"):
        assert getattr(small, name) < getattr(large, name)
    endless = deadlines(
        weight_bytes=10**15, timeout_s=None, frames=FrameSpec(height=4096, width=4096, num_frames=4001), num_media=8
    )
    assert endless.text_encode_s == endless.decode_s == endless.denoise_s == LONGEST_PHASE_S


def test_what_is_asked_for_goes_before_what_would_be_given():
    asked = deadlines(weight_bytes=0, timeout_s=None, asked={"decode": 1e5, "close": 1.0, "start_worker": 900.0})
    assert asked.cancel_grace_s == 1.0
    assert asked.zygote_s >= 900 and asked.start_worker_s >= 900, "the finer limits are not in its way"
    patient = PhaseClock(asked)
    patient.begin("decode", 0.0)
    assert patient.overdue(99_999.0) is None and patient.overdue(100_001.0) is not None


def test_a_phase_is_overdue_when_its_time_is_over_and_not_while_nothing_is_timed():
    watched = clock(load=10.0)
    assert watched.overdue(1e9) is None
    watched.begin("load", 100.0)
    assert watched.overdue(110.0) is None
    overdue = watched.overdue(110.5)
    assert overdue is not None and (overdue.phase, overdue.limit_s) == ("load", 10.0)
    watched.rest()
    assert watched.overdue(1e9) is None
    watched.begin("load", 200.0)
    assert watched.overdue(205.0) is None, "another order, another attempt: nothing is taken yet"


def test_time_is_charged_to_the_phase_that_it_was_spent_in():
    watched = clock(text_encode=10.0, denoise=10.0, decode=10.0)
    watched.begin("text_encode", 0.0)
    watched.stepped("text_encode", "denoise", 9.0)
    assert watched.overdue(18.0) is None
    watched.stepped("denoise", "decode", 18.0)
    assert watched.overdue(27.0) is None
    watched.stepped("decode", "decode", 27.0)
    assert watched.overdue(27.5) is None
    overdue = watched.overdue(28.5)
    assert overdue is not None and overdue.phase == "decode"


def test_a_step_that_was_not_the_last_after_all_is_charged_to_its_phase():
    watched = clock(denoise=10.0, decode=3.0)
    watched.begin("text_encode", 0.0)
    for moment in (0.0, 2.0, 4.0, 6.0, 8.0, 10.0):  # of a pipeline that does not tell how many it will take
        assert watched.overdue(moment) is None
        watched.stepped("denoise", "decode", moment)
    overdue = watched.overdue(13.5)
    assert overdue is not None and overdue.phase == "decode"
    watched.stepped("denoise", "decode", 10.5)
    overdue = watched.overdue(10.5)
    assert overdue is not None and overdue.phase == "denoise"


@given(
    asked=st.fixed_dictionaries({phase: st.floats(0.1, 100) for phase in GENERATION}),
    said=st.lists(st.tuples(SAID, SAID, st.floats(0, 30))),
)
def test_a_worker_gains_nothing_by_what_it_says(asked, said):
    watched = clock(**asked)
    watched.begin("text_encode", 0.0)
    now = 0.0
    for phase, next_phase, wait_s in said:
        now += wait_s
        if watched.overdue(now) is not None:
            break
        watched.stepped(phase, next_phase, now)
        if watched.overdue(now) is not None:
            break
    assert now <= sum(asked.values()) * (1 + 1e-9) or watched.overdue(now) is not None


@pytest.mark.parametrize("order", ["load", "decode"])
def test_only_a_generation_has_several_phases(order):
    watched = clock(**{order: 5.0})
    watched.begin(order, 0.0)
    for moment in range(5):
        watched.stepped("denoise", "text_encode", float(moment))
    overdue = watched.overdue(5.5)
    assert overdue is not None and overdue.phase == order


def test_the_pace_of_the_first_steps_narrows_once_and_never_widens():
    watched = clock()
    watched.begin("text_encode", 0.0)
    watched.stepped("text_encode", "denoise", 100.0)
    watched.expect("decode", 1.0, 200.0)  # not now
    watched.expect("denoise", 1000.0, 200.0)
    watched.expect("denoise", 1e9, 300.0)  # slower and slower
    limit_s = 100.0 + PACE_FACTOR * 1000.0
    assert watched.overdue(100.0 + limit_s - 1) is None
    overdue = watched.overdue(100.0 + limit_s + 1)
    assert overdue is not None and overdue.limit_s == limit_s


def test_quick_steps_leave_an_hour_and_no_pace_shortens_what_was_asked_for():
    watched = clock()
    watched.begin("text_encode", 0.0)
    watched.stepped("text_encode", "denoise", 0.0)
    watched.expect("denoise", 0.1, 1.0)
    assert watched.overdue(LEAST_PACED_S - 1) is None and watched.overdue(LEAST_PACED_S + 1) is not None
    asked = clock(denoise=86400.0)
    asked.begin("text_encode", 0.0)
    asked.stepped("text_encode", "denoise", 0.0)
    asked.expect("denoise", 0.1, 1.0)
    assert asked.overdue(86399.0) is None


def test_deadlines_of_a_kind_are_those_of_its_fields():
    short = dataclasses.replace(Deadlines(), text_encode_s=1.0)
    watched = PhaseClock(short)
    watched.begin("text_encode", 0.0)
    assert watched.overdue(1.5) is not None


def test_until_a_phase_has_taken_a_step_what_its_first_may_take_bounds_it():
    watched = clock()
    watched.begin("text_encode", 0.0)
    watched.expect_first("denoise", 5000.0)
    watched.stepped("text_encode", "denoise", 100.0)
    assert watched.overdue(5099.0) is None
    overdue = watched.overdue(5101.0)
    assert overdue is not None and (overdue.phase, overdue.limit_s) == ("denoise", 5000.0)
    watched.stepped("denoise", "denoise", 5000.0)
    assert watched.overdue(LONGEST_PHASE_S - 1) is None, "a step is over, and the pace tells the rest"
    watched.begin("text_encode", 0.0)
    watched.stepped("text_encode", "denoise", 100.0)
    assert watched.overdue(5101.0) is None, "another order, for which nothing was expected"


def test_what_the_first_step_may_take_shortens_nothing_that_was_asked_for():
    asked = clock(denoise=86400.0)
    asked.begin("text_encode", 0.0)
    asked.expect_first("denoise", 1.0)
    asked.stepped("text_encode", "denoise", 0.0)
    assert asked.overdue(86399.0) is None
