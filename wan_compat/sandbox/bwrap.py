"""An outer sandbox made by bubblewrap, for machines that refuse namespaces to this Python but not to it.

    supervisor --exec--> bwrap            namespaces, view, no capabilities, then waits
               <-info--    |              which namespaces it made
               --go-->     '--exec--> launcher (Python) --fork, twice--> worker: every layer that needs no privilege

Some distributions let only programs that they know make user namespaces (AppArmor on Ubuntu); others install bwrap
setuid, and allow namespaces to nobody else. What runs inside it may make none itself, so one bwrap is the sandbox of
one worker: `ConfinementSpec.outer` names the layers that are in force around the launcher, and `launch` enters the
rest.

What is different from the layers of our own (docs/adr/0012):

- nothing in the view can be written: bwrap's tmpfs has neither a limit of files nor noexec, so there is no scratch;
- files of the view are not noexec; what a model's folder holds was admitted by content, and is read-only;
- the launcher and bwrap are visible to the worker, as process ids: seccomp and Landlock refuse to touch them;
- loopback is up in the network namespace, with nobody else on it.

bwrap runs before anything hostile and takes no part afterwards, but to die: with whoever started it
(--die-with-parent), and with it everything in its process namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence

from wan_compat.sandbox import runtime_view
from wan_compat.sandbox.failure import bwrap_remedy, failed
from wan_compat.sandbox.launch import OOM_SCORE
from wan_compat.sandbox.spec import CONTROL_TARGET, OUTER_LAYERS, SCRATCH_TARGET, Bind, ConfinementSpec, Layer
from wan_compat.sandbox.view import devices_of

NAME = "bwrap"
_PLACES = os.pathsep.join(("/usr/bin", "/bin", "/usr/local/bin", "/run/current-system/sw/bin"))
_START_TIMEOUT_S = 5.0
_MAX_INFO_BYTES = 4096
# bwrap's names in the document of --info-fd, and the link of /proc/PID/ns.
_NAMESPACES = {
    Layer.MOUNT_NAMESPACE: "mnt",
    Layer.PID_NAMESPACE: "pid",
    Layer.NET_NAMESPACE: "net",
    Layer.IPC_NAMESPACE: "ipc",
    Layer.UTS_NAMESPACE: "uts",
    Layer.CGROUP_NAMESPACE: "cgroup",
}
_INSTALL = "install bubblewrap, which may be allowed what this Python is not (apt install bubblewrap)"


def find() -> str:
    """Return the path of a bwrap that nobody but root could have put or changed there. Whether it works is not said.

    Raises:
        SandboxEntryFailed: There is none, or somebody else could have written it.
    """
    found = shutil.which(NAME, path=_PLACES)
    if found is None:
        raise failed(NAME, "bubblewrap is not installed", _INSTALL)
    path = os.path.realpath(found)
    check_trustworthy(path)
    return path


def check_trustworthy(path: str) -> None:
    """Refuse a program that another user than root owns or could replace, by itself or by a folder on the way to it."""
    place = path
    while True:
        status = os.stat(place)
        # In a sticky folder others may add names, but neither remove nor rename what is root's (/nix/store is one).
        shared = status.st_mode & 0o022 and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX)
        if status.st_uid != 0 or shared:
            raise failed(
                NAME,
                f"{path} is not used: {place} has owner {status.st_uid} and mode {stat.S_IMODE(status.st_mode):04o}",
                f"reinstall bubblewrap, so that only root can change it (chown root {place}; chmod go-w {place})",
            )
        if place == "/":
            return
        place = os.path.dirname(place)


def start(
    path: str,
    spec: ConfinementSpec,
    program: Sequence[str],
    *,
    env: Mapping[str, str],
    pass_fds: Sequence[int],
    stdout: int,
    stderr: int,
) -> tuple[subprocess.Popen[bytes], frozenset[Layer]]:
    """Start `program` inside a bwrap that holds the view of `spec` and the interpreter.

    Runs in the supervisor, in a thread that lives as long as the worker shall. bwrap writes its complaints to `stderr`.

    Returns:
        bwrap's process, owned by the caller, and the layers that are now in force around the program.

    Raises:
        SandboxEntryFailed: bwrap could not make the sandbox, or did not say so in time; it is then dead and reaped.
    """
    with contextlib.ExitStack() as undo:

        def pipe() -> tuple[int, int]:
            ends = os.pipe2(os.O_CLOEXEC)
            for end in ends:
                undo.callback(os.close, end)
            return ends

        info_read, info_write = pipe()
        go_read, go_write = pipe()
        words, contents = _arguments(spec, undo)
        words += ["--info-fd", str(info_write), "--block-fd", str(go_read)]
        order = _memory_file(b"".join(os.fsencode(word) + b"\0" for word in words), undo)
        try:
            process = subprocess.Popen(
                # By descriptor: the paths of a model are nobody's business in the list of processes.
                [path, "--args", str(order), "--", *program],
                env=dict(env),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[*pass_fds, order, *contents, info_write, go_read],
                start_new_session=True,
            )
        except OSError as error:
            raise failed(NAME, f"{path} could not be started: {error.strerror}", _INSTALL, error.errno) from error
        child = 0
        try:
            child, made = _read_info(process, info_read)
            if missing := sorted(layer.value for layer in OUTER_LAYERS - made):
                raise failed(NAME, f"{path} made no {', '.join(missing)}", bwrap_remedy())
            _charge(spec, (process.pid, child))
            os.write(go_write, b"g")
        except BaseException:
            if child:  # it may not have come to binding its life to bwrap's
                with contextlib.suppress(OSError):
                    os.kill(child, signal.SIGKILL)
            process.kill()
            process.wait()
            raise
        return process, made | ({Layer.CGROUP} if spec.cgroup_dirs else frozenset())


def _arguments(spec: ConfinementSpec, undo: contextlib.ExitStack) -> tuple[list[str], list[int]]:
    """Return bwrap's arguments for the view of `spec`, and the descriptors that they name."""
    words = ["--unshare-user-try", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    words += ["--unshare-cgroup", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    words += ["--hostname", spec.hostname]
    binds = [*spec.view.binds, *runtime_view.interpreter_binds()]
    if spec.view.control_dir is not None:
        binds.append(Bind(source=spec.view.control_dir, target=CONTROL_TARGET))
    for bind in sorted(binds, key=lambda bind: bind.target.count("/")):  # parents before what lies in them
        words += ["--ro-bind", bind.source, bind.target]
    if spec.gpu is not None:  # CUDA wants to name its threads; what of it may be touched is for Landlock to say
        words += ["--proc", "/proc"]
    for device in devices_of(spec):
        words += ["--dev-bind", device, device]
    contents = []
    for file in spec.view.files:
        if spec.gpu is not None and file.target.startswith("/proc/"):
            continue  # the mounted one has the original
        contents.append(_memory_file(file.content, undo))
        words += ["--perms", "0444", "--file", str(contents[-1]), file.target]
    # Folders that libraries expect, but may not write to.
    words += ["--dir", SCRATCH_TARGET]
    if not any(bind.target.startswith("/tmp/") for bind in binds):  # noqa: S108 - a checkout or installation there
        words += ["--symlink", SCRATCH_TARGET, "/tmp"]  # noqa: S108
    return [*words, "--remount-ro", "/", "--chdir", SCRATCH_TARGET], contents


def _memory_file(content: bytes, undo: contextlib.ExitStack) -> int:
    descriptor = os.memfd_create("wan-compat", os.MFD_CLOEXEC)
    undo.callback(os.close, descriptor)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _read_info(process: subprocess.Popen[bytes], info_fd: int) -> tuple[int, frozenset[Layer]]:
    """Return the process id inside which the program will run, and the layers that bwrap says it has made."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    text = b""
    while not text.rstrip().endswith(b"}"):
        # The end of file never comes while we hold the other end, which bwrap has inherited from us.
        readable, _, _ = select.select([info_fd], [], [], 0.02)
        if readable:
            text += os.read(info_fd, _MAX_INFO_BYTES)
        elif process.poll() is not None:
            raise failed(NAME, f"bwrap ended with {process.returncode}", bwrap_remedy())
        elif time.monotonic() > deadline:
            raise failed(NAME, f"bwrap said nothing for {_START_TIMEOUT_S:g} s", "look at the load of the machine")
        if len(text) > _MAX_INFO_BYTES:
            raise failed(NAME, "bwrap reported nonsense", bwrap_remedy())
    try:
        said = json.loads(text)
        child = int(said["child-pid"])
        made = {
            layer
            for layer, name in _NAMESPACES.items()
            if int(said.get(f"{name}-namespace", 0)) not in (0, os.stat(f"/proc/self/ns/{name}").st_ino)
        }
        with open(f"/proc/{child}/uid_map", "rb") as inside, open("/proc/self/uid_map", "rb") as outside:
            if inside.read() != outside.read():
                made.add(Layer.USER_NAMESPACE)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise failed(NAME, f"bwrap's report cannot be understood: {error}", bwrap_remedy()) from error
    return child, frozenset({*made, Layer.VIEW})


def _charge(spec: ConfinementSpec, pids: tuple[int, ...]) -> None:
    """Put bwrap, and with it all that it starts, into the worker's cgroups: from inside they cannot be reached."""
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "wb") as score:
            score.write(OOM_SCORE)
        for folder in spec.cgroup_dirs:
            try:
                with open(f"{folder}/cgroup.procs", "wb") as members:
                    members.write(str(pid).encode())
            except OSError as error:
                raise failed(
                    Layer.CGROUP, f"joining {folder}: {error.strerror}", "report this as a bug", error.errno
                ) from error
