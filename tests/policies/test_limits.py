"""Limits are explicit, and a job can only narrow them."""

import pytest

from wan_compat.policies.facts import HostFacts
from wan_compat.policies.limits import HOST_SHARE, MIN_MEMORY_BYTES, deadlines, memory_limit
from wan_compat.protocol.errors import MemoryExceeded

HOST = HostFacts(memory_total_bytes=16 << 30, memory_available_bytes=8 << 30, cpu_count=2, is_root=False)


def test_without_a_request_most_of_what_is_free_is_allowed():
    assert memory_limit(None, HOST) == int((8 << 30) * HOST_SHARE)


def test_request_is_taken_as_it_is():
    assert memory_limit(2 << 30, HOST) == 2 << 30


@pytest.mark.parametrize("requested", [17 << 30, MIN_MEMORY_BYTES - 1])
def test_impossible_request_is_refused_with_a_remedy(requested):
    with pytest.raises(MemoryExceeded) as caught:
        memory_limit(requested, HOST)
    assert caught.value.fixes


def test_full_machine_is_refused_before_anything_starts():
    with pytest.raises(MemoryExceeded):
        memory_limit(None, HostFacts(16 << 30, 100 << 20, 2, False))


def test_large_model_gets_time_to_be_read():
    assert deadlines(weight_bytes=57_000_000_000, timeout_s=None).load_s > 2800
    assert deadlines(weight_bytes=0, timeout_s=9.5).total_s == 9.5
