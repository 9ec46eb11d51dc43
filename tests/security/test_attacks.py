"""Attacks on the sandbox, made for real: each works without, fails within all layers, and fails with each claimed layer
alone (with the few that it needs to stand on). Names in brackets are the rows of the threat model in SECURITY.md.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.harness import ROOT, WORKER_UID, alone, full_layers, names, run_program
from wan_compat.sandbox import landlock
from wan_compat.sandbox.spec import Layer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these layers are Linux's")


@dataclasses.dataclass(frozen=True)
class Case:
    """One attack, its arguments (names in braces stand for what the fixture made), and the layers that stop it alone."""

    attack: str
    stopped_by: tuple[Layer, ...]
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    order: dict[str, Any] = dataclasses.field(default_factory=dict)
    works_without: bool = True
    killed_by: frozenset[Layer] = frozenset()  # where being stopped means being killed by the filter
    only_root: bool = False
    only_x86: bool = False
    landlock_abi: int = 0  # the ABI from which Landlock stops it

    def __str__(self) -> str:
        told = "-".join(str(value) for value in self.arguments.values() if "{" not in str(value))
        return f"{self.attack}-{told}" if told else self.attack


FILES = (Layer.VIEW, Layer.LANDLOCK)
CASES = [
    # [T1] reading
    Case("read_file", FILES, {"path": "/etc/passwd"}),
    Case("read_file", FILES, {"path": "{secret}"}),
    Case("read_file", FILES, {"path": "/proc/self/environ"}, works_without=False),  # closed by being undumpable too
    Case("read_file", FILES, {"path": "/proc/1/cmdline"}),
    Case("list_folder", FILES, {"path": "/home"}, works_without=False),
    Case("list_folder", FILES, {"path": "/proc"}),
    Case("list_folder", FILES, {"path": "{folder}"}),
    Case("read_descriptor", (Layer.DESCRIPTORS,), {"number": 40}, {"open_first": "{secret}"}),
    # Handles need a capability, so that this one is stopped by what every set of layers contains.
    Case("open_by_handle", (Layer.CREDENTIALS, Layer.SECCOMP), {"path": "{secret}"}, works_without=False,
         killed_by=frozenset({Layer.SECCOMP})),
    # [T2] writing
    Case("create_file", FILES, {"folder": "{folder}"}),
    Case("create_file", FILES, {"folder": "/var/tmp"}),
    Case("create_file", FILES, {"folder": "/dev/shm"}),
    Case("change_file", FILES, {"path": "{open}"}, {"binds": ["{open}"]}),
    # [T3] network
    Case("connect_tcp", (Layer.NET_NAMESPACE, Layer.SECCOMP, Layer.LANDLOCK), {"port": "{tcp}"}, landlock_abi=4),
    Case("send_udp", (Layer.NET_NAMESPACE, Layer.SECCOMP), {"port": "{udp}"}),
    Case("connect_unix", (Layer.NET_NAMESPACE, Layer.LANDLOCK), {"path": "{abstract}"}, landlock_abi=6),
    Case("connect_unix", (Layer.VIEW,), {"path": "{socket}"}),
    Case("connect_unix", (Layer.SECCOMP,), {"path": "{socket}"}, {"seal": True}),
    Case("open_socket", (Layer.SECCOMP,), {"family": 16, "kind": 3}),  # netlink
    Case("open_socket", (Layer.SECCOMP,), {"family": 40, "kind": 1}, works_without=False),  # vsock, where there is one
    Case("look_up_name", (Layer.NET_NAMESPACE, Layer.SECCOMP), works_without=False),
    # [T5] other processes
    Case("signal_process", (Layer.PID_NAMESPACE, Layer.SECCOMP, Layer.LANDLOCK), {"pid": "{victim}"}, landlock_abi=6),
    Case("trace_process", (Layer.PID_NAMESPACE, Layer.SECCOMP), {"pid": "{victim}"},
         killed_by=frozenset({Layer.SECCOMP})),
    Case("copy_process_memory", (Layer.PID_NAMESPACE, Layer.SECCOMP), {"pid": "{victim}"},
         killed_by=frozenset({Layer.SECCOMP})),
    Case("read_process_memory", FILES, {"pid": "{victim}"}),
    Case("change_priority", (Layer.PID_NAMESPACE, Layer.SECCOMP), {"pid": "{victim}"}),
    Case("own_asynchronous_io", (Layer.PID_NAMESPACE, Layer.SECCOMP), {"pid": "{victim}"}),
    # [T6] new programs and processes
    Case("fork", (Layer.SECCOMP,)),
    Case("execute", (Layer.SECCOMP, *FILES)),
    Case("new_user_namespace", (Layer.SECCOMP,), killed_by=frozenset({Layer.SECCOMP})),
    Case("mount_something", (Layer.CREDENTIALS, Layer.SECCOMP), works_without=False),
    # [T7] kernel surface
    Case("make_x32_call", (Layer.SECCOMP,), works_without=False, killed_by=frozenset({Layer.SECCOMP}), only_x86=True),
    Case("make_32_bit_call", (Layer.SECCOMP,), works_without=False, killed_by=frozenset({Layer.SECCOMP}),
         only_x86=True),
    Case("make_call", (Layer.SECCOMP,), {"name": "memfd_create", "arguments": [0, 0]}, works_without=False),
    Case("make_call", (Layer.SECCOMP,), {"name": "io_uring_setup", "arguments": [1, 0]}, works_without=False),
    Case("make_call", (Layer.SECCOMP,), {"name": "keyctl", "arguments": [0, -3, 1]},
         killed_by=frozenset({Layer.SECCOMP})),
    Case("make_call", (Layer.SECCOMP,), {"name": "shmget", "arguments": [0, 4096, 384]}),
    Case("make_call", (Layer.SECCOMP,), {"name": "inotify_init1", "arguments": [0]}),
    # [T8] resources
    Case("use_memory", (Layer.RLIMITS,), {"size": 256 << 20}, {"limits": {"memory_bytes": 192 << 20}}),
    Case("share_memory", (Layer.SECCOMP,), {"size": 256 << 20}),
    Case("open_files", (Layer.RLIMITS,), {"count": 100}),
    Case("raise_limit", (Layer.RLIMITS,), works_without=False),
    Case("grow_pipe", (Layer.SECCOMP,)),
    # [T9] its end
    Case("outlive_parent", (Layer.SECCOMP,)),
    Case("allow_core", (Layer.SECCOMP,)),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Surroundings:
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


@pytest.fixture
def surroundings(tmp_path: Path) -> Iterator[Surroundings]:
    """Things worth attacking: a secret, open folders and files, listeners, and a process of the worker's own uid."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/") and parent != Path("/tmp"):
            parent.chmod(0o755)
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o777)
    secret = folder / "secret"
    secret.write_text("secret")
    opened = folder / "model"
    opened.write_text("weights")
    opened.chmod(0o666)
    victim = subprocess.Popen(
        ["sleep", "60"], stdin=subprocess.DEVNULL, **({"user": WORKER_UID, "group": WORKER_UID} if ROOT else {})
    )
    abstract = f"wan-compat-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as hidden,
    ):
        udp.bind(("127.0.0.1", 0))
        path = f"/tmp/{abstract}"
        unix.bind(path)
        os.chmod(path, 0o777)
        unix.listen()
        hidden.bind("\0" + abstract)
        hidden.listen()
        try:
            yield Surroundings(
                {
                    "secret": str(secret),
                    "folder": str(folder),
                    "open": str(opened),
                    "tcp": tcp.getsockname()[1],
                    "udp": udp.getsockname()[1],
                    "socket": path,
                    "abstract": "@" + abstract,
                    "victim": victim.pid,
                },
                udp,
            )
        finally:
            os.unlink(path)
            victim.kill()
            victim.wait()


