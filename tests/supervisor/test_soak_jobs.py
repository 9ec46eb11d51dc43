"""The short form of `make soak`'s second part, and its own judgement of orders."""

from __future__ import annotations

import pytest

from tests.soak_jobs import soak_jobs, wrong_order
from wan_compat.protocol.status import JobStatus


def test_jobs_that_are_cancelled_killed_hung_and_flooded_end_as_they_must():
    assert soak_jobs(16, 2, seed=1) == []


@pytest.mark.parametrize(
    ("order", "wrong"),
    [
        ("1a 2b 3a", None),
        ("1a 3a 2b", "two turns"),
        ("2a 1a", "came first"),
        ("1a 2a! 3b", "higher priority"),
        ("2a! 1a 3b", None),
        ("1a 2a", None),
    ],
)
def test_a_wrong_order_is_seen(order, wrong):
    jobs = [
        JobStatus(
            id=f"j{word[0]}",
            state="done",
            model="m",
            group=word[1],
            priority=word.count("!"),
            started_unix_s=float(place),
        )
        for place, word in enumerate(order.split(), 1)
    ]
    found = wrong_order(jobs)
    assert (wrong is None and not found) or wrong in found[0]
