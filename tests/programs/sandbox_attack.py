"""Makes one attack from inside a sandbox of the given layers, and tells what came of it.

The same file is put into a model's folder and run there as the repository's code: see sandbox_repository_code.py.

    sandbox_attack.py '{"attack": "read_file", "layers": ["credentials", "view"], "arguments": {"path": "/etc/passwd"}}'

Answers {"gained": what the attack achieved or null, "error": why it failed, "signal": what killed the process or null}.
"""

from __future__ import annotations

import contextlib
import ctypes
import encodings.idna  # a look-up imports it, and inside there may be nothing to import from
import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
import resource
import signal
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from wan_compat.sandbox import libc, seccomp, syscalls
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


def scratch() -> str:
    """Where this process may write: its scratch, or without a view the folder it was given for it."""
    return "/scratch" if os.path.isdir("/scratch") else _given_scratch


def system_call(number: int, *arguments: Any) -> int:
    """The bare instruction, past every wrapper of Python and of libc's functions."""
    result = raw.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def number_of(name: str) -> int:
    return syscalls.architecture().numbers[name]


@attack
def read_file(path: str) -> str:
    with open(path, "rb") as file:
        return f"read {len(file.read(64))} bytes"


@attack
def list_folder(path: str) -> str | None:
    found = os.listdir(path)
    return f"listed {len(found)} names" if found else None


@attack
def read_by_native_call(path: str) -> str:
    buffer = ctypes.create_string_buffer(64)
    descriptor = system_call(number_of("openat"), libc.AT_FDCWD, os.fsencode(path), os.O_RDONLY, 0)
    return f"read {system_call(number_of('read'), descriptor, buffer, 64)} bytes"


@attack
def read_from_thread(path: str) -> str:
    return _in_thread(lambda: read_file(path))


@attack
def follow_link(path: str) -> str:
    link = f"{scratch()}/link-{os.getpid()}"
    os.symlink(path, link)
    try:
        return read_file(link)
    finally:
        os.unlink(link)


@attack
def make_hard_link(path: str) -> str:
    link = f"{scratch()}/hard-{os.getpid()}"
    os.link(path, link)
    os.unlink(link)
    return "linked it"


@attack
def climb_out(path: str) -> str:
    folder = os.open(scratch(), os.O_RDONLY | os.O_DIRECTORY)
    descriptor = os.open("../" * 40 + path.lstrip("/"), os.O_RDONLY, dir_fd=folder)
    return f"read {len(os.read(descriptor, 64))} bytes"


@attack
def ask_size(path: str) -> str:
    return f"{os.stat(path).st_size} bytes are there"


@attack
def map_descriptor(number: int) -> str:
    return f"mapped {len(mmap.mmap(number, 4, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE))} bytes"


@attack
def write_descriptor(number: int) -> str:
    return f"wrote {os.pwrite(number, b'x', 0)} bytes"


@attack
def search_memory(beginning: str) -> str | None:
    """Look for `beginning` and 16 hexadecimal digits in every page of this process; neither this code nor its
    arguments contain such a text."""
    pattern = re.compile(beginning.encode() + b"[0-9a-f]{16}")
    reader, writer = os.pipe()
    for low, high in memory_ranges():
        address = low
        while address < high:
            size = min(32768, high - address)
            # Through a pipe: the kernel answers EFAULT to what is not there, where reading it would kill us.
            written = raw.write(writer, ctypes.c_void_p(address), ctypes.c_size_t(size))
            if written > 0 and pattern.search(os.read(reader, written)):
                return "found the secret"
            address += size - (128 if size == 32768 else 0)
    return None


def memory_ranges() -> list[tuple[int, int]]:
    """Return the writable ranges: from /proc where there is one, else as they were before this process was made."""
    try:
        with open("/proc/self/maps") as file:
            text = file.read()
    except OSError:
        text = known_maps
    ranges = [line.split()[:2] for line in text.splitlines()]
    return [
        (int(low, 16), int(high, 16))
        for low, high in (place.split("-") for place, rights in ranges if rights.startswith("rw"))
    ]


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
def rename_file(path: str) -> str:
    os.rename(path, path + "-moved")
    os.rename(path + "-moved", path)
    return "renamed it"


