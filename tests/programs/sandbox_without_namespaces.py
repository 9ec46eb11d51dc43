"""Runs the trial where namespaces are refused, as a container's default profile does, and prints its report."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import struct

from wan_compat.sandbox import bpf, libc
from wan_compat.sandbox.syscalls import architecture
from wan_compat.sandbox.trial import run_trial


def refuse_namespaces() -> None:
    program = [bpf.load_number()]
    program += bpf.when_call(architecture().numbers["unshare"], [bpf.give(bpf.answer_errno(errno.EPERM))])
    code = bpf.assemble([*program, bpf.give(bpf.ALLOW)])
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.call("seccomp", 1, 0, ctypes.create_string_buffer(header, len(header)))


if __name__ == "__main__":
    refuse_namespaces()
    print(json.dumps(dataclasses.asdict(run_trial(use_cgroup=False))))
