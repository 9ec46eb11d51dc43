"""The worker's file system: built from nothing out of what the spec names, then made the only one there is.

    /                    tmpfs, read-only once built; holds mount points and the spec's small files
    <bind.target>        read-only, nosuid, nodev (noexec unless asked for), of exactly the file that was admitted
    /dev/{null,urandom}  the two devices that libraries open; with a GPU, its nodes too (gpu_devices.py)
    /proc/self           with a GPU only: the worker's own folder of /proc, bound from one that nobody keeps
    /ctl                 the control folder, when the spec has one
    /scratch             tmpfs with a size and an inode limit, noexec; /tmp is a link to it

There is no other /proc, no /sys, /dev/shm or /dev/zero. The last, because mapping it shared is memory that no limit of
tier B counts. Admission is construction: a path is not forbidden here, it does not exist.

Every source is picked up (open_tree) before anything is mounted, and placed (move_mount) after. So a model below /tmp
is not hidden by the new root that is put together on /tmp; and the file that is compared with what the supervisor
admitted is the mounted one itself, with no moment between the check and the use. All of it happens in a private mount
namespace, of which nothing reaches the host.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import stat
import struct
from collections.abc import Iterator

from wan_compat.sandbox import idmap, landlock, libc
from wan_compat.sandbox.failure import entering, failed
from wan_compat.sandbox.namespaces import INNER_ID
from wan_compat.sandbox.spec import (
    CONTROL_TARGET,
    GPU,
    MODEL_TARGET,
    SCRATCH_TARGET,
    Bind,
    ConfinementSpec,
    FileIdentity,
    Layer,
)

DEVICES = ("/dev/null", "/dev/urandom")
OWN_PROCESS = "/proc/self"
# Any folder that every system has will do: what the new root covers was picked up before.
_BASES = ("/tmp", "/run", "/var", "/mnt")  # noqa: S108 - a mount point, nothing is written there
_ROOT_BYTES = 4 << 20
_ROOT_INODES = 16384

# linux/mount.h
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 16384, 1 << 18
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MNT_DETACH = 2


@dataclasses.dataclass
class PickedUp:
    """Detached mounts, by the target they are for. `close` drops those that were not placed."""

    mounts: dict[str, int] = dataclasses.field(default_factory=dict)

    def close(self) -> None:
        while self.mounts:
            os.close(self.mounts.popitem()[1])


def devices_of(spec: ConfinementSpec) -> tuple[str, ...]:
    """Return the device nodes of this worker's view."""
    return DEVICES if spec.gpu is None else (*DEVICES, *spec.gpu.devices)


def worker_ids(spec: ConfinementSpec) -> tuple[int, int]:
    """Return the uid and gid that the worker has inside its view."""
    if spec.identity is not None:
        return spec.identity.uid, spec.identity.gid
    if Layer.USER_NAMESPACE in spec.layers:
        return INNER_ID, INNER_ID
    return os.geteuid(), os.getegid()


def pick_up_private_files(spec: ConfinementSpec) -> PickedUp:
    """Pick up, id-mapped, the admitted files (and the control folder) that the worker's uid could not read.

    Runs as root, before any namespace is left: translating a mount needs privilege over the file system it is of.

    Raises:
        SandboxEntryFailed: The file system cannot translate ids, or even the owner may not read the file.
    """
    picked = PickedUp()
    if spec.identity is None or os.geteuid() != 0:
        return picked
    worker = (spec.identity.uid, spec.identity.gid)
    translations: dict[tuple[int, int], int] = {}
    try:
        for bind in _all_binds(spec):
            if bind.identity is None and bind.target != CONTROL_TARGET:
                continue
            with entering(Layer.VIEW, f"looking at {bind.source}"):
                status = os.stat(bind.source)
            wanted = 4 if bind.identity is not None else 5  # a folder must be entered too
            if _may(status, worker, wanted):
                continue
            owner = (status.st_uid, status.st_gid)
            if (status.st_mode >> 6) & wanted != wanted:
                raise failed(
                    Layer.VIEW,
                    f"{bind.source} has mode {stat.S_IMODE(status.st_mode):04o}: not even its owner may read it",
                    f"give its owner the right to read it: chmod u+r {bind.source}",
                )
            try:
                if owner not in translations:
                    translations[owner] = idmap.translation(owner, worker)
                picked.mounts[bind.target] = mount = _open_tree(bind.source)
                idmap.apply(mount, translations[owner])
            except OSError as error:
                raise failed(
                    Layer.VIEW,
                    f"the worker (uid {worker[0]}) may not read {bind.source} (uid {owner[0]}, mode "
                    f"{stat.S_IMODE(status.st_mode):04o}), and its file system cannot be id-mapped: {error}",
                    f"make it readable for all (chmod a+r {bind.source}), or keep it on ext4, xfs or btrfs",
                    error.errno,
                ) from error
    except BaseException:
        picked.close()
        raise
    finally:
        for descriptor in translations.values():
            os.close(descriptor)
    return picked


