"""A worker that was ordered to compute and does nothing: it waits for what never comes, and would do so for days.

    work     processor time, pages from a disk, a thread that waits for a disk, a main thread that waits for its turn
             on a core, a GPU that computes; a message, a frame
    still    nothing of it for as long as a stall may last

All of it is seen from outside. A slow machine shows work, however little gets done; a deadlock shows none. What spins
is no stall here: that is bounded by the phase's time (phases.py). A worker can pretend to work by working, which gains
it what an honest one has.
"""

from __future__ import annotations

import dataclasses

# Less than this share of a core is what a worker needs to answer a ping a second (0.03 percent where it was measured):
# over the five minutes that a stall may last, 1.5 seconds.
STILL_CORES = 0.005
# Pages a second that it had to wait for; a few come back from swap whenever a thread wakes up to answer.
STILL_FAULTS_PER_S = 0.2
# Between two looks no more counts: whoever does not look, because it was stopped or busy, does not know.
LONGEST_LOOK_S = 5.0


@dataclasses.dataclass(frozen=True)
class Signs:
    """What is seen of a worker at one moment.

    cpu_s: Seconds of processor time since its start; None where they cannot be read, and then it is never called still.
    faults: Pages that it had to wait for since then.
    at_work: A thread waits for a disk, the main one for its turn on a core, or its GPU computes.
    """

    cpu_s: float | None
    faults: int = 0
    at_work: bool = False


class Stillness:
    """Follows one worker. All moments are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._since: Signs | None = None  # the last sign of work
        self._looked_s = self._still_s = 0.0

    def moved(self) -> None:
        """It said something, has nothing to do, or waits for us."""
        self._since = None

    def look(self, now_s: float, signs: Signs, longest_s: float) -> float | None:
        """Look once more; return for how long it has been still, if that is longer than it may."""
        if self._since is None or _worked(self._since, signs, longest_s):
            self._since, self._still_s = signs, 0.0
        else:
            self._still_s += min(max(0.0, now_s - self._looked_s), LONGEST_LOOK_S)
        self._looked_s = now_s
        return self._still_s if self._still_s > longest_s else None


def _worked(then: Signs, now: Signs, longest_s: float) -> bool:
    # A kernel that counts no processor time (some containers' do not) says 0 for ever.
    if not now.cpu_s or then.cpu_s is None or now.at_work:
        return True
    faults = max(1.0, STILL_FAULTS_PER_S * longest_s)
    return now.cpu_s - then.cpu_s >= STILL_CORES * longest_s or now.faults - then.faults >= faults
