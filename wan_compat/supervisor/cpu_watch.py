"""What a process does, as its kernel tells: processor time, waits for a disk, and how busy several were lately."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from wan_compat.policies.stillness import Signs

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MOST_THREADS = 256  # that are looked at: how many there are is the process' own choice


def cpu_seconds(pid: int) -> float | None:
    """Return the processor time of a process and its threads so far, None where the kernel does not tell (any more)."""
    return signs_of(pid).cpu_s


def signs_of(pid: int, *, threads: bool = False) -> Signs:
    """Return what shows whether a process works. `threads`: look at what they wait for, too."""
    fields = _stat(f"/proc/{pid}/stat")
    if fields is None:
        return Signs(None)
    return Signs(
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        faults=int(fields[9]),
        at_work=threads and (fields[0] == b"R" or _waits_for_disk(pid)),
    )


def _waits_for_disk(pid: int) -> bool:
    """Whether a thread sleeps where no signal reaches it, which is how the kernel lets it wait for a disk."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")[:_MOST_THREADS]
    except OSError:
        return False
    stats = (_stat(f"/proc/{pid}/task/{thread}/stat") for thread in threads)
    return any(fields is not None and fields[0] == b"D" for fields in stats)


def _stat(path: str) -> list[bytes] | None:
    """Return the fields from the third on: 0 is the state, 9 major faults, 11 and 12 processor time in ticks."""
    try:
        with open(path, "rb") as file:
            content = file.read(4096)
    except OSError:
        return None
    # The name, in parentheses, is the process' own choice: fields are counted behind it (man 5 proc_pid_stat).
    fields = content.rpartition(b")")[2].split()
    return fields if len(fields) > 12 else None


class CpuMeter:
    """Tells how busy processes were since the look before, in percent of one core."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}

    def percents(self, pids: Iterable[int]) -> dict[int, float]:
        """Return the share of each process that was there at the last look too."""
        now, found = time.monotonic(), {}
        seen, self._seen = self._seen, {}
        for pid in pids:
            used = cpu_seconds(pid)
            if used is None:
                continue
            self._seen[pid] = (used, now)
            if pid in seen and now > seen[pid][1]:
                found[pid] = min(10_000.0, max(0.0, 100.0 * (used - seen[pid][0]) / (now - seen[pid][1])))
        return found