def build(spec: ConfinementSpec, picked: PickedUp) -> None:
    """Build the view and make it the root. Runs in B, in its own mount namespace, before privileges are dropped.

    Args:
        spec: What to build.
        picked: From `pick_up_private_files`; the rest is picked up here. All of it is used or closed.

    Raises:
        SandboxEntryFailed: A source is missing or is not the file that was admitted, or the kernel refused a mount.
    """
    os.umask(0o022)
    try:
        with entering(Layer.VIEW, "making mounts private"):
            libc.mount(None, "/", None, _MS_REC | _MS_PRIVATE)
        binds = sorted(_all_binds(spec), key=lambda bind: bind.target.count("/"))  # parents before what lies in them
        devices = [Bind(source=path, target=path) for path in devices_of(spec)]
        for bind in (*binds, *devices):
            with entering(Layer.VIEW, f"picking up {bind.source}"):
                if bind.target not in picked.mounts:
                    picked.mounts[bind.target] = _open_tree(bind.source)
            _check_identity(bind, picked.mounts[bind.target])
        _make_root(spec)
        for bind in binds:
            _place(bind, picked)
        for bind in devices:
            _place(bind, picked, device=True)
        _make_scratch(spec)
        _make_small_things(spec)
        if spec.gpu is not None:
            _make_own_process()
        _become_root()
    finally:
        picked.close()
        os.umask(0o077)


