"""Who gets another worker after how many deaths in a row."""

from __future__ import annotations

import pytest

from wan_compat.policies.restarts import (
    FORGET_S,
    GIVE_UP_AFTER,
    LONGEST_REST_S,
    Allowed,
    Deaths,
    Refused,
)


def after(*moments_s: float) -> Deaths:
    deaths = Deaths()
    for moment in moments_s:
        deaths = deaths.after(f"died at {moment:g}", moment)
    return deaths


@pytest.mark.parametrize(
    ("count", "verdict"),
    [
        (0, Allowed()),
        (1, Allowed()),
        (2, Allowed()),
        (3, Allowed(1.0)),
        (4, Allowed(2.0)),
        (5, Allowed(4.0)),
        (6, Refused(400.0, 6, "died at 100")),
        (7, Refused(700.0, 7, "died at 100")),
        (8, Refused(1300.0, 8, "died at 100")),
        (10, Refused(3700.0, 10, "died at 100")),
        (100_000, Refused(3700.0, 100_000, "died at 100")),
    ],
)
def test_deaths_in_a_row_cost_nothing_then_pauses_then_rests(count, verdict):
    deaths = Deaths(count, 100.0, "died at 100")
    assert deaths.verdict(100.0) == verdict


def test_a_pause_is_counted_from_the_death():
    assert after(1, 2, 3).verdict(3.25) == Allowed(0.75)
    assert after(1, 2, 3).verdict(10) == Allowed(0.0)


def test_after_a_rest_there_is_one_more_try_and_another_death_makes_the_rest_longer():
    deaths = after(*range(GIVE_UP_AFTER))
    assert isinstance(deaths.verdict(100), Refused)
    assert deaths.verdict(400) == Allowed()
    refused = deaths.after("again", 401).verdict(402)
    assert isinstance(refused, Refused) and refused.until_s == 401 + 600


def test_deaths_of_long_ago_are_forgotten():
    assert after(1, 2, 3, 4).verdict(5 + FORGET_S) == Allowed()
    assert after(1, 2, 3, 4, 5 + FORGET_S).count == 1
    given_up = Deaths(100, 0.0, "x")
    assert given_up.after("y", LONGEST_REST_S + 1).count == 101
    assert given_up.after("y", LONGEST_REST_S + FORGET_S + 1).count == 1
