"""Turning a refusal of the kernel into an error that names the layer and what a person can do about it.

The remedies read settings only to explain a refusal that has already happened; nothing is ever decided by reading them.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from wan_compat.protocol.errors import SandboxEntryFailed
from wan_compat.sandbox.spec import GPU, NAMESPACE_LAYERS, Layer


def failed(layer: Layer | str, message: str, hint: str, number: int | None = None) -> SandboxEntryFailed:
    """Build the error of this room: `details` carry the layer and errno."""
    name = layer.value if isinstance(layer, Layer) else layer
    return SandboxEntryFailed(message, hint=hint, details={"layer": name, "errno": number})


@contextlib.contextmanager
def entering(layer: Layer | str, doing: str) -> Iterator[None]:
    """Translate any OSError or ValueError of one layer; a layer that fails stops the entry, always."""
    try:
        yield
    except SandboxEntryFailed:
        raise
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        raise failed(layer, f"{doing} failed: {error}", remedy(layer, number), number) from error


def remedy(layer: Layer | str, number: int | None) -> str:
    """Say what a person can do so that `layer` can be entered, given the errno it failed with."""
    if isinstance(layer, Layer) and layer in NAMESPACE_LAYERS:
        return _namespace_remedy(layer, number)
    if layer is Layer.CGROUP:
        return f"{_cgroup_remedy()}; or accept tier B, where memory is bounded by RLIMIT_DATA"
    if layer is Layer.VIEW:
        return "a Linux of 5.12 or later is needed, and permission to mount inside a user namespace"
    if layer == GPU:
        return "a container that hides parts of /proc forbids it; compute on the processor with --device cpu"
    if layer is Layer.LANDLOCK:
        if number == errno.EOPNOTSUPP:
            return "Landlock is built in but off: add landlock to the kernel's lsm= boot parameter"
        return "a Linux of 5.13 or later built with Landlock is needed (CONFIG_SECURITY_LANDLOCK)"
    if layer is Layer.SECCOMP:
        return "a Linux built with CONFIG_SECCOMP_FILTER is needed; in a container, do not forbid the seccomp call"
    return "see the errno; this layer needs no privilege, so a container or security module probably forbids it"


def _namespace_remedy(layer: Layer, number: int | None) -> str:
    if os.geteuid() == 0:
        return "root lacks CAP_SYS_ADMIN here (a container?): run the container with --cap-add SYS_ADMIN, or as a user"
    if number == errno.ENOSPC or _setting("user/max_user_namespaces") == "0":
        return "user namespaces are used up or off: sysctl user.max_user_namespaces=15000"
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return "user namespaces are off for ordinary users: sysctl kernel.unprivileged_userns_clone=1"
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor refuses user namespaces to this program (Ubuntu 23.10 and later): install a profile for this "
            "Python with `userns,`, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if layer is Layer.USER_NAMESPACE:
        return (
            "a container's seccomp profile probably forbids user namespaces: allow unshare, or accept tier C by policy"
        )
    return f"the kernel was built without this namespace ({layer.value}), or a container forbids it"


def namespaces_are_doubtful() -> bool:
    """Whether a setting makes it likely that an ordinary user's namespaces will be refused. Trying is what tells."""
    return os.geteuid() != 0 and (
        _setting("kernel/apparmor_restrict_unprivileged_userns") == "1"
        or _setting("kernel/unprivileged_userns_clone") == "0"
        or _setting("user/max_user_namespaces") == "0"
    )


def bwrap_remedy() -> str:
    """What a person can do about a bubblewrap that is there and does not work."""
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "load AppArmor's profile for bwrap, which Ubuntu has in place since 25.04; before: apt install "
            "apparmor-profiles, copy /usr/share/apparmor/extra-profiles/bwrap-userns-restrict to /etc/apparmor.d, "
            "apparmor_parser -r /etc/apparmor.d/bwrap-userns-restrict"
        )
    return "update or reinstall bubblewrap; `wan-compat doctor` tries it and tells more"


def _cgroup_remedy() -> str:
    scope = "systemd-run --user --scope -p Delegate=yes wan-compat ..."
    if os.geteuid() == 0:
        return "mount the cgroup file system writable (in a container: --cgroupns=private and /sys/fs/cgroup writable)"
    if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return (
            "run as root: this machine's cgroups are version 1, which cannot be handed to a user "
            f"(boot with systemd.unified_cgroup_hierarchy=1, then {scope})"
        )
    if not os.path.isdir("/run/systemd/system"):
        return f"run as root, or let root hand you a group (chown its folder and cgroup.procs); systemd does: {scope}"
    if not os.path.exists(f"/run/user/{os.geteuid()}/systemd"):
        return f"log in with a session of your own (or: loginctl enable-linger {os.geteuid()}), then {scope}"
    return f"let systemd delegate a cgroup: {scope}"


def _setting(name: str) -> str | None:
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None
