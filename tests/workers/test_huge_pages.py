"""Collapsing the zygote's memory: harmless where it works, silent where it does not."""

from __future__ import annotations

import pytest

from tests.workers.inside import in_torch_process


@pytest.mark.long
@in_torch_process
def test_memory_is_the_same_after_it_was_collapsed() -> None:
    import os
    import sys

    from wan_compat.workers.huge_pages import collapse_own_memory

    content = [os.urandom(1 << 20) for _ in range(32)]
    before = [hash(part) for part in content]
    collapsed = sum(collapse_own_memory())
    assert collapsed >= 0  # nothing at all before Linux 6.1
    assert [hash(bytes(bytearray(part))) for part in content] == before
    assert len(os.listdir("/proc/self/task")) == 1
    assert "torch" in sys.modules
