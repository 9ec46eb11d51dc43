"""Makes one attack from inside a sandbox of the given layers, and tells what came of it.

    sandbox_attack.py '{"attack": "read_file", "layers": ["credentials", "view"], "arguments": {"path": "/etc/passwd"}}'

Answers {"gained": what the attack achieved or null, "error": why it failed, "signal": what killed the process or null}.
"""

from __future__ import annotations

import contextlib
import ctypes
import encodings.idna  # a look-up imports it, and inside there may be nothing to import from
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from wan_compat.sandbox import libc, seccomp
from wan_compat.sandbox.launch import EntryReport, become_subreaper, launch
from wan_compat.sandbox.spec import Bind, ConfinementSpec, Identity, Layer, Limits, View

Attack = Callable[..., str | None]
assert encodings.idna
attacks: dict[str, Attack] = {}
raw = ctypes.CDLL(None, use_errno=True)
raw.syscall.restype = ctypes.c_long


def attack(function: Attack) -> Attack:
    attacks[function.__name__] = function
    return function


@attack
def read_file(path: str) -> str:
    with open(path, "rb") as file:
        return f"read {len(file.read(64))} bytes"


@attack
def list_folder(path: str) -> str | None:
    found = os.listdir(path)
    return f"listed {len(found)} names" if found else None


@attack
def read_descriptor(number: int) -> str:
    return f"read {len(os.pread(number, 64, 0))} bytes"


@attack
def open_by_handle(path: str) -> str:
    # A handle names a file by its inode, past every folder: CAP_DAC_READ_SEARCH is all it takes.
    handle = ctypes.create_string_buffer(136)
    ctypes.memmove(handle, (128).to_bytes(4, "little"), 4)
    mount_id = ctypes.c_int()
    libc.call("name_to_handle_at", libc.AT_FDCWD, os.fsencode(path), handle, ctypes.addressof(mount_id), 0)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    return read_descriptor(libc.call("open_by_handle_at", folder, handle, os.O_RDONLY))


@attack
def create_file(folder: str) -> str:
    with open(f"{folder}/made-by-worker", "x") as file:
        file.write("x")
    return "created a file"


@attack
def change_file(path: str) -> str:
    with open(path, "r+b") as file:
        file.write(b"changed")
    return "changed a file"


@attack
def change_mode(path: str) -> str:
    os.chmod(path, 0o777)
    return "changed a mode"


@attack
def connect_tcp(port: int) -> str:
    with socket.socket(socket.AF_INET) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", port))
    return "connected"


