"""The namespaces: other processes, the network, mounts, IPC and host names stop existing for the process.

    root:           mount, pid, net, ipc, uts, cgroup (and user, if the spec asks for it too)
    ordinary user:  user first, which gives the right to make the others

The pid namespace holds only children made after the unshare, which is why `launch` forks twice. A new network namespace
has a loopback that is down, and it stays down. AF_VSOCK is not cut by a network namespace:
seccomp does that.

The id maps are written by the launcher, which stays outside: a map of more than one's own id needs rights in the parent
namespace, and those were given up by entering the new one (user_namespaces(7)).
"""

from __future__ import annotations

import os

from wan_compat.sandbox import libc
from wan_compat.sandbox.failure import entering, failed, remedy
from wan_compat.sandbox.spec import ConfinementSpec, Identity, Layer

CLONE_NEWUSER = 0x10000000

# linux/sched.h. The user namespace comes first: the others are then owned by it.
CLONE_FLAGS: dict[Layer, int] = {
    Layer.USER_NAMESPACE: CLONE_NEWUSER,
    Layer.MOUNT_NAMESPACE: 0x00020000,
    Layer.PID_NAMESPACE: 0x20000000,
    Layer.NET_NAMESPACE: 0x40000000,
    Layer.IPC_NAMESPACE: 0x08000000,
    Layer.UTS_NAMESPACE: 0x04000000,
    Layer.CGROUP_NAMESPACE: 0x02000000,
}

# Whom an ordinary user's worker believes to be. Not 0, so that no program thinks itself root, and not the caller's own
# number, which is nobody's business in there.
INNER_ID = 1000


def unshare(layers: frozenset[Layer]) -> None:
    """Leave the host's namespaces named in `layers`, in one call.

    Raises:
        SandboxEntryFailed: Naming the first namespace that the kernel refuses, found by trying them one by one.
    """
    wanted = [layer for layer in CLONE_FLAGS if layer in layers]
    if not wanted:
        return
    flags = 0
    for layer in wanted:
        flags |= CLONE_FLAGS[layer]
    try:
        libc.unshare(flags)
    except OSError as error:
        # unshare is all or nothing, so the process is unchanged and can find out which one it was.
        for layer in wanted:
            with entering(layer, f"making a new {layer.value.replace('_', ' ')}"):
                libc.unshare(CLONE_FLAGS[layer])
        raise failed(
            wanted[0],
            f"new namespaces were refused together: {error}",
            remedy(wanted[0], error.errno),
            error.errno,
        ) from error


def write_id_maps(pid: int, identity: Identity | None) -> None:
    """Map ids into the new user namespace of `pid`. Runs in the launcher.

    Root's worker keeps host numbers: 0, under which the view is built, and the worker's own, to which it then drops.
    An ordinary user's worker has one id, INNER_ID, which is the caller outside.
    """
    with entering(Layer.USER_NAMESPACE, "writing the id maps"):
        if os.geteuid() == 0:
            if identity is None:
                raise failed(Layer.USER_NAMESPACE, "root's worker has no identity", "give the spec an Identity")
            _write(pid, "uid_map", f"0 0 1\n{identity.uid} {identity.uid} 1\n")
            _write(pid, "gid_map", f"0 0 1\n{identity.gid} {identity.gid} 1\n")
        else:
            # An unprivileged gid map is accepted only once setgroups is denied (user_namespaces(7)).
            _write(pid, "setgroups", "deny")
            _write(pid, "uid_map", f"{INNER_ID} {os.geteuid()} 1\n")
            _write(pid, "gid_map", f"{INNER_ID} {os.getegid()} 1\n")


def name_host(spec: ConfinementSpec) -> None:
    """Give the worker's own UTS namespace a name that says nothing about the machine."""
    if Layer.UTS_NAMESPACE in spec.layers:
        with entering(Layer.UTS_NAMESPACE, "setting the host name"):
            libc.sethostname(spec.hostname)


def _write(pid: int, name: str, text: str) -> None:
    # One write call: the kernel takes a map whole or not at all.
    descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)