@attack
def remove_file(path: str) -> str:
    os.unlink(path)
    return "removed it"


@attack
def truncate_file(path: str) -> str:
    os.truncate(path, 0)
    return "truncated it"


@attack
def plant_link(folder: str) -> str:
    os.symlink("/etc/passwd", f"{folder}/made-by-worker")
    return "planted a link"


@attack
def make_fifo(folder: str) -> str:
    os.mkfifo(f"{folder}/made-by-worker")
    return "made a fifo"


@attack
def set_attribute(path: str) -> str:
    os.setxattr(path, "user.wan", b"x")
    return "set an attribute"


@attack
def change_times(path: str) -> str:
    os.utime(path, (1, 1))
    return "changed its times"


@attack
def write_by_native_call(path: str) -> str:
    descriptor = system_call(number_of("openat"), libc.AT_FDCWD, os.fsencode(path), os.O_WRONLY, 0)
    return f"wrote {system_call(number_of('pwrite64'), descriptor, b'x', 1, 0)} bytes"


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
def connect_from_thread(port: int) -> str:
    return _in_thread(lambda: connect_tcp(port))


@attack
def connect_by_native_call(port: int) -> str:
    descriptor = system_call(number_of("socket"), socket.AF_INET, socket.SOCK_STREAM, 0)
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton("127.0.0.1") + bytes(8)
    system_call(number_of("connect"), descriptor, address, len(address))
    return "connected"


@attack
def listen_tcp() -> str:
    with socket.socket(socket.AF_INET) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
    return "listens"


@attack
def listen_unix() -> str:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0wan-compat-worker-{os.getpid()}")
        server.listen()
    return "listens"


@attack
def make_socket_pair() -> str:
    for end in socket.socketpair():
        end.close()
    return "made"


@attack
def send_datagram_unix(path: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", path)
    return "sent"


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
def signal_by_pidfd(pid: int) -> str:
    signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGCONT)
    return "signalled"


@attack
def queue_signal(pid: int) -> str:
    information = ctypes.create_string_buffer(128)
    struct.pack_into("=iii", information, 0, signal.SIGCONT, 0, -1)  # si_code SI_QUEUE
    system_call(number_of("rt_sigqueueinfo"), pid, signal.SIGCONT, information)
    return "signalled"


@attack
def signal_thread(pid: int) -> str:
    system_call(number_of("tgkill"), pid, pid, signal.SIGCONT)
    return "signalled"


@attack
def signal_group(pid: int) -> str:
    os.kill(-os.getpgid(pid), 0)
    return "may signal its group"


@attack
def limit_process(pid: int) -> str:
    resource.prlimit(pid, resource.RLIMIT_NOFILE, resource.prlimit(pid, resource.RLIMIT_NOFILE))
    return "set its limits"


@attack
def pin_process(pid: int) -> str:
    os.sched_setaffinity(pid, os.sched_getaffinity(pid))
    return "set its processors"


@attack
def slow_disk_of_process(pid: int) -> str:
    system_call(number_of("ioprio_set"), 1, pid, 3 << 13)
    return "set its priority"


@attack
def compare_processes(pid: int) -> str:
    return f"kcmp said {system_call(number_of('kcmp'), os.getpid(), pid, 1, 0, 0)}"


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
def fork_by_clone3() -> str:
    order = ctypes.create_string_buffer(64)
    struct.pack_into("=Q", order, 32, signal.SIGCHLD)
    pid = system_call(number_of("clone3"), order, 64)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


@attack
def spawn_program() -> str:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    return "spawned"


@attack
def execute_from_memory() -> str:
    descriptor = os.memfd_create("program", 0)
    os.set_inheritable(_answer_fd, True)
    os.write(descriptor, f"""#!/bin/sh\necho '{{"gained": "executed", "error": ""}}' >&{_answer_fd}\n""".encode())
    os.execve(f"/proc/self/fd/{descriptor}", ["program"], {})
    return "executed"


@attack
def clone_into_namespaces() -> str:
    pid = libc.call("clone", signal.SIGCHLD | 0x10000000 | 0x40000000, None, None, None, None)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "a process with namespaces of its own"


