"""The attacks of the suite, by the rows of the threat model, and how one of them is made.

Each is one function of tests/programs/sandbox_attack.py, which makes it for real. `stopped_by` claims layers of which
each stops it alone, with no other layer than those that this one cannot do without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import select
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.sandbox.harness import ROOT, WORKER_UID, alone, names, run_program
from wan_compat.sandbox import landlock
from wan_compat.sandbox.spec import Layer

# A secret of the user who starts a supervisor: the attack on memory looks for its form, and must not find it.
SECRET_BEGINS = "wan-test-secret-"
SECRET = SECRET_BEGINS + "0123456789abcdef"


@dataclasses.dataclass(frozen=True)
class Case:
    """One attack, its arguments (names in braces stand for what the surroundings hold), and what stops it."""

    row: str
    attack: str
    stopped_by: tuple[Layer, ...]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    order: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Why it does not work without the sandbox either: then only its failing is shown.
    impossible_because: str = ""
    killed_by: frozenset[Layer] = frozenset()  # where being stopped means the end of the process
    only_x86: bool = False
    landlock_abi: int = 0  # the ABI from which Landlock stops it
    beside: tuple[Layer, ...] = ()  # what a layer that stops it needs, for an ordinary user
    # A real worker has other numbers than the small sandbox of the single attack.
    arguments_in_worker: dict[str, Any] | None = None
    setting: tuple[str, int] = ("", 0)  # of /proc/sys, and the highest value with which an ordinary user can do this
    construction: str = ""  # stopped by how things are built, not by a layer: tried in a real worker only

    def __str__(self) -> str:
        told = [str(value) for value in self.arguments.values() if not isinstance(value, list)]
        told += ["sealed"] if self.order.get("seal") else []
        return "-".join([self.attack, *told]).replace("/", "_").replace("{", "").replace("}", "")

    @property
    def title(self) -> str:
        """The name of the row in the table."""
        told = [f"{name} {value}" for name, value in self.arguments.items() if not isinstance(value, list)]
        told += ["after the seal"] if self.order.get("seal") else []
        return self.attack.replace("_", " ") + (
            f" ({', '.join(told)})".replace("{", "").replace("}", "") if told else ""
        )


FILES = (Layer.VIEW, Layer.LANDLOCK)
NET, PID, SECCOMP, LANDLOCK, VIEW, RLIMITS = (
    Layer.NET_NAMESPACE, Layer.PID_NAMESPACE, Layer.SECCOMP, Layer.LANDLOCK, Layer.VIEW, Layer.RLIMITS,
)  # fmt: skip
KILLS = frozenset({SECCOMP})
SCRATCH = {"scratch": "{scratch}"}
INHERITED = {"open_first": "{open}"}
SMALL_FILES = {"limits": {"file_size_bytes": 1 << 20}, **SCRATCH}
RESTRICTED = ("kernel/apparmor_restrict_unprivileged_userns", 0)
NEEDS_CAPABILITY = "needs a capability that no set of layers leaves"
NO_SUCH_ABI = "this kernel may not have that ABI"
BAD_ARGUMENTS = "the call is made with arguments that the kernel refuses; reaching it is what counts"


def kernel_call(name: str, *arguments: int, works: bool = False, kills: bool = False, row: str = "T7") -> Case:
    return Case(row, "make_call", (SECCOMP,), {"name": name, "arguments": list(arguments)},
                killed_by=KILLS if kills else frozenset(), impossible_because="" if works else BAD_ARGUMENTS)  # fmt: skip


CASES = [
    # Reading what is outside.
    # A real worker has an /etc/passwd of its own, with itself alone in it.
    Case("T1", "read_file", FILES, {"path": "/etc/passwd"}, arguments_in_worker={"path": "/etc/group"}),
    Case("T1", "read_file", FILES, {"path": "{secret}"}),
    Case("T1", "read_file", FILES, {"path": "{secret_by_root}"}),
    Case("T1", "read_file", FILES, {"path": "/proc/self/environ"},
         impossible_because="not being dumpable, which every launch sets, closes it too"),
    Case("T1", "read_file", FILES, {"path": "/proc/1/cmdline"}),
    Case("T1", "read_by_native_call", FILES, {"path": "{secret}"}),
    Case("T1", "read_from_thread", FILES, {"path": "{secret}"}),
    Case("T1", "follow_link", FILES, {"path": "{secret}"}, SCRATCH),
    Case("T1", "make_hard_link", (*FILES, SECCOMP), {"path": "{secret}"}, SCRATCH),
    Case("T1", "climb_out", FILES, {"path": "{secret}"}, SCRATCH),
    Case("T1", "ask_size", (VIEW,), {"path": "{secret}"}),
    Case("T1", "list_folder", FILES, {"path": "/usr"}),
    Case("T1", "list_folder", FILES, {"path": "/proc"}),
    Case("T1", "list_folder", FILES, {"path": "{folder}"}),
    Case("T1", "read_descriptor", (Layer.DESCRIPTORS,), {"number": 222}, INHERITED),
    Case("T1", "map_descriptor", (Layer.DESCRIPTORS,), {"number": 222}, INHERITED),
    Case("T1", "open_by_handle", (Layer.CREDENTIALS, SECCOMP), {"path": "{secret}"},
         impossible_because=NEEDS_CAPABILITY, killed_by=KILLS),
    # Writing what is outside.
    Case("T2", "create_file", FILES, {"folder": "{folder}"}),
    Case("T2", "create_file", FILES, {"folder": "/var/tmp"}),
    Case("T2", "create_file", FILES, {"folder": "/dev/shm"}),
    Case("T2", "create_file", FILES, {"folder": "{visible}"}, {"binds": ["{visible}"]}),
    Case("T2", "change_file", FILES, {"path": "{open}"}, {"binds": ["{open}"]}),
    Case("T2", "write_by_native_call", FILES, {"path": "{open}"}, {"binds": ["{open}"]}),
    Case("T2", "write_descriptor", (Layer.DESCRIPTORS,), {"number": 222}, INHERITED),
    Case("T2", "truncate_file", FILES, {"path": "{open}"}, {"binds": ["{open}"]}, landlock_abi=3),
    Case("T2", "rename_file", FILES, {"path": "{seen}"}, {"binds": ["{visible}"]}),
    Case("T2", "remove_file", FILES, {"path": "{seen}"}, {"binds": ["{visible}"]}),
    Case("T2", "change_mode", (VIEW,), {"path": "{owned}"}, {"binds": ["{visible}"]}),
    Case("T2", "change_times", (VIEW,), {"path": "{owned}"}, {"binds": ["{visible}"]}),
    Case("T2", "set_attribute", (VIEW, SECCOMP), {"path": "{owned}"}, {"binds": ["{visible}"]}),
    Case("T2", "plant_link", FILES, {"folder": "{folder}"}),
    Case("T2", "make_fifo", (*FILES, SECCOMP), {"folder": "{folder}"}),
    # Network.
    Case("T3", "connect_tcp", (NET, SECCOMP, LANDLOCK), {"port": "{tcp}"}, landlock_abi=4),
    Case("T3", "connect_by_native_call", (NET, SECCOMP, LANDLOCK), {"port": "{tcp}"}, landlock_abi=4),
    Case("T3", "connect_from_thread", (NET, SECCOMP, LANDLOCK), {"port": "{tcp}"}, landlock_abi=4),
    Case("T3", "listen_tcp", (SECCOMP, LANDLOCK), landlock_abi=4),
    Case("T3", "send_udp", (NET, SECCOMP), {"port": "{udp}"}),
    Case("T3", "connect_unix", (NET, LANDLOCK), {"path": "{abstract}"}, landlock_abi=6),
    Case("T3", "connect_unix", (VIEW,), {"path": "{socket}"}),
    Case("T3", "connect_unix", (SECCOMP,), {"path": "{socket}"}, {"seal": True}),
    Case("T3", "send_datagram_unix", (VIEW,), {"path": "{datagrams}"}),
    Case("T3", "listen_unix", (SECCOMP,), {}, {"seal": True}),
    Case("T3", "make_socket_pair", (SECCOMP,), {}, {"seal": True}),
    Case("T3", "open_socket", (SECCOMP,), {"family": 16, "kind": 3}),  # netlink
    Case("T3", "open_socket", (SECCOMP,), {"family": 17, "kind": 3}, impossible_because=NEEDS_CAPABILITY),  # packet
    Case("T3", "open_socket", (SECCOMP,), {"family": 40, "kind": 1},
         impossible_because="there may be no vsock here"),
    Case("T3", "look_up_name", (NET, SECCOMP), impossible_because="there may be no name server here"),
    # Secrets in memory.
    Case("T4", "search_memory", (), {"beginning": SECRET_BEGINS},
         construction="the zygote is started by exec with an environment written by hand"),
    # Other processes.
    Case("T5", "signal_process", (PID, SECCOMP, LANDLOCK), {"pid": "{victim}"}, landlock_abi=6),
    Case("T5", "signal_thread", (PID, SECCOMP, LANDLOCK), {"pid": "{victim}"}, landlock_abi=6),
    Case("T5", "signal_group", (PID, SECCOMP, LANDLOCK), {"pid": "{victim}"}, landlock_abi=6),
    Case("T5", "signal_by_pidfd", (PID, SECCOMP, LANDLOCK), {"pid": "{victim}"}, landlock_abi=6),
    Case("T5", "queue_signal", (PID, SECCOMP, LANDLOCK), {"pid": "{victim}"}, landlock_abi=6),
    Case("T5", "trace_process", (PID, SECCOMP), {"pid": "{victim}"}, killed_by=KILLS),
    Case("T5", "copy_process_memory", (PID, SECCOMP), {"pid": "{victim}"}, killed_by=KILLS),
    Case("T5", "compare_processes", (PID, SECCOMP), {"pid": "{victim}"}, killed_by=KILLS,
         impossible_because="a process that is not dumpable may not be compared with"),
    Case("T5", "read_process_memory", FILES, {"pid": "{victim}"}),
    Case("T5", "change_priority", (PID, SECCOMP), {"pid": "{victim}"}),
    Case("T5", "limit_process", (PID, SECCOMP), {"pid": "{victim}"}),
    Case("T5", "pin_process", (PID,), {"pid": "{victim}"}),
    Case("T5", "slow_disk_of_process", (PID, SECCOMP), {"pid": "{victim}"}),
    Case("T5", "own_asynchronous_io", (PID, SECCOMP), {"pid": "{victim}"}),
    # New programs, processes, rights.
    Case("T6", "fork", (SECCOMP,)),
    Case("T6", "fork_by_clone3", (SECCOMP,)),
    Case("T6", "spawn_program", (SECCOMP, *FILES)),
    Case("T6", "execute", (SECCOMP, *FILES)),
    Case("T6", "execute_from_memory", (SECCOMP, *FILES)),
    Case("T6", "new_user_namespace", (SECCOMP,), killed_by=KILLS, setting=RESTRICTED),
    Case("T6", "clone_into_namespaces", (SECCOMP,), killed_by=KILLS, setting=RESTRICTED),
    Case("T6", "mount_something", (Layer.CREDENTIALS, SECCOMP), impossible_because=NEEDS_CAPABILITY),
    Case("T6", "become_root", (Layer.CREDENTIALS, SECCOMP), impossible_because=NEEDS_CAPABILITY),
    Case("T6", "take_capabilities", (Layer.CREDENTIALS, SECCOMP), impossible_because=NEEDS_CAPABILITY),
    Case("T6", "map_code_from_scratch", (VIEW,), {}, SCRATCH),
    # Kernel surface.
    Case("T7", "make_x32_call", (SECCOMP,), impossible_because=NO_SUCH_ABI, killed_by=KILLS, only_x86=True),
    Case("T7", "make_32_bit_call", (SECCOMP,), impossible_because=NO_SUCH_ABI, killed_by=KILLS, only_x86=True),
    Case("T7", "read_descriptor_table", (SECCOMP,), killed_by=KILLS, only_x86=True),
    Case("T7", "handle_page_faults", (SECCOMP,), killed_by=KILLS),
    Case("T7", "type_into_terminal", (SECCOMP,)),
    Case("T7", "make_call_in_thread", (SECCOMP,), {"name": "keyctl", "arguments": [0, -3, 1]}, killed_by=KILLS),
    Case("T7", "make_call_behind_a_filter", (SECCOMP,), {"name": "keyctl", "arguments": [0, -3, 1]}, killed_by=KILLS),
    kernel_call("keyctl", 0, -3, 1, works=True, kills=True),
    kernel_call("add_key", 0, 0, 0, 0, 0, kills=True),
    Case("T7", "count_events", (SECCOMP,), killed_by=KILLS, setting=("kernel/perf_event_paranoid", 2)),
    kernel_call("init_module", 0, 0, 0, kills=True),
    kernel_call("kexec_load", 0, 0, 0, 0, kills=True),
    kernel_call("open_tree", -100, 0, 0, kills=True),
    kernel_call("fsopen", 0, 0, kills=True),
    kernel_call("process_madvise", -1, 0, 0, 0, 0, kills=True),
    kernel_call("pidfd_getfd", -1, 0, 0, kills=True),
    kernel_call("io_uring_enter", -1, 0, 0, 0, 0, kills=True),
    Case("T7", "queue_kernel_work", (SECCOMP,), setting=("kernel/io_uring_disabled", 0)),
    Case("T7", "make_anonymous_file", (SECCOMP,)),
    Case("T7", "load_kernel_program", (SECCOMP,), setting=("kernel/unprivileged_bpf_disabled", 0)),
    Case("T7", "make_shared_object", (SECCOMP,), {"kind": "shm"}),
    Case("T7", "make_shared_object", (SECCOMP,), {"kind": "msg"}),
    Case("T7", "make_shared_object", (SECCOMP,), {"kind": "sem"}),
    kernel_call("inotify_init1", 0, works=True),
    kernel_call("fanotify_init", 0x200, 0, works=True),
    kernel_call("personality", 0x0040000, works=True),  # ADDR_NO_RANDOMIZE
    kernel_call("vmsplice", -1, 0, 0, 0),
    # Resources.
    Case("T8", "use_memory", (RLIMITS,), {"size": 256 << 20}, {"limits": {"memory_bytes": 192 << 20}},
         arguments_in_worker={"size": 2 << 30}),
    Case("T8", "share_memory", (SECCOMP,), {"size": 256 << 20}),
    Case("T8", "lock_memory", (RLIMITS, SECCOMP)),
    Case("T8", "start_threads", (RLIMITS,), {"count": 100}, beside=(Layer.USER_NAMESPACE,),
         arguments_in_worker={"count": 400}),
    Case("T8", "open_files", (RLIMITS,), {"count": 100}, arguments_in_worker={"count": 1000}),
    Case("T8", "open_pipes", (RLIMITS,), {"count": 60}, arguments_in_worker={"count": 500}),
    Case("T8", "open_socket_pairs", (SECCOMP,), {"count": 10}, {"seal": True}),
    Case("T8", "raise_limit", (RLIMITS,), impossible_because=NEEDS_CAPABILITY),
    Case("T8", "grow_pipe", (SECCOMP,)),
    Case("T8", "force_socket", (Layer.CREDENTIALS,), {"size": 64 << 20}, impossible_because=NEEDS_CAPABILITY),
    Case("T8", "make_message_queue", (SECCOMP, RLIMITS)),
    Case("T8", "queue_signals", (RLIMITS,), {"count": 1000}, beside=(Layer.USER_NAMESPACE,)),
    Case("T8", "write_big_file", (VIEW, RLIMITS), {"size": 16 << 20}, SMALL_FILES,
         arguments_in_worker={"size": 512 << 20}, killed_by=frozenset()),
    Case("T8", "make_many_files", (VIEW,), {"count": 100}, SCRATCH, arguments_in_worker={"count": 6000}),
    # Its end.
    Case("T9", "outlive_parent", (SECCOMP,)),
    Case("T9", "allow_core", (SECCOMP,)),
    # The ring.
    Case("T11", "resize_ring", (), construction="the ring is sealed against growing and shrinking"),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Things worth attacking."""

    values: dict[str, Any]
    received: socket.socket

    def fill(self, arguments: dict[str, Any]) -> dict[str, Any]:
        def one(value: Any) -> Any:
            if isinstance(value, list):
                return [one(item) for item in value]
            if isinstance(value, str) and value.startswith("{"):
                return self.values[value.strip("{}")]
            return value

        return {name: one(value) for name, value in arguments.items()}


