"""Runs the trial where namespaces are refused, as a container's default profile does, and prints its report.

Only `unshare` is refused. bubblewrap makes its namespaces by `clone`, so that to this filter it is what it is to
AppArmor's rule: a program that may.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import struct
import sys

from wan_compat.sandbox import bpf, bwrap, libc
from wan_compat.sandbox.syscalls import architecture
from wan_compat.sandbox.trial import run_trial


def refuse_namespaces() -> None:
    namespaces = 0x7E020080  # every CLONE_NEW flag that unshare knows
    refuse = [
        bpf.load_low(0),
        bpf.instruction(bpf.JUMP_IF_BITS, namespaces, 0, 1),
        bpf.give(bpf.answer_errno(errno.EPERM)),
        bpf.give(bpf.ALLOW),
    ]
    program = [bpf.load_number()]
    program += bpf.when_call(architecture().numbers["unshare"], refuse)
    code = bpf.assemble([*program, bpf.give(bpf.ALLOW)])
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.call("seccomp", 1, 0, ctypes.create_string_buffer(header, len(header)))


if __name__ == "__main__":
    refuse_namespaces()
    if json.loads(sys.argv[1]).get("without_bwrap"):
        bwrap._PLACES = "/nonexistent"
    print(json.dumps(dataclasses.asdict(run_trial(use_cgroup=False))))
