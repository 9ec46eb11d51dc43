"""Confinement of the one program that talks to the network: it reads libraries and writes what it was handed, open.

    no capability, no new privilege, no new program      as every confined process
    files        reads the interpreter, its packages, the system's name service and certificates; opens none to write
    network      outgoing connections stay, since that is its work; it cannot listen
    size         no file grows beyond the bound, whatever a server sends

It keeps its caller's uid and is not in namespaces: a network namespace would need a proxy to be of use. What it hands
back is held to the hub's hashes by the supervisor, which is why no more is spent here.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable

from wan_compat.sandbox import credentials, descriptors, landlock
from wan_compat.sandbox.failure import entering, failed
from wan_compat.sandbox.runtime_view import interpreter_binds, runtime_binds
from wan_compat.sandbox.spec import Layer

MEMORY_BYTES = 1 << 30
SPARE_DESCRIPTORS = 64

# Name service and certificates (resolv.conf(5), nsswitch.conf(5), and where distributions keep the authorities).
_SYSTEM_FILES = (
    "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services",
    "/etc/localtime", "/etc/passwd", "/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates", "/usr/share/zoneinfo", "/etc/crypto-policies", "/usr/share/crypto-policies",
    "/run/systemd/resolve", "/run/nscd", "/dev/urandom", "/dev/null",
)  # fmt: skip


def confine(*, keep: Iterable[int], read_paths: Iterable[str], file_size_bytes: int, parent_pid: int) -> None:
    """Confine this process, which has one thread and has not connected to anything yet.

    Args:
        keep: Descriptors besides the standard three that stay open; they can be written as they were opened.
        read_paths: Further files or folders that may be read, where they exist: the user's own certificates.
        file_size_bytes: Bound of each file that is written.

    Raises:
        SandboxEntryFailed: A layer could not be entered, or the parent is gone.
    """
    keep = sorted(keep)
    descriptors.close_all_but(keep)
    with entering(Layer.RLIMITS, "setting resource limits"):
        for kind, value in {
            resource.RLIMIT_DATA: MEMORY_BYTES,
            resource.RLIMIT_FSIZE: file_size_bytes,
            resource.RLIMIT_NOFILE: max([2, *keep]) + SPARE_DESCRIPTORS,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
        }.items():
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (bound, bound))
    credentials.drop_capabilities()
    credentials.forbid_new_privileges()
    credentials.die_with_parent()
    if os.getppid() != parent_pid:  # it died before the signal was set, which then never comes
        raise failed("launch", "the process that asked for this is gone", "nothing is to be done")
    paths = {bind.source for bind in (*runtime_binds(), *interpreter_binds())}
    # A link in /etc (resolv.conf of systemd) grants nothing about where it leads; the rule is for the file itself.
    paths |= {os.path.realpath(path) for path in (*_SYSTEM_FILES, *read_paths) if os.path.exists(path)}
    landlock.restrict(((path, landlock.READ) for path in sorted(paths)), may_connect=True)
