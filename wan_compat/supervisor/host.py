"""What this machine offers to workers, read without side effects."""

from __future__ import annotations

import itertools
import os
import secrets

import psutil

from wan_compat.policies.facts import HostFacts
from wan_compat.protocol.errors import EnvironmentLacks
from wan_compat.sandbox.spec import Identity

# User ids for what a supervisor that is root confines: the range that systemd keeps for its DynamicUser= services
# (61184..65519), so that no account of the machine has one. https://systemd.io/UIDS-GIDS/
_FIRST_UID, _LAST_UID = 61184, 65519
_UIDS = _LAST_UID - _FIRST_UID + 1
_turns = itertools.count(secrets.randbelow(_UIDS))


def read_host() -> HostFacts:
    """Return the machine's facts; memory is what is available now, or what our own cgroup leaves if that is less.

    Raises:
        EnvironmentLacks: /proc does not tell.
    """
    try:
        memory = psutil.virtual_memory()
    except OSError as error:
        raise EnvironmentLacks(
            f"the machine's memory cannot be read: {error.filename}: {error.strerror}",
            hint="mount /proc (mount -t proc proc /proc); in a container, do not mask it",
        ) from error
    available, total = int(memory.available), int(memory.total)
    for limit, used in _cgroup_memory():
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return HostFacts(
        memory_total_bytes=total,
        memory_available_bytes=available,
        cpu_count=len(os.sched_getaffinity(0)),
        is_root=os.geteuid() == 0,
    )


def fresh_identity() -> Identity | None:
    """Return whom the next confined process runs as: for root somebody of its own, for others None.

    One after the other from a random one on: no two that run at once for this supervisor are the same user.
    """
    if os.geteuid() != 0:
        return None
    uid = _FIRST_UID + next(_turns) % _UIDS
    return Identity(uid, uid)


def _cgroup_memory() -> list[tuple[int, int]]:
    """Return (limit, used) of each memory cgroup that we are in and that has a limit."""
    found = []
    try:
        with open("/proc/self/cgroup", encoding="ascii", errors="replace") as lines:
            groups = [line.rstrip("\n").split(":", 2) for line in lines]
    except OSError:
        return []
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers == "":
            base, names = f"/sys/fs/cgroup{path}", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = f"/sys/fs/cgroup/memory{path}", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        values = [_read_int(f"{base}/{name}") for name in names]
        # cgroup v1 says "no limit" with a number close to 2**63.
        if values[0] is not None and values[1] is not None and values[0] < 1 << 60:
            found.append((values[0], values[1]))
    return found


def _read_int(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(64).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
