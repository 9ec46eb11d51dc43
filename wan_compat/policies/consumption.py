"""What is unusual in how a worker uses the machine. Told while it works, since deadlines and caps end a worker then; an
idle one may be ended for it.

    computes without progress   half a core or more, and no message or frame for FIRST_QUIET_S; once steps are known,
                                for QUIET_STEPS of them (and LEAST_QUIET_S at least)
    computes while idle         nobody asked it for anything
    takes more memory           while idle, with every job, or with every step
    floods its log              faster than any honest program writes for people

Each threshold leaves honest work alone: encoding a prompt with UMT5-XXL or loading 28 GB from a slow disk takes minutes
without a word; the first step allocates; allocators keep a little more after each of the first jobs. What began is told
once, and again only after it had ended.
"""

from __future__ import annotations

import collections
import dataclasses

from wan_compat.policies.pace import KEPT_STEPS, median

BUSY_CORES = 0.5
FIRST_QUIET_S = 600.0
QUIET_STEPS = 6  # deadlines come at 20 (pace.py)
LEAST_QUIET_S = 60.0

IDLE_WINDOW_S = 20.0
IDLE_CORES = 0.2

GROWN_BYTES = 256 << 20  # in all, over the jobs or steps that are looked at
GROWN_EACH_BYTES = 8 << 20  # by each of them: what grows once and stays is a cache
GROWING_JOBS = 4
GROWING_STEPS = 8
GROWN_IDLE_BYTES = 64 << 20

# A progress bar writes some 100 bytes a second; the supervisor reads 1 MiB a second at most (worker_log.py).
FLOOD_BYTES_PER_S = 256 << 10
FLOOD_WINDOW_S = 4.0

NO_PROGRESS = "computes without progress"
BUSY_IDLE = "computes while idle"
GROWS_IDLE = "takes more memory while idle"
GROWS_JOBS = "takes more memory with every job"
GROWS_STEPS = "takes more memory with every step"
FLOODS = "floods its log"


@dataclasses.dataclass(frozen=True)
class Sample:
    """What is seen of a worker from outside at one moment: totals since its start, and its memory now.

    cpu_s: Seconds of processor time, None where they cannot be read.
    """

    now_s: float
    cpu_s: float | None
    used_bytes: int
    log_bytes: int


class Consumption:
    """Follows one worker over its life. All moments are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._idle = True
        self._unusual: tuple[str, ...] = ()
        self._window: collections.deque[Sample] = collections.deque()
        self._quiet_from: Sample | None = None  # the first sample since the last sign of progress
        self._steps_s: collections.deque[float] = collections.deque(maxlen=KEPT_STEPS)
        self._stepped_s: float | None = None
        self._last: Sample | None = None
        self._idle_bytes: int | None = None
        self._after_jobs: collections.deque[int] = collections.deque(maxlen=GROWING_JOBS + 1)
        self._after_steps: collections.deque[int] = collections.deque(maxlen=GROWING_STEPS + 1)

    @property
    def unusual(self) -> tuple[str, ...]:
        """What is unusual now, as of the last sample."""
        return self._unusual

    def job_began(self) -> None:
        """The worker was asked for something."""
        self._idle = False
        self._restart()

    def job_ended(self) -> None:
        """It has nothing to do any more."""
        self._idle = True
        self._restart()

    def progressed(self, now_s: float, *, step: bool) -> None:
        """It said something, or published a frame; `step`: that a step of denoising is over."""
        self._quiet_from = None
        if not step:
            return
        if self._stepped_s is not None:
            self._steps_s.append(now_s - self._stepped_s)
        self._stepped_s = now_s
        if self._last is not None:
            self._after_steps.append(self._last.used_bytes)

    def sample(self, sample: Sample) -> tuple[str, ...]:
        """Look at it once more; return what is unusual now and was not before."""
        self._last = sample
        self._window.append(sample)
        while len(self._window) > 2 and sample.now_s - self._window[1].now_s >= max(IDLE_WINDOW_S, FLOOD_WINDOW_S):
            self._window.popleft()
        if self._quiet_from is None:
            self._quiet_from = sample
        if self._idle and self._idle_bytes is None:
            self._idle_bytes = sample.used_bytes
            self._after_jobs.append(sample.used_bytes)
        found = tuple(
            name
            for name, is_so in (
                (NO_PROGRESS, not self._idle and self._spins(sample)),
                (BUSY_IDLE, self._idle and _cores(self._since(IDLE_WINDOW_S), sample) >= IDLE_CORES),
                (GROWS_IDLE, self._idle and sample.used_bytes - (self._idle_bytes or 0) >= GROWN_IDLE_BYTES),
                (GROWS_JOBS, _grows(self._after_jobs)),
                (GROWS_STEPS, not self._idle and _grows(self._after_steps)),
                (FLOODS, self._floods(sample)),
            )
            if is_so
        )
        new = tuple(name for name in found if name not in self._unusual)
        self._unusual = found
        return new

    def _restart(self) -> None:
        self._window.clear()
        self._quiet_from = self._stepped_s = self._idle_bytes = None
        self._steps_s.clear()
        self._after_steps.clear()

    def _spins(self, now: Sample) -> bool:
        assert self._quiet_from is not None
        longest_s = max(LEAST_QUIET_S, QUIET_STEPS * median(self._steps_s)) if self._steps_s else FIRST_QUIET_S
        return now.now_s - self._quiet_from.now_s >= longest_s and _cores(self._quiet_from, now) >= BUSY_CORES

    def _floods(self, now: Sample) -> bool:
        then = self._since(FLOOD_WINDOW_S)
        return then is not None and now.log_bytes - then.log_bytes >= FLOOD_BYTES_PER_S * (now.now_s - then.now_s)

    def _since(self, window_s: float) -> Sample | None:
        """Return the latest sample that is at least `window_s` old."""
        latest = self._window[-1].now_s
        return next((item for item in reversed(self._window) if latest - item.now_s >= window_s), None)


def _cores(then: Sample | None, now: Sample) -> float:
    """Return how many cores were used in between, 0 where that is not known."""
    if then is None or then.cpu_s is None or now.cpu_s is None or now.now_s <= then.now_s:
        return 0.0
    return (now.cpu_s - then.cpu_s) / (now.now_s - then.now_s)


def _grows(values: collections.deque[int]) -> bool:
    """Whether each of a full row of values is larger than the one before, and all together by much."""
    if len(values) < (values.maxlen or 0):
        return False
    rises = [later - earlier for earlier, later in zip(values, list(values)[1:], strict=False)]
    return min(rises) >= GROWN_EACH_BYTES and sum(rises) >= GROWN_BYTES
