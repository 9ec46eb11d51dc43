"""The errors of a worker that is gone, or had to go: how it ended, and its last words."""

from __future__ import annotations

import os
import signal

from wan_compat.protocol.errors import MemoryExceeded, WorkerDied
from wan_compat.protocol.states import WorkerState

TAIL_CHARS = 2000


def died(state: WorkerState, status: int | None, said: str) -> WorkerDied:
    """Return the error of a worker that ended by itself.

    Args:
        status: The wait status, None where nobody told it.
        said: The end of its log.
    """
    tail = said[-TAIL_CHARS:].strip()
    details: dict[str, object] = {"log_tail": tail}
    if status is None:
        how = "ended without a status"
    else:
        code = os.waitstatus_to_exitcode(status)
        details |= {"signal": -code} if code < 0 else {}
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
    return WorkerDied(
        f"the worker {how} while {state.value}" + (f"; its last words: {tail[-600:]}" if tail else ""),
        hint="see what it printed with --worker-log FILE",
        details=details,
    )


def memory_exceeded(state: WorkerState, used: int, limit: int) -> MemoryExceeded:
    """Return the error of one that used more than it may."""
    return MemoryExceeded(
        f"the worker used {used / 1e9:.2f} GB of the {limit / 1e9:.2f} GB allowed while {state.value}",
        fixes=[
            "allow more with --memory-limit",
            "ask for fewer frames or a smaller size",
        ],
        details={"used_bytes": used, "memory_limit_bytes": limit},
    )
