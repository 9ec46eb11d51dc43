"""How much processor time a process has used, and how busy several were between two looks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float | None:
    """Return the processor time of a process and its threads so far, None where the kernel does not tell (any more)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            content = file.read(4096)
    except OSError:
        return None
    # The name, in parentheses, is the process' own choice: utime and stime are the 12th and 13th field behind it
    # (man 5 proc_pid_stat).
    fields = content.rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S if len(fields) > 12 else None


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
