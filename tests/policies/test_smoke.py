"""What a smoke test judges by: frames, memory over runs, and speed against earlier runs."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_compat.policies.performance import compare
from wan_compat.policies.smoke import NOISE_BYTES, FrameStatistics, benchmark_of, judge_frames, judge_memory

GOOD = FrameStatistics((5, 64, 96, 3), "uint8", finite=True, lowest=3, highest=250, spread=20, change=4)
MB = 1_000_000


@pytest.mark.parametrize(
    ("changed", "wanted", "errors", "warnings"),
    [
        ({}, (5, 64, 96, 3), [], []),
        ({}, None, [], []),
        ({}, (9, 64, 96, 3), ["5x64x96x3, 9x64x96x3 was asked for"], []),
        ({}, (5, 96, 64, 3), ["5x64x96x3, 5x96x64x3"], []),
        ({"finite": False}, None, ["NaN"], []),
        ({"spread": 0.0, "lowest": 0, "highest": 0}, None, ["black throughout"], []),
        ({"spread": 0.0, "lowest": 128, "highest": 128}, None, ["of one colour throughout"], []),
        ({"change": 0.0}, None, [], ["the same picture"]),
        ({"change": 0.0, "shape": (1, 64, 96, 3)}, None, [], []),
    ],
)
def test_frames_are_judged_by_shape_finiteness_and_variance(changed, wanted, errors, warnings):
    wrong, odd = judge_frames(dataclasses.replace(GOOD, **changed), wanted)
    assert len(wrong) == len(errors) and all(part in text for part, text in zip(errors, wrong, strict=True)), wrong
    assert len(odd) == len(warnings) and all(part in text for part, text in zip(warnings, odd, strict=True)), odd


@pytest.mark.parametrize(
    ("samples", "leaks", "leak_mb"),
    [
        ([500, 500, 500, 500, 500], False, 0),
        ([100, 500, 500, 500], False, 0),  # caches fill in the first run
        ([500, 530, 500, 530, 505], False, None),  # an allocator's ups and downs
        ([500, 600, 700, 800, 900], True, 100),
        ([500, 600, 2000, 800, 900], True, None),  # one odd run hides nothing
        ([900, 700, 500, 300], False, 0),
        ([500, 560], False, 0),  # two runs show no direction
        ([500], False, 0),
    ],
)
def test_what_grows_with_each_run_is_a_leak_and_noise_is_none(samples, leaks, leak_mb):
    result = judge_memory(max(samples) * MB, [sample * MB for sample in samples])
    assert result.leaks is leaks, result
    assert result.samples == samples and result.after_mb == samples[-1] and result.peak_mb == max(samples)
    assert leak_mb is None or result.leak_mb == pytest.approx(leak_mb)


@given(st.lists(st.integers(10**8, 10**8 + NOISE_BYTES), min_size=1, max_size=20))
def test_what_stays_within_an_allocators_noise_is_never_a_leak(samples):
    assert not judge_memory(max(samples), samples).leaks


def test_a_benchmark_is_of_the_quickest_run():
    result = benchmark_of([4.0, 2.0, 3.0], steps=4, num_frames=8)
    assert (result.seconds, result.seconds_per_step, result.frames_per_second) == (2.0, 0.5, 4.0)
    assert result.baseline is None and result.regression is None


@pytest.mark.parametrize(
    ("seconds", "earlier", "regression"),
    [
        (10.0, [], None),
        (10.0, [1.0, 1.0], None),  # too few to know
        (1.3, [1.0, 1.0, 1.0], True),
        (1.2, [1.0, 1.0, 1.0], False),  # less than a quarter
        (1.3, [0.7, 1.0, 1.3, 1.4, 0.6], False),  # this machine does that
        (3.0, [0.9, 1.0, 1.1, 9.0], True),  # one slow day is no baseline
        (0.1, [1.0, 1.0, 1.0], False),
        (1.0, [0.0, 0.0, 0.0], None),
    ],
)
def test_only_what_is_slower_than_its_like_is_a_regression(seconds, earlier, regression):
    comparison = compare(seconds, earlier)
    assert comparison.is_regression is bool(regression), comparison
    assert (comparison.baseline is None) is (regression is None)
