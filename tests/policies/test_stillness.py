"""A worker is still when nothing shows that it works; a slow machine, a disk or a busy GPU is no stillness."""

from __future__ import annotations

import dataclasses

import pytest

from wan_compat.policies import stillness as s
from wan_compat.policies.limits import LEAST_PHASE_S
from wan_compat.policies.stillness import Signs, Stillness

LONGEST_S = LEAST_PHASE_S["stall"]


@dataclasses.dataclass
class Seen:
    """A worker that is looked at every second; it answers pings, which takes a little."""

    watch: Stillness = dataclasses.field(default_factory=Stillness)
    now_s: float = 1000.0
    signs: Signs = dataclasses.field(default_factory=lambda: Signs(cpu_s=40.0, faults=900))

    def go(self, seconds: float, *, cores: float = 0.0005, faults: float = 0.0, at_work: bool = False) -> float | None:
        """Let time pass; return for how long it was still as soon as that is too long."""
        waited = 0.0
        for _ in range(int(seconds)):
            self.now_s += 1
            waited += faults
            cpu_s = None if self.signs.cpu_s is None else self.signs.cpu_s + cores
            self.signs = Signs(cpu_s, self.signs.faults + int(waited), at_work)
            waited -= int(waited)
            if (still_s := self.watch.look(self.now_s, self.signs, LONGEST_S)) is not None:
                return still_s
        return None


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_a_worker_that_only_answers_is_still_after_five_minutes(seen):
    assert seen.go(LONGEST_S) is None
    assert seen.go(2) == pytest.approx(LONGEST_S + 1)


@pytest.mark.parametrize(
    "work",
    [
        {"cores": 1.0},
        {"cores": 0.02},  # on a machine with fifty others
        {"faults": 1.0},  # swaps, or reads weights from a disk of 20 kB/s
        {"at_work": True},  # waits for a disk or for a core
    ],
)
def test_whatever_shows_work_is_no_stillness(seen, work):
    assert seen.go(10 * LONGEST_S, **work) is None


def test_work_that_ends_begins_the_count(seen):
    seen.go(1000, cores=2.0)
    assert seen.go(LONGEST_S - 1) is None
    seen.go(1, at_work=True)
    assert seen.go(LONGEST_S - 1) is None
    seen.watch.moved()
    assert seen.go(LONGEST_S) is None
    assert seen.go(10) is not None


def test_time_in_which_nobody_looked_is_not_held_against_it(seen):
    """The supervisor was stopped, or busy with a disk of its own."""
    seen.go(10)
    seen.now_s += 10 * LONGEST_S
    assert seen.go(LONGEST_S - 10 - s.LONGEST_LOOK_S - 1) is None


@pytest.mark.parametrize("cpu_s", [None, 0.0])
def test_without_processor_time_to_go_by_nothing_is_called_still(seen, cpu_s):
    seen.signs = Signs(cpu_s)
    assert seen.go(10 * LONGEST_S, cores=0.0) is None


def test_the_count_is_the_same_for_every_length():
    """What tests and users set is no other rule: an idle thread that wakes up for each ping stays below it."""
    for longest_s in (3.0, 30.0, 3600.0):
        watch, cpu_s = Stillness(), 1.0
        found = None
        for second in range(1, int(3 * longest_s)):
            cpu_s += 0.0004
            found = found or watch.look(float(second), Signs(cpu_s), longest_s)
        assert found is not None