@attack
def send_udp(port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", port))
    return "sent"


@attack
def connect_unix(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + path[1:] if path.startswith("@") else path)
    return "connected"


@attack
def open_socket(family: int, kind: int) -> str:
    with socket.socket(family, kind):
        return "opened"


@attack
def look_up_name() -> str:
    started = time.monotonic()
    try:
        socket.getaddrinfo("example.com", 80)
    except OSError:
        took_s = time.monotonic() - started
        if took_s < 1.0:
            raise
        return f"hung for {took_s:.1f} s"
    return "resolved"


@attack
def signal_process(pid: int) -> str:
    os.kill(pid, signal.SIGCONT)  # harmless, but needs the same right as SIGKILL
    return "signalled"


@attack
def trace_process(pid: int) -> str:
    libc.call("ptrace", 0x4206, pid, 0, 0)  # PTRACE_SEIZE
    return "traced"


@attack
def read_process_memory(pid: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", 0):
        return "opened its memory"


@attack
def copy_process_memory(pid: int) -> str:
    here = ctypes.create_string_buffer(8)
    local = (ctypes.c_ulong * 2)(ctypes.addressof(here), 8)
    remote = (ctypes.c_ulong * 2)(1 << 20, 8)
    try:
        libc.call("process_vm_readv", pid, local, 1, remote, 1, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:  # no memory at that address, but the right to look there
            raise
    return "may read its memory"


@attack
def change_priority(pid: int) -> str:
    os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid))
    return "changed its priority"


@attack
def own_asynchronous_io(pid: int) -> str:
    reader, _ = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
    return "signals of our descriptor go there"


@attack
def fork() -> str:
    pid = libc.call("clone", signal.SIGCHLD, None, None, None, None)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


@attack
def execute() -> str:
    os.set_inheritable(_answer_fd, True)
    os.execv("/bin/sh", ["sh", "-c", f"""echo '{{"gained": "executed", "error": ""}}' >&{_answer_fd}"""])
    return "executed"


@attack
def new_user_namespace() -> str:
    libc.unshare(0x10000000)
    return "is root in a namespace of its own"


@attack
def mount_something() -> str:
    libc.mount("tmpfs", "/mnt", "tmpfs", 0)
    return "mounted"


@attack
def map_code_from_scratch() -> str:
    descriptor = os.open("/scratch/code", os.O_RDWR | os.O_CREAT, 0o700)
    os.write(descriptor, b"\xc3" * 16)
    mmap.mmap(descriptor, 16, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    return "mapped"


@attack
def make_call(name: str, arguments: tuple[int, ...] = ()) -> str:
    return f"{name} returned {libc.call(name, *arguments)}"


@attack
def make_x32_call() -> str:
    result = raw.syscall(ctypes.c_long(0x40000000 | 39))
    if result < 0:
        raise OSError(ctypes.get_errno(), "x32 getpid")
    return f"pid {result}"


@attack
def make_32_bit_call() -> str:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    return f"pid {function()}"


@attack
def use_memory(size: int) -> str:
    block = bytearray(size)
    for offset in range(0, size, mmap.PAGESIZE):
        block[offset] = 1
    return "used it"


@attack
def share_memory(size: int) -> str:
    mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    return "mapped it"


@attack
def start_threads(count: int) -> str:
    stop = threading.Event()
    threads = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=stop.wait)
            thread.start()
            threads.append(thread)
    except RuntimeError as error:
        raise OSError(11, f"{len(threads)} threads, then {error}") from error
    finally:
        stop.set()
    return f"{count} threads"


@attack
def open_files(count: int) -> str:
    for _ in range(count):
        os.dup(0)
    return f"{count} descriptors"


@attack
def write_big_file(size: int) -> str:
    with open("/scratch/big", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    return "wrote it"


@attack
def make_many_files(count: int) -> str:
    for index in range(count):
        os.close(os.open(f"/scratch/{index}", os.O_CREAT | os.O_WRONLY))
    return "made them"


@attack
def grow_pipe() -> str:
    reader, _ = os.pipe()
    return f"pipe of {fcntl.fcntl(reader, 1031, 1 << 20)} bytes"


@attack
def outlive_parent() -> str:
    libc.prctl(libc.PR_SET_PDEATHSIG, 0)
    return "does not die with its parent"


@attack
def allow_core() -> str:
    libc.prctl(libc.PR_SET_DUMPABLE, 1)
    return "may leave a core"


@attack
def raise_limit() -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
    except ValueError as error:
        raise OSError(1, str(error)) from error
    return "raised it"


_answer_fd = -1


def main() -> None:
    global _answer_fd
    order: dict[str, Any] = json.loads(sys.argv[1])
    become_subreaper()
    reader, _answer_fd = os.pipe()
    layers = frozenset(Layer(layer) for layer in order["layers"])
    spec = ConfinementSpec(
        layers=layers,
        view=View(
            binds=tuple(Bind(path, path) for path in order.get("binds", ())),
            scratch_bytes=8 << 20,
            scratch_inodes=64,
        ),
        limits=Limits(**{"memory_bytes": 1 << 30, "threads": 16, "open_files": 64, **order.get("limits", {})}),
        identity=Identity(61999, 61999) if os.geteuid() == 0 else None,
        cgroup_dirs=tuple(order.get("cgroup_dirs", ())),
    )
    extra = os.open(order["open_first"], os.O_RDONLY) if "open_first" in order else -1
    if extra >= 0:
        os.dup2(extra, 40)

    def body(report: EntryReport) -> None:
        if order.get("seal"):
            seccomp.seal()
        try:
            answer = {"gained": attacks[order["attack"]](**order.get("arguments", {})), "error": ""}
        except (OSError, MemoryError) as error:
            answer = {"gained": None, "error": f"{type(error).__name__}: {error}"}
        os.write(_answer_fd, json.dumps(answer).encode())

    launched = launch(spec, body, keep_fds=(_answer_fd,), output_fd=2)
    os.close(_answer_fd)
    said = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(reader, 4096):
            said += chunk
    status = os.waitpid(launched.pid, 0)[1]
    os.close(launched.pidfd)
    answer = json.loads(said) if said.strip() else {"gained": None, "error": ""}
    answer["signal"] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    answer["layers"] = launched.report.layers
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