@contextlib.contextmanager
def make_surroundings() -> Iterator[Surroundings]:
    """Make a secret, open folders and files, listeners, and a process of the worker's own uid.

    Not in pytest's temporary folder, which each session of the same user closes to others again.
    """
    with tempfile.TemporaryDirectory(prefix="wan-compat-attacked-") as parent:
        with _surroundings_in(Path(parent)) as around:
            yield around


@contextlib.contextmanager
def _surroundings_in(parent: Path) -> Iterator[Surroundings]:
    parent.chmod(0o755)
    folder, visible, scratch = parent / "folder", parent / "visible", parent / "scratch"
    for made in (folder, visible, scratch):
        made.mkdir()
        made.chmod(0o777)
    files = {"secret": folder / "secret", "open": folder / "model", "seen": visible / "seen", "owned": visible / "own"}
    for path in files.values():
        path.write_text(SECRET)
        path.chmod(0o666)
    if ROOT:
        for path in (files["owned"], files["secret"]):
            os.chown(path, WORKER_UID, WORKER_UID)
    victim = subprocess.Popen(
        ["sleep", "600"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        **({"user": WORKER_UID, "group": WORKER_UID} if ROOT else {}),
    )
    abstract = f"wan-compat-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0), backlog=100) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as hidden,
    ):
        udp.bind(("127.0.0.1", 0))
        paths = [f"/tmp/{abstract}", f"/tmp/{abstract}-d"]
        for server, path in zip((unix, datagrams), paths, strict=True):
            server.bind(path)
            os.chmod(path, 0o777)
        unix.listen(100)
        hidden.bind("\0" + abstract)
        hidden.listen(100)
        try:
            yield Surroundings(
                {
                    **{name: str(path) for name, path in files.items()},
                    "secret_by_root": f"/proc/self/root{files['secret']}",
                    "folder": str(folder),
                    "visible": str(visible),
                    "scratch": str(scratch),
                    "tcp": tcp.getsockname()[1],
                    "udp": udp.getsockname()[1],
                    "socket": paths[0],
                    "datagrams": paths[1],
                    "abstract": "@" + abstract,
                    "victim": victim.pid,
                },
                udp,
            )
        finally:
            for path in paths:
                os.unlink(path)
            victim.kill()
            victim.wait()


