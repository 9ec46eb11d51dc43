"""A zygote on a kernel that lacks one system call, with small workers that behave well.

zygote_lacking.py CALL ERRNO --control-fd N --parent-pid P
"""

import ctypes
import errno
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # python -I does not look beside the program

from wan_compat.sandbox import bpf, libc
from wan_compat.sandbox.syscalls import architecture
from wan_compat.workers import zygote


def refuse(call: str, number: int) -> None:
    program = [bpf.load_number()]
    program += bpf.when_call(architecture().numbers[call], [bpf.give(bpf.answer_errno(number))])
    code = bpf.assemble([*program, bpf.give(bpf.ALLOW)])
    buffer = ctypes.create_string_buffer(code, len(code))
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    # PR_SET_SECCOMP: the call that is refused may be `seccomp` itself.
    libc.prctl(22, 2, ctypes.addressof(ctypes.create_string_buffer(header, len(header))))


if __name__ == "__main__":
    call, number = sys.argv.pop(1), getattr(errno, sys.argv.pop(1))
    sys.argv.insert(1, "well")
    from tests.programs import misbehaving_zygote

    zygote._be_worker = misbehaving_zygote.be_misbehaving
    zygote.libraries.import_libraries = lambda: 0.0
    refuse(call, number)
    zygote.main()