@attack
def become_root() -> str:
    system_call(number_of("setresuid"), 0, 0, 0)
    return "uid 0"


@attack
def take_capabilities() -> str:
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    system_call(number_of("capset"), header, ctypes.create_string_buffer(b"\xff" * 4 + bytes(20), 24))
    return "took capabilities"


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
    descriptor = os.open(f"{scratch()}/code-{os.getpid()}", os.O_RDWR | os.O_CREAT, 0o700)
    os.unlink(f"{scratch()}/code-{os.getpid()}")
    os.write(descriptor, b"\xc3" * 16)
    mmap.mmap(descriptor, 16, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    return "mapped"


@attack
def make_call(name: str, arguments: tuple[int, ...] = ()) -> str:
    return f"{name} returned {libc.call(name, *arguments)}"


@attack
def make_call_in_thread(name: str, arguments: tuple[int, ...] = ()) -> str:
    return _in_thread(lambda: make_call(name, arguments))


@attack
def make_call_behind_a_filter(name: str, arguments: tuple[int, ...] = ()) -> str:
    """First stack a filter of our own that allows everything: it must not win over the one that is there."""
    allow = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)
    code = ctypes.create_string_buffer(allow, 8)
    header = ctypes.create_string_buffer(struct.pack("@HP", 1, ctypes.addressof(code)))
    with contextlib.suppress(OSError):
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        libc.call("seccomp", 1, 0, header)
    return make_call(name, arguments)


@attack
def read_descriptor_table() -> str:
    return f"modify_ldt said {system_call(number_of('modify_ldt'), 0, ctypes.create_string_buffer(16), 16)}"


@attack
def handle_page_faults() -> str:
    os.close(system_call(number_of("userfaultfd"), 1))  # UFFD_USER_MODE_ONLY, open to everyone
    return "handles page faults of its own"


@attack
def make_anonymous_file() -> str:
    os.close(os.memfd_create("file", 0))
    return "made a file that no folder bounds"


@attack
def queue_kernel_work() -> str:
    os.close(system_call(number_of("io_uring_setup"), 1, ctypes.create_string_buffer(120)))
    return "has a queue that makes calls past the filter"


@attack
def count_events() -> str:
    order = ctypes.create_string_buffer(128)
    # PERF_TYPE_SOFTWARE, size, PERF_COUNT_SW_TASK_CLOCK; exclude_kernel and exclude_hv, as for everyone.
    struct.pack_into("=IIQQQQQ", order, 0, 1, 128, 1, 0, 0, 0, 1 << 5 | 1 << 6)
    os.close(system_call(number_of("perf_event_open"), order, 0, -1, -1, 0))
    return "counts events of the processor"


@attack
def load_kernel_program() -> str:
    # BPF_MAP_CREATE: the first step of any program; open to everyone where unprivileged BPF is.
    order = ctypes.create_string_buffer(128)
    struct.pack_into("=IIII", order, 0, 2, 4, 4, 1)
    os.close(system_call(number_of("bpf"), 0, order, 128))
    return "made a map"


@attack
def type_into_terminal() -> str:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, 0x5413, bytes(8))
    fcntl.ioctl(ours, 0x5414, bytes(8))  # TIOCSWINSZ: harmless, and on the same list as TIOCSTI
    return "controls a terminal"


@attack
def make_x32_call() -> str:
    result = raw.syscall(ctypes.c_long(0x40000000 | 39))
    if result < 0:
        raise OSError(ctypes.get_errno(), "x32 getpid")
    return f"pid {result}"


@attack
def make_32_bit_call() -> str:
    # mov eax, 20 (getpid); int 0x80; ret
    return f"pid {ctypes.CFUNCTYPE(ctypes.c_int)(_executable_page(bytes.fromhex('b814000000cd80c3')))()}"


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
    path = f"{scratch()}/big-{os.getpid()}"
    try:
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    finally:
        os.unlink(path)
    return "wrote it"


@attack
def make_many_files(count: int) -> str:
    made = []
    try:
        for index in range(count):
            path = f"{scratch()}/many-{os.getpid()}-{index}"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            made.append(path)
    finally:
        for path in made:
            os.unlink(path)
    return "made them"