def attempt(case: Case, layers: frozenset[Layer], around: Surroundings) -> dict[str, Any]:
    """Make the attack within exactly these layers; what it left is undone."""
    order = {
        "attack": case.attack,
        "layers": names(layers),
        "arguments": around.fill(case.arguments),
        **around.fill(case.order),
    }
    # A seal is part of the system call filter, so that without one there is nothing to seal.
    if Layer.SECCOMP not in layers:
        order.pop("seal", None)
    answer = run_program("sandbox_attack", order)
    answer["arrived"] = undo(around)
    assert answer["gained"] or answer["error"] or answer["signal"], f"the attack itself is broken: {answer}"
    return answer  # type: ignore[no-any-return]


def undo(around: Surroundings) -> bool:
    """Bring the surroundings back to what they were; return whether a datagram had arrived."""
    arrived = False
    while select.select([around.received], [], [], 0)[0]:
        around.received.recv(16)
        arrived = True
    for folder in (around.values["folder"], around.values["visible"], "/var/tmp", "/dev/shm"):
        Path(folder, "made-by-worker").unlink(missing_ok=True)
    for name, owner in (("secret", WORKER_UID), ("open", 0), ("seen", 0), ("owned", WORKER_UID)):
        path = Path(around.values[name])
        path.write_text(SECRET)
        path.chmod(0o666)
        if ROOT:
            os.chown(path, owner, owner)
    return arrived


def without(case: Case) -> frozenset[Layer]:
    """The layers of a process that is not confined: it has the worker's uid and no privilege, and that is all."""
    return alone()


def only(case: Case, layer: Layer) -> frozenset[Layer]:
    """The layers for "this one alone"."""
    return alone(layer, *(() if ROOT else case.beside))


def why_not(case: Case, layer: Layer | None = None) -> str:
    """Say why a case cannot be tried here, or nothing."""
    if case.only_x86 and platform.machine() != "x86_64":
        return "another ABI of x86-64"
    if layer is Layer.LANDLOCK and landlock.abi() < max(case.landlock_abi, 1):
        return f"this kernel's Landlock is ABI {landlock.abi()}, {max(case.landlock_abi, 1)} is needed"
    return ""


def impossible(case: Case) -> str:
    """Say why a case does not work here without the sandbox either, or nothing."""
    name, highest = case.setting
    with contextlib.suppress(OSError, ValueError):
        if name and int(Path("/proc/sys", name).read_text()) > highest:
            return f"{name.replace('/', '.')} forbids it to every ordinary process of this machine"
    return case.impossible_because


def was_killed(answer: dict[str, Any]) -> bool:
    return answer["signal"] == signal.SIGSYS