def attempt(case: Case, layers: frozenset[Layer], around: Surroundings) -> dict[str, Any]:
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
    for folder in (around.values["folder"], "/var/tmp", "/dev/shm"):
        Path(folder, "made-by-worker").unlink(missing_ok=True)
    assert answer["gained"] or answer["error"] or answer["signal"], f"the attack itself is broken: {answer}"
    return answer  # type: ignore[no-any-return]


def skip_where_impossible(case: Case) -> None:
    if case.only_root and not ROOT:
        pytest.skip("only root can try this")
    if case.only_x86 and platform.machine() != "x86_64":
        pytest.skip("another ABI of x86-64")


@pytest.mark.parametrize("case", [case for case in CASES if case.works_without], ids=str)
def test_attack_works_without_the_sandbox(case: Case, surroundings: Surroundings) -> None:
    skip_where_impossible(case)
    answer = attempt(case, alone(), surroundings)
    assert answer["gained"], answer


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attack_fails_in_the_sandbox(case: Case, surroundings: Surroundings) -> None:
    skip_where_impossible(case)
    answer = attempt(case, full_layers(), surroundings)
    assert answer["gained"] is None, answer
    if case.killed_by:
        assert answer["signal"] == signal.SIGSYS, answer
    assert not select.select([surroundings.received], [], [], 0)[0], "a datagram came through"


@pytest.mark.parametrize(
    ("case", "layer"),
    [(case, layer) for case in CASES for layer in case.stopped_by],
    ids=lambda value: str(value.value) if isinstance(value, Layer) else str(value),
)
def test_attack_fails_with_one_layer_alone(case: Case, layer: Layer, surroundings: Surroundings) -> None:
    skip_where_impossible(case)
    if layer is Layer.LANDLOCK and landlock.abi() < max(case.landlock_abi, 1):
        pytest.skip(f"this kernel's Landlock is ABI {landlock.abi()}, {case.landlock_abi} is needed")
    answer = attempt(case, alone(layer), surroundings)
    assert answer["gained"] is None, answer
    assert (answer["signal"] == signal.SIGSYS) == (layer in case.killed_by), answer
