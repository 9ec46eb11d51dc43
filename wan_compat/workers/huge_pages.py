"""Huge pages for the zygote's memory, so that a fork copies hundreds of page table entries, not tens of thousands.

After its imports the zygote holds some 290 MB of private memory in pages of 4 KiB. A fork copies an entry for each, a
child's exit walks them again, and each worker is forked twice. Collapsed into pages of 2 MiB (MADV_COLLAPSE, Linux
6.1) a fork took 3 ms instead of 21 (measured on a busy machine). A child that writes gets a page of 4 KiB of its own,
as before: the kernel splits the large one.

Worth doing, never necessary: where the kernel refuses, the generator just ends.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

_MADV_COLLAPSE = 25
_HUGE_BYTES = 2 << 20
_CHUNK_BYTES = 8 << 20  # a few milliseconds each: the caller may have something better to do


def collapse_own_memory() -> Iterator[int]:
    """Collapse the process's private anonymous memory piece by piece; yield the bytes of each piece done."""
    libc = ctypes.CDLL(None, use_errno=True)
    for start, end in list(_anonymous_ranges()):
        for address in range(start, end, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, end - address)
            if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _MADV_COLLAPSE) == 0:
                yield size


def _anonymous_ranges() -> Iterator[tuple[int, int]]:
    """Yield (start, end) of writable private mappings without a file, cut to whole huge pages."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split()
            if fields[1] != "rw-p" or (len(fields) > 5 and fields[5] != "[heap]"):
                continue
            start, end = (int(part, 16) for part in fields[0].split("-"))
            start = -(-start // _HUGE_BYTES) * _HUGE_BYTES
            end = end // _HUGE_BYTES * _HUGE_BYTES
            if start < end:
                yield start, end
