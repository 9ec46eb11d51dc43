"""How much a job may use and how long each of its phases may take. A job can narrow these, never widen them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from wan_compat.policies.facts import HostFacts
from wan_compat.protocol.errors import MemoryExceeded

# Left to the rest of the machine: the supervisor, ffmpeg, the page cache that loading needs.
HOST_SHARE = 0.85
MIN_MEMORY_BYTES = 768 << 20  # the libraries alone need about 400 MB
_SHARED_BYTES = 400 << 20  # of what a worker seems to use: the libraries' pages, which it shares with its zygote

# A worker reads weights at no less than this from the slowest disk we plan for.
SLOWEST_DISK_BYTES_PER_S = 20e6


@dataclasses.dataclass(frozen=True)
class Deadlines:
    """Seconds, from the start of each phase; `total_s` from submit. `silence_s`: longest gap between answers."""

    zygote_s: float = 180.0
    start_worker_s: float = 60.0  # a light zygote's worker imports torch in it: 5 s, 15 s on a busy machine
    load_s: float = 600.0
    generate_s: float = 7 * 86400.0
    encode_tail_s: float = 300.0
    cancel_grace_s: float = 5.0
    stop_grace_s: float = 2.0
    silence_s: float = 60.0
    total_s: float | None = None


def share(host: HostFacts, *, workers: int, ours: Iterable[int] = ()) -> HostFacts:
    """Return what one of several workers may count on: an equal part of the memory and of the cores.

    Args:
        workers: How many run at once.
        ours: Bytes that each living worker of this supervisor is seen to use. What they use is not lost: together with
            what is free, it is what is shared.
    """
    used = sum(max(0, number - _SHARED_BYTES) for number in ours)
    return dataclasses.replace(
        host,
        memory_available_bytes=min(host.memory_total_bytes, host.memory_available_bytes + used) // workers,
        cpu_count=max(1, host.cpu_count // workers),
    )


def memory_limit(requested: int | None, host: HostFacts) -> int:
    """Return the worker's memory cap in bytes.

    Raises:
        MemoryExceeded: What was asked is not there, or too little to import the libraries.
    """
    ceiling = int(host.memory_available_bytes * HOST_SHARE)
    if requested is None:
        limit = ceiling
    elif requested > host.memory_total_bytes:
        raise MemoryExceeded(
            f"--memory-limit asks for {requested / 1e9:.1f} GB, the machine has {host.memory_total_bytes / 1e9:.1f} GB",
            hint="leave --memory-limit out to use what is free",
        )
    else:
        limit = requested
    if limit < MIN_MEMORY_BYTES:
        raise MemoryExceeded(
            f"a worker needs at least {MIN_MEMORY_BYTES / 1e6:.0f} MB, {limit / 1e6:.0f} MB are allowed",
            hint=f"raise --memory-limit to {MIN_MEMORY_BYTES >> 20}MiB or more, free memory, or use fewer workers",
        )
    return limit


def deadlines(*, weight_bytes: int, timeout_s: float | None) -> Deadlines:
    """Return the deadlines of a job: loading gets time for its bytes, the whole gets what the user allows."""
    return Deadlines(load_s=120.0 + weight_bytes / SLOWEST_DISK_BYTES_PER_S, total_s=timeout_s)
