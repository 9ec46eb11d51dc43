"""How much of a GPU torch may take, in torch's unit: a part of the whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from wan_compat.workers import gpu

# torch is imported by the tests that need it: every process of a test run collects this file.
GB = 1 << 30
CONTEXT = gpu._CONTEXT_BYTES


@pytest.mark.parametrize(
    ("limit", "total", "expected"),
    [
        (12 * GB + CONTEXT, 24 * GB, 0.5),
        (24 * GB, 24 * GB, 1 - CONTEXT / (24 * GB)),
        (80 * GB, 24 * GB, 1.0),
        (256 << 20, 24 * GB, 1 / (24 * GB)),
    ],
)
def test_fraction_is_the_limits_part_of_the_gpu_with_room_for_what_torch_does_not_count(limit, total, expected):
    assert gpu.memory_fraction(limit, total) == expected


def test_every_gpu_gets_the_fraction_of_its_own_size(monkeypatch):
    import torch

    told: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=(index + 1) * 24 * GB)
    )
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, index: told.append((fraction, index))
    )
    gpu.limit_memory(12 * GB + CONTEXT)
    assert told == [(0.5, 0), (0.25, 1)]
    gpu.limit_memory(None)
    assert len(told) == 2


def test_without_a_gpu_there_is_nothing_to_limit(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    gpu.limit_memory(GB)