def check_admitted(spec: ConfinementSpec) -> None:
    """Compare the admitted files in a view that somebody else has built with what the supervisor saw.

    They are the mounted files themselves, and nobody inside may mount: there is no moment between check and use.

    Raises:
        SandboxEntryFailed: A file is not the one that was admitted.
    """
    for bind in spec.view.binds:
        if bind.identity is None:
            continue
        with entering(Layer.VIEW, f"looking at {bind.source}"):
            descriptor = os.open(bind.target, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _check_identity(bind, descriptor)
        finally:
            os.close(descriptor)


def check_readable(spec: ConfinementSpec) -> None:
    """Open what was bound, as the worker: a file that it cannot read must be known now and by its name.

    Runs after privileges are dropped and before Landlock and seccomp, so that a refusal is one of ordinary permissions.
    """
    for bind in spec.view.binds:
        path = bind.target if Layer.VIEW in spec.in_force else bind.source
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            raise failed(
                Layer.VIEW,
                f"the worker (uid {os.geteuid()}) cannot read {bind.source}: {error.strerror}",
                "make it readable for the worker, or install wan-compat and its libraries where all users may read",
                error.errno,
            ) from error


def check_devices(spec: ConfinementSpec) -> None:
    """Ask, as the worker, whether a GPU's nodes may be used: a driver's own answer to that is a number. Opens nothing.

    Raises:
        SandboxEntryFailed: The node is missing, or its owner gives it to others than this worker.
    """
    for path in spec.gpu.devices if spec.gpu is not None else ():
        if not os.access(path, os.R_OK | os.W_OK):
            raise failed(
                GPU,
                f"the worker (uid {os.geteuid()}) may not use {path}",
                f"let every user use the GPU (chmod a+rw {path}; the driver's NVreg_DeviceFileMode=0666), or compute "
                "on the processor with --device cpu",
                errno.EACCES,
            )


def access_rules(spec: ConfinementSpec) -> Iterator[tuple[str, int]]:
    """Yield the Landlock rules that say the same as the view: (path, rights)."""
    inside = Layer.VIEW in spec.in_force
    for bind in spec.view.binds:
        yield (bind.target if inside else bind.source), landlock.READ
    yield "/dev/null", landlock.READ_FILE | landlock.WRITE_FILE
    yield "/dev/urandom", landlock.READ_FILE
    if spec.gpu is not None:
        for path in spec.gpu.devices:
            yield path, landlock.READ_FILE | landlock.WRITE_FILE | landlock.IOCTL_DEV
        yield OWN_PROCESS, landlock.READ | landlock.WRITE_FILE
        if not inside:  # the host's own, of which the view would have had copies
            yield from ((file.target, landlock.READ_FILE) for file in spec.view.files if os.path.isfile(file.target))
    if inside:
        for file in spec.view.files:
            yield file.target, landlock.READ_FILE
        # Libraries list the folder that they load from. It is ours, and holds admitted files alone.
        if any(bind.target.startswith(f"{MODEL_TARGET}/") for bind in spec.view.binds):
            yield MODEL_TARGET, landlock.READ_DIR
        yield SCRATCH_TARGET, landlock.WRITE if Layer.VIEW in spec.layers else landlock.READ
        if spec.view.control_dir is not None:
            yield CONTROL_TARGET, landlock.READ
    elif spec.view.host_scratch_dir is not None:
        yield spec.view.host_scratch_dir, landlock.WRITE


def _all_binds(spec: ConfinementSpec) -> Iterator[Bind]:
    yield from spec.view.binds
    if spec.view.control_dir is not None:
        yield Bind(source=spec.view.control_dir, target=CONTROL_TARGET)


def _may(status: os.stat_result, worker: tuple[int, int], wanted: int) -> bool:
    """Whether ordinary permissions give `wanted` (4 read, 1 enter). Access lists are left to `check_readable`."""
    if status.st_uid == worker[0]:
        granted = status.st_mode >> 6
    elif status.st_gid == worker[1]:
        granted = status.st_mode >> 3
    else:
        granted = status.st_mode
    return granted & wanted == wanted


def _open_tree(path: str) -> int:
    # Recursive: a user namespace may not separate a mount from those that lie on it, which could hide things.
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | libc.AT_RECURSIVE
    return libc.call("open_tree", libc.AT_FDCWD, os.fsencode(path), flags)


def _check_identity(bind: Bind, mount: int) -> None:
    if bind.identity is None:
        return
    status = os.fstat(mount)
    found = FileIdentity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if found != bind.identity or not stat.S_ISREG(status.st_mode):
        raise failed(
            Layer.VIEW,
            f"{bind.source} is not the file that was admitted: {bind.identity} then, {found} now",
            "something changed the model while it was being opened; let it finish, then try again",
        )


def _make_root(spec: ConfinementSpec) -> None:
    with entering(Layer.VIEW, "making the new root"):
        base = next(path for path in _BASES if os.path.isdir(path))
        options = f"size={_ROOT_BYTES},nr_inodes={_ROOT_INODES},mode=755"
        libc.mount("tmpfs", base, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
        os.chdir(base)  # from here on, "." is the new root and every target is below it


def _place(bind: Bind, picked: PickedUp, *, device: bool = False) -> None:
    with entering(Layer.VIEW, f"placing {bind.source} at {bind.target}"):
        mount = picked.mounts.pop(bind.target)
        try:
            flags = _ATTR_RDONLY | _ATTR_NOSUID
            if not device:
                flags |= _ATTR_NODEV
            if not bind.executable:
                flags |= _ATTR_NOEXEC
            _set_attributes(mount, b"", libc.AT_EMPTY_PATH | libc.AT_RECURSIVE, flags)
            target = _below_root(bind.target)
            if stat.S_ISDIR(os.fstat(mount).st_mode):
                os.makedirs(target, mode=0o755, exist_ok=True)
            elif not os.path.lexists(target):
                _write_file(target, b"")
            libc.call("move_mount", mount, b"", libc.AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(mount)


def _make_scratch(spec: ConfinementSpec) -> None:
    with entering(Layer.VIEW, "making scratch"):
        uid, gid = worker_ids(spec)
        target = _below_root(SCRATCH_TARGET)
        os.makedirs(target, mode=0o755, exist_ok=True)
        options = f"size={spec.view.scratch_bytes},nr_inodes={spec.view.scratch_inodes},mode=700,uid={uid},gid={gid}"
        libc.mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)


def _make_small_things(spec: ConfinementSpec) -> None:
    for file in spec.view.files:
        with entering(Layer.VIEW, f"writing {file.target}"):
            _write_file(_below_root(file.target), file.content)
    with entering(Layer.VIEW, "linking /tmp"):
        if not os.path.lexists("tmp"):  # an installation or checkout below /tmp made it a folder
            os.symlink(SCRATCH_TARGET, "tmp")


def _make_own_process() -> None:
    """Bind this process's folder of /proc, and drop the rest: others are not to be seen, nor what the kernel tells."""
    whole, own = "proc/whole", f"proc/{os.getpid()}"
    with entering(GPU, "showing the worker its own /proc"):
        os.makedirs(whole, mode=0o755)
        os.makedirs(own, mode=0o755)
        libc.mount("proc", whole, "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        try:
            picked = _open_tree(f"{whole}/{os.getpid()}")
            try:
                libc.call("move_mount", picked, b"", libc.AT_FDCWD, os.fsencode(own), _MOVE_MOUNT_F_EMPTY_PATH)
            finally:
                os.close(picked)
        finally:
            libc.umount(whole, _MNT_DETACH)
        os.rmdir(whole)
        os.symlink(str(os.getpid()), OWN_PROCESS.lstrip("/"))


def _become_root() -> None:
    with entering(Layer.VIEW, "becoming the new root"):
        # pivot_root(".", ".") stacks the old root on the new one, so no folder for it is needed (pivot_root(2)).
        libc.call("pivot_root", b".", b".")
        libc.umount(".", _MNT_DETACH)
        os.chdir("/")
        _set_attributes(libc.AT_FDCWD, b"/", 0, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV | _ATTR_NOEXEC)
        os.chdir(SCRATCH_TARGET)


def _set_attributes(descriptor: int, path: bytes, at_flags: int, attributes: int) -> None:
    packed = struct.pack("=QQQQ", attributes, 0, 0, 0)
    libc.call(
        "mount_setattr", descriptor, path, at_flags, ctypes.create_string_buffer(packed, len(packed)), len(packed)
    )


def _below_root(target: str) -> str:
    """Turn an absolute target into a path relative to the new root; it must not climb out of it."""
    if not target.startswith("/") or ".." in target.split("/") or target.strip("/") == "":
        raise ValueError(f"{target!r} is not a target inside the view")
    return target.strip("/")


def _write_file(path: str, content: bytes) -> None:
    _make_folder_of(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        if os.write(descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(descriptor)


def _make_folder_of(path: str) -> None:
    os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
