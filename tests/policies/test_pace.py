"""How long the rest takes: robust to a slow first step, to one odd step, and to what a worker may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_compat.policies.pace import Estimate, Pace


def test_a_slow_first_step_counts_only_until_there_is_a_second():
    pace = Pace()
    pace.start("denoise", 100.0)
    assert pace.progress("denoise", 1, 10, 130.0) == Estimate(30.0, 270.0)
    assert pace.progress("denoise", 2, 10, 132.0) == Estimate(2.0, 16.0)


def test_one_odd_step_does_not_move_the_estimate():
    pace = Pace()
    now = 0.0
    for step in range(1, 8):
        now += 60.0 if step == 5 else 1.0
        estimate = pace.progress("denoise", step, 20, now)
    assert estimate == Estimate(1.0, 13.0)


def test_the_last_steps_count_when_a_second_expert_is_slower():
    pace = Pace()
    now = 0.0
    for step in range(1, 30):
        now += 1.0 if step < 15 else 3.0
        estimate = pace.progress("denoise", step, 30, now)
    assert estimate == Estimate(3.0, 3.0)


def test_several_frames_of_one_latent_frame_are_one_step_and_skipped_steps_are_shared_out():
    pace = Pace()
    pace.start("decode", 0.0)
    for now in (1.0, 1.1, 1.2):
        assert pace.progress("decode", 1, 5, now).rate_s == 1.0
    assert pace.progress("decode", 3, 5, 5.0) == Estimate(2.0, 4.0)


def test_a_phase_begins_anew_and_nothing_is_known_at_step_0():
    pace = Pace()
    pace.progress("denoise", 1, 2, 1.0)
    assert pace.progress("decode", 0, 4, 9.0) == Estimate(None, None)
    assert pace.progress("decode", 1, 4, 10.0) == Estimate(1.0, 3.0)
    assert pace.progress("decode", 0, 4, 11.0) == Estimate(None, None)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["denoise", "decode"]), st.integers(0, 2**31), st.integers(0, 2**31), st.floats(0, 1e9)
        )
    )
)
def test_whatever_a_worker_says_the_estimate_is_a_time(said):
    pace = Pace()
    for phase, step, total, now in said:
        estimate = pace.progress(phase, step, total, now)
        assert estimate.rate_s is None or estimate.rate_s >= 0
        assert estimate.eta_s is None or estimate.eta_s >= 0


def test_a_step_that_takes_far_longer_than_those_before_has_stalled():
    pace = Pace()
    pace.start("denoise", 0.0)
    assert pace.stalled_s(1e6) is None, "nobody knows how long a first step takes"
    pace.progress("denoise", 1, 4, 100.0)
    assert pace.stalled_s(1e6) is None
    pace.progress("denoise", 2, 4, 200.0)
    assert pace.stalled_s(200 + 1999.0) is None and pace.stalled_s(200 + 2001.0) == 2001.0
    pace.progress("denoise", 3, 4, 200.1)
    assert pace.stalled_s(200.1 + 2001.0) == pytest.approx(2001.0)
    pace.progress("denoise", 4, 4, 300.0)
    assert pace.stalled_s(1e6) is None, "the first frame may take as long as it likes"


def test_the_length_of_a_phase_is_told_when_its_pace_is_settled():
    pace = Pace()
    pace.start("denoise", 0.0)
    for step, now in enumerate((60.0, 61.0, 62.0), 1):
        pace.progress("denoise", step, 50, now)
    assert pace.whole_s() is None
    pace.progress("denoise", 4, 50, 63.0)
    assert pace.whole_s() == 50.0


def test_quick_steps_may_be_late_by_minutes():
    pace = Pace()
    for step in range(1, 4):
        pace.progress("denoise", step, 9, 0.1 * step)
    assert pace.stalled_s(599.0) is None and pace.stalled_s(700.0) is not None
