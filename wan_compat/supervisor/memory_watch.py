"""How much memory a worker uses, polled from outside; the cap itself where no cgroup enforces it.

Read from /proc/<pid>/status: RssAnon + RssShmem. PSS would be fairer to a forked worker, but `smaps_rollup` of a
non-dumpable process is closed to its own user, and `status` is not. What a worker shares with the zygote counts in
full, which errs on the side of the cap. Between two polls a worker can take more: RLIMIT_DATA bounds that (see
sandbox/rlimits.py), and the lag is measured in docs/containment.md.
"""

from __future__ import annotations

import re

POLL_S = 0.05

_FIELDS = re.compile(rb"^(RssAnon|RssShmem|VmHWM):\s+(\d+) kB$", re.MULTILINE)


class MemoryWatch:
    """Polls one process. `peak_bytes` is the highest resident size seen (the kernel's own high-water mark included)."""

    def __init__(self, pid: int) -> None:
        self._path = f"/proc/{pid}/status"
        self.used_bytes = 0
        self.peak_bytes = 0
        self.blind = False

    def poll(self) -> int:
        """Return the bytes charged now; the last known number, and `blind` set, when the kernel tells none.

        That is so once the process ends, and always where /proc is masked: the caller must tell the two apart.
        """
        self.blind = True
        try:
            with open(self._path, "rb") as file:
                content = file.read(8192)
        except OSError:
            return self.used_bytes
        found = {name: int(kilobytes) << 10 for name, kilobytes in _FIELDS.findall(content)}
        if b"RssAnon" in found:
            self.blind = False
            self.used_bytes = found[b"RssAnon"] + found.get(b"RssShmem", 0)
            self.peak_bytes = max(self.peak_bytes, found.get(b"VmHWM", 0))
        return self.used_bytes


def resident_bytes(pid: int) -> int:
    """Return what a process is charged now, 0 where the kernel does not tell; for onlookers, who watch nothing."""
    watch = MemoryWatch(pid)
    return watch.poll()
