"""What counts as unusual, told by tables of what is seen of a worker; honest work is not."""

from __future__ import annotations

import dataclasses

import pytest

from wan_compat.policies import consumption as c
from wan_compat.policies.consumption import Consumption, Sample

MB = 1 << 20


@dataclasses.dataclass
class Seen:
    """A worker that is looked at every second."""

    watch: Consumption
    now_s: float = 1000.0
    cpu_s: float = 0.0
    used_bytes: int = 500 * MB
    log_bytes: int = 0

    def go(self, seconds: float, *, cores: float = 0.0, grow: int = 0, log: int = 0) -> list[str]:
        """Let time pass, with so much used and written a second; return what was told."""
        told: list[str] = []
        for _ in range(int(seconds)):
            self.now_s += 1
            self.cpu_s += cores
            self.used_bytes += grow
            self.log_bytes += log
            told += self.watch.sample(Sample(self.now_s, self.cpu_s, self.used_bytes, self.log_bytes))
        return told

    def step(self) -> None:
        self.watch.progressed(self.now_s, step=True)


@pytest.fixture
def seen() -> Seen:
    return Seen(Consumption())


def test_minutes_of_work_without_a_word_are_usual_until_they_are_too_many(seen):
    seen.watch.job_began()
    assert seen.go(c.FIRST_QUIET_S - 1, cores=2) == []
    assert seen.go(10, cores=2) == [c.NO_PROGRESS]  # told once
    assert seen.watch.unusual == (c.NO_PROGRESS,)
    seen.watch.progressed(seen.now_s, step=False)
    assert seen.go(10, cores=2) == [] and seen.watch.unusual == ()


def test_once_steps_are_known_a_few_of_them_without_an_end_are_unusual(seen):
    seen.watch.job_began()
    for _ in range(5):
        assert seen.go(20, cores=1) == []
        seen.step()
    assert seen.go(20 * c.QUIET_STEPS, cores=1) == []
    assert seen.go(5, cores=1) == [c.NO_PROGRESS]


def test_quick_steps_leave_at_least_a_minute(seen):
    seen.watch.job_began()
    for _ in range(5):
        seen.go(1, cores=1)
        seen.step()
    assert seen.go(c.LEAST_QUIET_S, cores=1) == []
    assert seen.go(5, cores=1) == [c.NO_PROGRESS]


def test_who_waits_without_computing_is_left_to_the_deadlines(seen):
    seen.watch.job_began()
    assert seen.go(2 * c.FIRST_QUIET_S, cores=0.1) == []


def test_an_idle_worker_has_nothing_to_compute(seen):
    assert seen.go(60, cores=0.05) == []
    assert seen.go(25, cores=1) == [c.BUSY_IDLE]
    seen.watch.job_began()
    assert seen.go(30, cores=1) == []
    seen.watch.job_ended()
    assert seen.go(int(c.IDLE_WINDOW_S), cores=1) == []  # the job's own work does not count
    assert seen.go(5, cores=1) == [c.BUSY_IDLE]


def test_an_idle_worker_has_nothing_to_remember(seen):
    assert seen.go(60, grow=MB // 2) == []
    assert seen.go(60, grow=MB) == [c.GROWS_IDLE]


@pytest.mark.parametrize(
    ("growth_mb", "told"),
    [
        ([100, 100, 100, 100], [c.GROWS_JOBS]),
        ([400, 0, 0, 0, 0, 0], []),  # a cache
        ([100, 100, -50, 100, 100], []),
        ([5, 5, 5, 5, 5, 5], []),  # what allocators keep
        ([300, 9, 9, 9], [c.GROWS_JOBS]),
    ],
)
def test_memory_that_grows_with_every_job_is_unusual(seen, growth_mb, told):
    found = seen.go(1)
    for growth in growth_mb:
        seen.watch.job_began()
        seen.used_bytes += 1000 * MB
        found += seen.go(3)
        seen.used_bytes += (growth - 1000) * MB
        seen.watch.job_ended()
        found += seen.go(2)
    assert found == told


@pytest.mark.parametrize(("growth_mb", "told"), [(40, [c.GROWS_STEPS]), (10, []), (0, [])])
def test_memory_that_grows_with_every_step_is_unusual(seen, growth_mb, told):
    seen.watch.job_began()
    found = []
    for _ in range(12):
        found += seen.go(2, grow=growth_mb // 2 * MB)
        seen.step()
    assert found == told
    seen.watch.job_ended()
    seen.watch.job_began()
    assert seen.go(5) == []


def test_a_flood_of_words_is_unusual_and_a_progress_bar_is_not(seen):
    seen.watch.job_began()
    assert seen.go(30, log=4000) == []
    assert seen.go(1, log=MB // 2) == []  # a long traceback
    assert seen.go(4, log=MB) == [c.FLOODS]
    assert seen.go(10) == [] and seen.watch.unusual == ()


def test_without_processor_times_nothing_is_said_about_them(seen):
    seen.watch.job_began()
    for _ in range(2 * int(c.FIRST_QUIET_S)):
        seen.now_s += 1
        assert seen.watch.sample(Sample(seen.now_s, None, 0, 0)) == ()
