"""The order of waiting jobs: priority, then groups in turn, then who came first."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_compat.policies.queue import FairOrder

# Items are "<group><number>"; a digit before a colon is their priority.
TABLE = [
    ("", ""),
    ("a1 a2 a3", "a1 a2 a3"),
    ("a1 a2 a3 b1 b2", "a1 b1 a2 b2 a3"),
    ("a1 a2 b1 c1 a3", "a1 b1 c1 a2 a3"),
    ("a1 5:a2 a3 9:a4", "a4 a2 a1 a3"),
    ("a1 5:a2 5:b1 5:a3 b2", "a2 b1 a3 a1 b2"),
    ("-3:a1 0:b1 -3:b2 a2", "b1 a2 a1 b2"),
]


def filled(words: str) -> FairOrder[str]:
    order: FairOrder[str] = FairOrder()
    for word in words.split():
        priority, _, item = word.rpartition(":")
        order.add(item, priority=int(priority or 0), group=item[0])
    return order


def taken(order: FairOrder[str]) -> list[str]:
    found = []
    while (item := order.take()) is not None:
        found.append(item)
    return found


@pytest.mark.parametrize(("waiting", "expected"), TABLE)
def test_order_is_priority_then_groups_in_turn_then_first_come(waiting, expected):
    order = filled(waiting)
    assert list(order) == expected.split()
    assert taken(order) == expected.split()
    assert len(order) == 0


def test_a_thousand_jobs_of_one_group_delay_the_first_of_another_by_one():
    order = filled(" ".join(f"a{number}" for number in range(1000)))
    order.take()
    order.add("b", group="b")
    assert [order.take(), order.take()] == ["a1", "b"]


def test_a_group_that_comes_back_waits_its_turn():
    order = filled("a1 b1 b2")
    assert order.take() == "a1"
    order.add("a2", group="a")  # the group was gone: it stands behind b
    assert taken(order) == ["b1", "a2", "b2"]


def test_what_is_removed_is_not_taken_and_leaves_no_gap():
    order = filled("a1 a2 b1 5:a3")
    assert order.remove("a3") and order.remove("a1")
    assert not order.remove("a1") and "a1" not in order
    assert taken(order) == ["a2", "b1"]


def test_ten_thousand_jobs_are_taken_in_no_time():
    order = filled(" ".join(f"a{number}" for number in range(10_000)))
    began = time.process_time()
    assert len(taken(order)) == 10_000
    assert time.process_time() - began < 5  # tenths; with time per item that grows with their number, minutes


@given(st.lists(st.tuples(st.integers(-2, 2), st.sampled_from("abc"), st.booleans()), max_size=60))
def test_what_is_listed_is_what_comes(steps):
    order: FairOrder[int] = FairOrder()
    for number, (priority, group, take) in enumerate(steps):
        order.add(number, priority=priority, group=group)
        if take:
            expected = next(iter(order))
            assert order.take() == expected
    listed = list(order)
    assert len(listed) == len(order)
    assert taken(order) == listed
