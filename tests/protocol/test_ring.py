"""Ring arithmetic follows from the job alone."""

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_compat.protocol.errors import CorruptFrame
from wan_compat.protocol.ring import RING_BYTES, RingLayout, pack_doorbell, unpack_doorbell
from wan_compat.protocol.values import MAX_SIDE, FrameSpec


@given(st.integers(1, MAX_SIDE), st.integers(1, MAX_SIDE), st.integers(0, 10_000))
def test_every_frame_of_every_allowed_size_lies_inside_the_ring(height, width, index):
    layout = RingLayout(FrameSpec(height=height, width=width, num_frames=5))
    offset = layout.offset(index)
    assert offset % mmap.PAGESIZE == 0
    assert offset >= 0 and offset + layout.frame.frame_bytes <= layout.ring_bytes <= RING_BYTES


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_doorbell_numbers_survive(job, number):
    assert unpack_doorbell(pack_doorbell(job, number)) == (job, number)


@pytest.mark.parametrize("data", [b"", b"1234567", b"123456789", b"x" * 4096])
def test_doorbell_packet_of_another_size_is_corrupt(data):
    with pytest.raises(CorruptFrame):
        unpack_doorbell(data)