@attack
def grow_pipe() -> str:
    reader, _ = os.pipe()
    return f"pipe of {fcntl.fcntl(reader, 1031, 1 << 20)} bytes"


@attack
def burn_processor(threads: int) -> str:
    """Hash in several threads for a second; hashing of large data lets go of the interpreter's lock."""
    block = bytes(1 << 20)
    deadline = time.monotonic() + 1.0

    def burn() -> None:
        while time.monotonic() < deadline:
            hashlib.sha256(block)

    started = time.process_time()
    running = [threading.Thread(target=burn) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return f"{time.process_time() - started:.2f}"


@attack
def grow_socket(size: int) -> str:
    with socket.socket(socket.AF_UNIX) as grown:
        grown.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        return f"{grown.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)}"


@attack
def force_socket(size: int) -> str:
    with socket.socket(socket.AF_UNIX) as grown:
        grown.setsockopt(socket.SOL_SOCKET, 32, size)  # SO_SNDBUFFORCE: past the machine's own limit
    return "grew it"


@attack
def wait_and_call(seconds: float, name: str) -> str:
    time.sleep(seconds)
    return make_call(name)


@attack
def lock_memory() -> str:
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)
    system_call(number_of("mlock"), ctypes.addressof(ctypes.c_char.from_buffer(page)), mmap.PAGESIZE)
    return "locked it"


@attack
def open_pipes(count: int) -> str:
    for _ in range(count):
        os.pipe()
    return f"{count} pipes"


@attack
def open_socket_pairs(count: int) -> str:
    pairs = [socket.socketpair() for _ in range(count)]
    return f"{len(pairs)} pairs of buffers"


@attack
def queue_signals(count: int) -> str:
    """Each pending real-time signal is a little kernel memory."""
    number = signal.SIGRTMIN + 3
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    timer = ctypes.c_int()
    for _ in range(count):
        system_call(number_of("timer_create"), 1, None, ctypes.byref(timer))
    return f"{count} timers"


@attack
def make_message_queue() -> str:
    name = f"wan-compat-{os.getpid()}".encode()
    system_call(number_of("mq_open"), name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, None)
    system_call(number_of("mq_unlink"), name)
    return "made a message queue"


@attack
def make_shared_object(kind: str) -> str:
    """System V: memory, messages or semaphores that outlive whoever made them."""
    arguments = {"shm": (0, 4096, 0o600), "msg": (0, 0o600), "sem": (0, 1, 0o600)}[kind]
    identifier = system_call(number_of(f"{kind}get"), *arguments)
    system_call(number_of(f"{kind}ctl"), identifier, *((0, 0) if kind == "sem" else (0, None)))  # IPC_RMID
    return "made one"


@attack
def resize_ring() -> str | None:
    """The ring is the one regular file without a name among our descriptors."""
    for descriptor in range(3, 64):
        try:
            status = os.fstat(descriptor)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
            os.ftruncate(descriptor, 4096)
            return "resized it"
    return None


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


def _in_thread(attempt: Callable[[], str]) -> str:
    said: list[str | OSError] = []

    def run() -> None:
        try:
            said.append(attempt())
        except OSError as error:
            said.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(said[0], OSError):
        raise said[0]
    return said[0]


def _executable_page(code: bytes) -> int:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)
    page.write(code)
    _pages.append(page)
    return ctypes.addressof(ctypes.c_char.from_buffer(page))


_pages: list[mmap.mmap] = []
_given_scratch = ""
known_maps = ""
_answer_fd = -1


def main() -> None:
    global _answer_fd, _given_scratch
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
            host_scratch_dir=None if Layer.VIEW in layers else order.get("scratch"),
        ),
        limits=Limits(**{"memory_bytes": 1 << 30, "threads": 16, "open_files": 64, **order.get("limits", {})}),
        identity=Identity(61999, 61999) if os.geteuid() == 0 else None,
        cgroup_dirs=tuple(order.get("cgroup_dirs", ())),
    )
    _given_scratch = order.get("scratch", "")
    extra = os.open(order["open_first"], os.O_RDWR) if "open_first" in order else -1
    if extra >= 0:
        os.dup2(extra, 222)

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
