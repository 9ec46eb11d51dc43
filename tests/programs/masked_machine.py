"""Runs one short job on a machine that lacks something: in a mount namespace of its own (needs root), or as pretended.

    masked_machine.py {full-shm,no-proc,no-cgroup,silent-proc} MIN_TIER MODEL OUTPUT

Prints the tier of the result, or the error's document.
"""

import ctypes
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from wan_compat import Supervisor
from wan_compat.protocol.errors import WanCompatError
from wan_compat.supervisor import memory_watch

LACK, MIN_TIER, MODEL, OUTPUT = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, RDONLY, RECURSIVE_PRIVATE = 0x20000, 1, 16384 | 1 << 18


def mount(target, flags=0, options=b""):
    if libc.mount(b"none", target.encode(), b"tmpfs", ctypes.c_ulong(flags), options):
        raise OSError(ctypes.get_errno(), f"mounting over {target}")


def lack():
    if LACK == "silent-proc":  # an ordinary user has no cgroup here; hidepid hides what is not dumpable
        memory_watch._FIELDS = re.compile(rb"^(NoSuchField):\s+(\d+) kB$", re.MULTILINE)
        return
    if libc.unshare(NEWNS) or libc.mount(None, b"/", None, ctypes.c_ulong(RECURSIVE_PRIVATE), None):
        raise OSError(ctypes.get_errno(), "a mount namespace of its own")
    if LACK == "full-shm":
        mount("/dev/shm", options=b"size=4k")
        Path("/dev/shm/full").write_bytes(b"x" * 4096)
    elif LACK == "no-proc":
        mount("/proc")
    elif LACK == "no-cgroup":
        for controller in Path("/sys/fs/cgroup").iterdir():
            if controller.is_dir() and not controller.is_symlink():
                mount(str(controller), RDONLY)


lack()
with Supervisor(min_tier=MIN_TIER) as supervisor:
    supervisor._zygote_program = (str(Path(__file__).parent / "misbehaving_zygote.py"), "slow")
    try:
        result = supervisor.generate(
            model=MODEL, prompt="x", height=64, width=96, num_frames=9, num_inference_steps=10, output=OUTPUT
        )
        print(json.dumps({"tier": result.sandbox.tier}))
    except WanCompatError as error:
        print(json.dumps(error.to_json()))
