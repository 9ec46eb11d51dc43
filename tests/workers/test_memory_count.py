"""Counted memory: exact where it can be known, phase by phase, and without a trace in the numbers."""

from __future__ import annotations

import pytest

from tests.workers import plans
from tests.workers.inside import in_torch_process


@pytest.mark.long
@in_torch_process
def test_live_and_peak_bytes_are_those_of_the_tensors() -> None:
    import torch

    from wan_compat.workers.memory_count import MemoryCount

    weight = torch.ones(1000)
    with MemoryCount() as count:
        count.phase("one")
        a = torch.zeros(1000)
        b = a + 1
        view = weight.view(10, 100).t()
        assert count.live_bytes == 8000 and view.shape == (100, 10)
        del b
        assert count.live_bytes == 4000
        b = a * 2
        count.phase("two")
        del a, b
        c = torch.zeros(10)
        c.add_(1)
        count.end_phase()
        assert count.live_bytes == 40
    assert count.peaks == {"one": 8000, "two": 8000}


@in_torch_process
def test_residents_count_tied_weights_once_and_mapped_ones_not_at_all() -> None:
    import diffusers
    import torch

    from wan_compat.workers.file_weights import lay_out
    from wan_compat.workers.memory_count import resident_bytes

    first = torch.nn.Linear(10, 10, bias=False)
    second = torch.nn.Linear(10, 10, bias=False)
    second.weight = first.weight
    assert resident_bytes([first, second]) == 400
    mapped, _ = lay_out(diffusers.WanTransformer3DModel, plans.folder("t2v", "transformer"), torch.float32, "cpu")
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in mapped.buffers())
    assert resident_bytes([mapped]) == buffers


@in_torch_process
def test_counting_changes_no_frame() -> None:
    import torch

    from wan_compat.workers.memory_count import MemoryCount

    made = plans.pipeline()
    expected = plans.frames(made)
    with MemoryCount([made.transformer]) as count:
        count.phase("all")
        counted = plans.frames(made)
        count.end_phase()
    assert torch.equal(counted, expected)
    assert count.peaks["all"] > expected.numel() * 4
