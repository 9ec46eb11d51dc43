"""Running one trusted but fragile program (ffmpeg) so that taking it over would gain nothing.

    supervisor --Popen(confined_argv(...))--> light Python: limits, no network, Landlock, seccomp --execve--> program

The program reads its standard input, writes the files it was given, and can do nothing else: no other file (not even in
the same folder), no socket, no new process, no second program. It keeps the caller's uid, so that it can write the
caller's file, but holds no capability, also as root.

The light Python starts isolated and without site (`-I -S`): it imports this room and the standard library only.

`write_files` must exist (make them empty, O_EXCL, before): Landlock grants rights on a file that there is, and a right
to create would be one on the whole folder. ffmpeg's `-y` then truncates the file, and `+faststart` opens it once more.

The program dies with the *thread* that started it (prctl(2), PR_SET_PDEATHSIG): start it from one that lives as long.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import struct
import sys
from collections.abc import Sequence
from typing import NoReturn

from wan_compat.protocol.errors import SandboxEntryFailed
from wan_compat.sandbox import credentials, descriptors, landlock, libc, namespaces, seccomp
from wan_compat.sandbox.failure import entering, failed
from wan_compat.sandbox.spec import Layer

# What a shell answers when a program was found but could not be run.
EXIT_NOT_CONFINED = 126

_ADDRESS_SPACE_SLACK_BYTES = 16 << 30  # stacks and arenas of one thread per core; only reserved, never used
_OPEN_FILES = 64
_PT_INTERP = 3
_SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from wan_compat.sandbox.confined_exec import main; main(sys.argv[2])"
)


def confined_argv(
    argv: Sequence[str],
    *,
    read_paths: Sequence[str],
    write_files: Sequence[str],
    memory_bytes: int,
    cpu_seconds: int,
    file_size_bytes: int,
) -> list[str]:
    """Return the command that runs `argv` confined. Start it with this process as its parent, stdin as it shall be.

    Args:
        argv: The program (absolute path of an ELF file) and its arguments.
        read_paths: Files or folders that it may read besides itself, for instance fonts or shared libraries.
        write_files: Existing files that it may open for reading and writing.
        memory_bytes: Bound of its private memory (RLIMIT_DATA).
        cpu_seconds: Processor time after which it is killed.
        file_size_bytes: Bound of each file that it writes.

    Returns:
        A command that ends as the program does, or with 126 and a line on stderr when it could not be confined.
    """
    order = {
        "argv": list(argv),
        "read_paths": list(read_paths),
        "write_files": list(write_files),
        "memory_bytes": memory_bytes,
        "cpu_seconds": cpu_seconds,
        "file_size_bytes": file_size_bytes,
        "parent_pid": os.getpid(),
    }
    package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [sys.executable, "-I", "-S", "-c", _START, package_parent, json.dumps(order)]


def main(order_text: str) -> NoReturn:
    """Confine this process and become the program. Runs in the process that `confined_argv` starts."""
    try:
        order = json.loads(order_text)
        _confine_and_exec(
            order["argv"],
            order["read_paths"],
            order["write_files"],
            {
                resource.RLIMIT_DATA: order["memory_bytes"],
                resource.RLIMIT_AS: order["memory_bytes"] + _ADDRESS_SPACE_SLACK_BYTES,
                resource.RLIMIT_CPU: order["cpu_seconds"],
                resource.RLIMIT_FSIZE: order["file_size_bytes"],
                resource.RLIMIT_NOFILE: _OPEN_FILES,
                resource.RLIMIT_CORE: 0,
                resource.RLIMIT_MEMLOCK: 0,
                resource.RLIMIT_MSGQUEUE: 0,
            },
            order["parent_pid"],
        )
    except SandboxEntryFailed as error:
        sys.stderr.write(f"wan-compat: {error.message} ({error.hint})\n")
    except Exception as error:  # noqa: BLE001 - whatever it was, the program must not start
        sys.stderr.write(f"wan-compat: the program could not be confined: {type(error).__name__}: {error}\n")
    sys.stderr.flush()
    os._exit(EXIT_NOT_CONFINED)


def _confine_and_exec(
    argv: list[str], read_paths: list[str], write_files: list[str], limits: dict[int, int], parent_pid: int
) -> None:
    descriptors.close_all_but(())
    with entering(Layer.RLIMITS, "setting resource limits"):
        for kind, value in limits.items():
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (bound, bound))
    program = os.path.realpath(argv[0])
    rules = _access_rules(program, read_paths, write_files)
    os.umask(0o077)
    _leave_network()
    credentials.drop_capabilities()
    credentials.forbid_new_privileges()
    credentials.die_with_parent()
    if os.getppid() != parent_pid:  # it died before the signal was set, which then never comes
        raise failed("launch", "the process that asked for this is gone", "nothing is to be done")
    landlock.restrict(rules)
    # Addresses first, filter second, execve third: the filter permits exactly these addresses.
    path = ctypes.create_string_buffer(os.fsencode(program))
    arguments = (ctypes.c_char_p * (len(argv) + 1))(*[os.fsencode(text) for text in argv], None)
    environment = (ctypes.c_char_p * 1)(None)
    seccomp.install_exec_filter((ctypes.addressof(path), ctypes.addressof(arguments), ctypes.addressof(environment)))
    with entering(Layer.SECCOMP, f"starting {program}"):
        libc.call("execve", path, arguments, environment)


def _access_rules(program: str, read_paths: list[str], write_files: list[str]) -> list[tuple[str, int]]:
    rules = [(program, landlock.READ_FILE | landlock.EXECUTE)]
    interpreter = _interpreter(program)
    if interpreter is not None:
        # The dynamic loader is executed by the kernel in the program's name, then reads the system's libraries.
        rules.append((interpreter, landlock.READ_FILE | landlock.EXECUTE))
        rules += [(path, landlock.READ) for path in _SYSTEM_LIBRARIES if os.path.exists(path)]
    rules += [(path, landlock.READ) for path in read_paths]
    rules += [(path, landlock.READ_FILE | landlock.WRITE_FILE | landlock.TRUNCATE) for path in write_files]
    for path in write_files:
        if not os.path.isfile(path):
            raise failed(Layer.LANDLOCK, f"{path} does not exist", "make the output file, empty, before")
    rules.append(("/dev/null", landlock.READ_FILE | landlock.WRITE_FILE))
    rules.append(("/dev/urandom", landlock.READ_FILE))
    return rules


def _interpreter(program: str) -> str | None:
    """Return the dynamic loader that an ELF file names, None for a static one. Raises for anything but 64-bit ELF."""
    with open(program, "rb") as file:
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02":
            raise failed(Layer.LANDLOCK, f"{program} is not a 64-bit ELF program", "name the program itself, no script")
        offset, size, count = struct.unpack_from("=Q", header, 32)[0], *struct.unpack_from("=HH", header, 54)
        for index in range(count):
            file.seek(offset + index * size)
            entry = file.read(size)
            if struct.unpack_from("=I", entry)[0] == _PT_INTERP:
                start, _, _, length = struct.unpack_from("=4Q", entry, 8)
                file.seek(start)
                return os.path.realpath(os.fsdecode(file.read(length).rstrip(b"\0")))
    return None


def _leave_network() -> None:
    """Leave the network behind where that is possible; sockets are refused by the filter in any case."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        if uid == 0:
            libc.unshare(namespaces.CLONE_FLAGS[Layer.NET_NAMESPACE])
            return
        libc.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_FLAGS[Layer.NET_NAMESPACE])
    except OSError:
        return
    with contextlib.suppress(OSError):  # without a map the ids only look strange inside; access is by the real ones
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
