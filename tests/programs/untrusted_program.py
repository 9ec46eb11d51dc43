"""What a program of somebody else may try in a SandboxEnvironment; the first argument says what."""

import os
import pathlib
import signal
import socket
import sys
import time

what = sys.argv[1]
if what == "ordinary":
    with open("note", "w") as file:
        file.write("kept nowhere")
    print("in", os.getcwd(), "with", sys.argv[2:], sorted(set(os.environ) - {"LC_CTYPE"}))
    raise SystemExit(3)
if what == "read":
    print(pathlib.Path(sys.argv[2]).read_text())
if what == "write":
    pathlib.Path("/program/x").write_text("x")
if what == "exec":
    os.execv("/bin/sh", ["sh", "-c", "id"])
if what == "fork":
    os.fork()
if what == "network":
    socket.socket(socket.AF_INET)
if what == "kill":
    os.kill(int(sys.argv[2]), signal.SIGKILL)
if what == "hang":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
if what == "flood":
    while True:
        sys.stdout.write("\x1b[31mx" * 100_000)
if what == "memory":
    taken = [bytearray(64 << 20) for _ in range(1000)]
if what == "ptrace":
    import ctypes

    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
print("did it")
