"""The request to stop: seen by a check and by a poll, once, until it is cleared."""

from __future__ import annotations

import select

import pytest

from wan_compat.protocol.errors import JobCancelled
from wan_compat.workers.cancellation import Cancellation


def readable(cancellation: Cancellation) -> bool:
    return bool(select.select([cancellation], [], [], 0)[0])


def test_a_check_passes_until_a_stop_is_requested_and_after_it_is_cleared() -> None:
    cancellation = Cancellation()
    cancellation.check()
    cancellation.request()
    cancellation.request()  # a second one adds nothing that a clear would leave behind
    with pytest.raises(JobCancelled):
        cancellation.check()
    cancellation.clear()
    cancellation.check()


def test_its_descriptor_is_readable_exactly_while_a_stop_is_requested() -> None:
    cancellation = Cancellation()
    assert not readable(cancellation)
    cancellation.request()
    assert readable(cancellation)
    cancellation.clear()
    cancellation.clear()
    assert not readable(cancellation)
