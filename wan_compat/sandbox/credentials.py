"""Who the process is: groups, uid, gid, capabilities, no_new_privs, and its bond to its parent.

The order matters and is the whole content of `drop`:

1. the bounding and ambient sets, while CAP_SETPCAP is still there to do it;
2. groups, then gid, then uid: without uid 0 the other two could not be changed any more;
3. the capability sets, which setresuid leaves in place inside a user namespace where the uid was never 0;
4. no_new_privs, needed by Landlock and seccomp without CAP_SYS_ADMIN;
5. the parent-death signal, *after* the change of uid, which clears it (prctl(2), PR_SET_PDEATHSIG);
6. not dumpable: no core file, not even through a pipe in core_pattern (which ignores RLIMIT_CORE), since a core would
   hold prompts; and no tracing by a process of the same uid.

What not being dumpable costs: an ordinary user's supervisor cannot read /proc/PID/smaps_rollup of its worker; the Rss
fields of /proc/PID/status stay readable.

As an ordinary user, supplementary groups stay (setgroups must be denied before an unprivileged gid map is written, see
user_namespaces(7)); they give nothing, since the view holds only what the worker may read anyway.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct

from wan_compat.sandbox import libc
from wan_compat.sandbox.failure import entering, failed
from wan_compat.sandbox.spec import Identity, Layer

_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h: two 32-bit words for each of the three sets
_PR_CAP_AMBIENT_CLEAR_ALL = 4


def drop(identity: Identity | None) -> None:
    """Give up every privilege and become `identity` (or stay who we are, if None).

    Raises:
        SandboxEntryFailed: Something could not be given up, or `identity` is None for root.
    """
    with entering(Layer.CREDENTIALS, "dropping privileges"):
        if identity is None and os.geteuid() == 0:
            raise failed(
                Layer.CREDENTIALS,
                "the worker would stay root: the spec names no identity",
                "give the spec an Identity with an uid and gid that nothing else uses",
            )
        if identity is not None and 0 in (identity.uid, identity.gid):
            raise failed(Layer.CREDENTIALS, f"{identity} is root", "give the worker an uid and gid other than 0")
        _empty_ceilings()
        if identity is not None:
            os.setgroups([])
            os.setresgid(identity.gid, identity.gid, identity.gid)
            os.setresuid(identity.uid, identity.uid, identity.uid)
        _empty_capability_sets()


def drop_capabilities() -> None:
    """Give up every capability but keep the uid: for a helper program that writes its caller's file."""
    with entering(Layer.CREDENTIALS, "dropping capabilities"):
        _empty_ceilings()
        _empty_capability_sets()


def forbid_new_privileges() -> None:
    """Set no_new_privs: from now on no execve could grant anything, and it cannot be unset."""
    with entering(Layer.NO_NEW_PRIVS, "setting no_new_privs"):
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """Be killed when the parent's thread dies, and leave no core file. Call after the last change of credentials."""
    with entering(Layer.CREDENTIALS, "binding the worker's life to its parent's"):
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(libc.PR_SET_DUMPABLE, 0)


def capabilities() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable sets as bit masks."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(24)
    libc.call("capget", header, data)
    low = struct.unpack("=6I", data.raw)
    return (low[0] | low[3] << 32, low[1] | low[4] << 32, low[2] | low[5] << 32)


def _empty_ceilings() -> None:
    """Empty the bounding and ambient sets, from which an execve could fill the others again."""
    _empty_bounding_set()
    _prctl_if_known(libc.PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def _empty_bounding_set() -> None:
    for capability in range(64):
        try:
            present = libc.prctl(libc.PR_CAPBSET_READ, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:  # past the kernel's last capability
                return
            raise
        if not present:
            continue
        try:
            libc.prctl(libc.PR_CAPBSET_DROP, capability)
        except OSError as error:
            # An ordinary user outside a user namespace (tier C) has no CAP_SETPCAP. The bounding set only limits what
            # execve may add, and no_new_privs, which is always set, already makes that nothing.
            if error.errno == errno.EPERM and os.geteuid() != 0 and capabilities()[1] == 0:
                return
            raise


def _empty_capability_sets() -> None:
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    libc.call("capset", header, ctypes.create_string_buffer(24))
    if any(capabilities()):
        raise OSError(errno.EPERM, f"capabilities are left: {capabilities()}")


def _prctl_if_known(option: int, *arguments: int) -> None:
    try:
        libc.prctl(option, *arguments)
    except OSError as error:
        if error.errno != errno.EINVAL:  # kernels before 4.3 have no ambient set to clear
            raise
