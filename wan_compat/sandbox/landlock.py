"""Landlock: the second wall around files where there is a view, the first where there are no namespaces.

Access is denied by default for every right that the running kernel knows, then granted path by path: reading what is
in the view, writing below scratch, nothing else; execute is granted nowhere. TCP is denied altogether, and abstract
sockets and signals reach only processes of the same domain. Source: the kernel's
Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h; each ABI adds rights, and a right the
kernel does not know must not be named to it.

    ABI 1 (5.13)  files     2 (5.19)  refer     3 (6.2)  truncate     4 (6.7)  TCP     5 (6.10)  device ioctl
    ABI 6 (6.12)  scopes    7 (6.15)  audit flags, which add no denial

What it does not cover: stat, chmod, chdir and connecting to a socket by its path.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from wan_compat.sandbox import libc
from wan_compat.sandbox.failure import entering
from wan_compat.sandbox.spec import Layer

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SYM = 1 << 12
REFER = 1 << 13
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

_RIGHTS_OF_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL_RIGHTS = (1 << 16) - 1
_ON_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

READ = READ_FILE | READ_DIR
# No fifos, sockets or device nodes in scratch: nothing in a worker needs them.
WRITE = READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER

_NET_BIND, _NET_CONNECT = 1, 2  # of TCP
_SCOPES = 1 | 2  # abstract unix sockets, signals
_RULE_PATH_BENEATH = 1
_CREATE_RULESET_VERSION = 1


def abi() -> int:
    """Return the Landlock ABI of the running kernel, 0 where there is none."""
    try:
        return libc.call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def restrict(rules: Iterable[tuple[str, int]], *, may_connect: bool = False) -> int:
    """Confine this process (one thread, so far) to `rules`: pairs of a path and its rights. Needs no_new_privs.

    Args:
        may_connect: Leave outgoing TCP as it is, for the one program that fetches; listening stays denied.

    Returns:
        The ABI that was used.

    Raises:
        SandboxEntryFailed: No Landlock here, or a path of a rule does not exist.
    """
    with entering(Layer.LANDLOCK, "entering Landlock"):
        version = libc.call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
        handled = _RIGHTS_OF_ABI.get(version, _ALL_RIGHTS)
        network = _NET_BIND if may_connect else _NET_BIND | _NET_CONNECT
        attributes = struct.pack("=QQQ", handled, network if version >= 4 else 0, _SCOPES if version >= 6 else 0)
        # The structure grew with the ABI, and an older kernel refuses a longer one.
        attributes = attributes[: 24 if version >= 6 else 16 if version >= 4 else 8]
        ruleset = libc.call(
            "landlock_create_ruleset", ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0
        )
        try:
            for path, rights in rules:
                _allow(ruleset, path, rights & handled)
            libc.call("landlock_restrict_self", ruleset, 0)
        finally:
            os.close(ruleset)
        return version


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _ON_A_FILE  # the kernel refuses directory rights on a file
        rule = struct.pack("=Qi", rights, descriptor)  # packed: struct landlock_path_beneath_attr has no padding
        libc.call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, ctypes.create_string_buffer(rule, len(rule)), 0)
    finally:
        os.close(descriptor)
