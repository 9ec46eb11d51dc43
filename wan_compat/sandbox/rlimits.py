"""Resource limits of the process: what the kernel counts per process, and in tier B its only hard cap on memory.

RLIMIT_DATA bounds memory where there is no cgroup: since Linux 4.7 it counts every private writable mapping, that is
heap, thread stacks and what torch allocates, but not the model files mapped read-only (setrlimit(2), mm/mmap.c
`may_expand_vm`). Not counted, and bounded otherwise: shared anonymous memory (seccomp refuses to map it, no memfd, no
/dev/shm, no /dev/zero), scratch (its tmpfs has a size), page tables (by RLIMIT_AS below).

RLIMIT_AS is useless as a cap on memory, because torch reserves far more than it uses. It is set all the same, wide: a
process can make the kernel spend one 4 KiB page table per 2 MiB of address space by reading untouched mappings, and
nothing else counts those.

RLIMIT_NPROC is counted per uid, and per user namespace since Linux 5.14 (kernel/ucount.c), so it can serve as a cap on
threads only where the uid is the worker's own or the namespace is: elsewhere it would count the user's whole desktop.
"""

from __future__ import annotations

import os
import resource

from wan_compat.sandbox.failure import entering
from wan_compat.sandbox.spec import ConfinementSpec, Layer

ADDRESS_SPACE_SLACK_BYTES = 256 << 30  # glibc arenas, stacks, libraries, reservations: 512 MiB of page tables at worst
PENDING_SIGNALS = 256
STACK_BYTES = 8 << 20  # a thread's stack defaults to this; unlimited would make glibc fall back to its own default


def apply(spec: ConfinementSpec) -> None:
    """Set every limit, hard and soft, for this process and the threads it will start."""
    with entering(Layer.RLIMITS, "setting resource limits"):
        for kind, value in limits_of(spec).items():
            _set(kind, value)


def limits_of(spec: ConfinementSpec) -> dict[int, int]:
    """Return RLIMIT_ number -> value for a spec."""
    limits = spec.limits
    chosen = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.file_size_bytes,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: PENDING_SIGNALS,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_STACK: STACK_BYTES,
    }
    if _threads_are_countable(spec):
        chosen[resource.RLIMIT_NPROC] = limits.threads
    if Layer.CGROUP not in spec.in_force:
        chosen[resource.RLIMIT_DATA] = limits.memory_bytes
    if spec.gpu is None:  # CUDA reserves address space for all of the host's and the device's memory
        files = sum(bind.identity.size for bind in spec.view.binds if bind.identity is not None)
        chosen[resource.RLIMIT_AS] = 2 * files + 4 * limits.memory_bytes + ADDRESS_SPACE_SLACK_BYTES
    return chosen


def _set(kind: int, value: int) -> None:
    # Never above what we were given: raising a hard limit needs CAP_SYS_RESOURCE, and a lower one is the host's wish.
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _threads_are_countable(spec: ConfinementSpec) -> bool:
    if spec.identity is not None:
        return True
    if Layer.USER_NAMESPACE not in spec.in_force:
        return False
    release = os.uname().release.split(".")
    return (int(release[0]), int(release[1].split("-")[0])) >= (5, 14)
