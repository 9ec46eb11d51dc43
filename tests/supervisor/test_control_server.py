"""The control socket against clients that are wrong, slow, greedy or somebody else; with a supervisor that does nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from wan_compat.protocol import control as c
from wan_compat.protocol import errors
from wan_compat.protocol.status import SupervisorStatus
from wan_compat.protocol.values import GenerationRequest, Mode
from wan_compat.supervisor import control_server
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.attach import Attached
from wan_compat.supervisor.control_client import Wire
from wan_compat.supervisor.control_server import ControlServer
from wan_compat.supervisor.job import Job, Ticket
from wan_compat.supervisor.remote import RemoteSupervisor

KEY = itertools.count(1)


class Idle:
    """A supervisor whose jobs are run by the test, if at all. Notes what it was asked."""

    mode = Mode.SAFE

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.jobs: dict[str, Job] = {}

    def status(self) -> SupervisorStatus:
        return SupervisorStatus(
            id="idle", pid=os.getpid(), program="test", version="0", mode="safe", started_unix_s=1.0, now_unix_s=2.0
        )

    def cancel(self, job_id: str) -> bool:
        self.asked.append(f"cancel {job_id}")
        return job_id in self.jobs

    def kill_worker(self, worker_id: str) -> bool:
        self.asked.append(f"kill {worker_id}")
        return False

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def drain(self, timeout_s: float | None = None) -> bool:
        self.asked.append(f"drain {timeout_s}")
        return True

    def submit(self, request: GenerationRequest, *, priority: int, group: str, label: str) -> Job:
        job: Job = Job(request, f"j{len(self.jobs) + 1}", Ticket(priority, group, label), lambda job: None)
        self.jobs[job.id] = job
        return job

    submit_conversion = submit  # type: ignore[assignment]


@contextlib.contextmanager
def served(folder: Path, **options: bool) -> Iterator[tuple[str, Idle, ControlServer]]:
    idle = Idle()
    server = ControlServer(idle, id="idle", **{"serves": True, **options})
    path = str(folder / "s")
    server.listen(path)
    server.start()
    try:
        yield path, idle, server
    finally:
        server.close()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    with served(tmp_path) as (path, _, _):
        yield path


def raw(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(path)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1 << 16):
            found += data
    return found


def request(**fields: object) -> GenerationRequest:
    return GenerationRequest(**{"model": "/models/wan", "prompt": "x", **fields})


def submit(**fields: object) -> c.Submit:
    return c.Submit(key=f"{next(KEY):032x}", generation=request(), **fields)


# -- who may connect ---------------------------------------------------------------------------------------------------


def test_the_socket_is_this_users_alone(path):
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


AS_NOBODY = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.settimeout(10)
try:
    s.connect(sys.argv[1])
    print("heard", s.recv(100))
except (PermissionError, ConnectionResetError) as error:
    print(type(error).__name__)
"""


def heard_by_nobody(path: str) -> str:
    command = [sys.executable, "-I", "-S", "-c", AS_NOBODY, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; the next test is for everybody")
def test_another_user_cannot_connect_and_is_hung_up_on_where_he_could():
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as (path, _, _):
        assert heard_by_nobody(path) == "PermissionError"  # the folder
        os.chmod(folder, 0o711)
        assert heard_by_nobody(path) == "PermissionError"  # the socket
        os.chmod(path, 0o666)
        assert heard_by_nobody(path) in ("heard b''", "ConnectionResetError")  # who he is
        with Attached(path) as attached:  # and the user himself still may
            assert attached.status().id == "idle"


def test_a_client_with_another_user_id_is_hung_up_on_before_a_byte_is_read(path, monkeypatch):
    monkeypatch.setattr(control_server, "peer_of", lambda _: (1, os.geteuid() + 1))
    with raw(path) as connection:
        assert read_to_end(connection) == b""


def test_a_server_of_another_user_is_not_believed(path, monkeypatch):
    monkeypatch.setattr("wan_compat.supervisor.control_client.peer_of", lambda _: (1, os.geteuid() + 1))
    with pytest.raises(errors.EnvironmentLacks, match="another user"):
        Attached(path)


# -- what they say -----------------------------------------------------------------------------------------------------


def refusal_in(data: bytes) -> c.Refusal:
    (length,) = c.LENGTH.unpack_from(data)
    number, message = c.from_supervisor_codec().decode(data[c.LENGTH.size : c.LENGTH.size + length])
    assert number == c.NO_REQUEST and len(data) == c.LENGTH.size + length
    assert isinstance(message, c.Refusal)
    return message


GREET = c.pack(c.to_supervisor_codec().encode(c.Greet(program="t"), 1))
HOSTILE = {
    "garbage": c.pack(b"\xc1" * 20),
    "empty": c.pack(b""),
    "another version": c.pack(msgpack.packb([99, 1, {"type": "greet", "program": "t"}])),
    "no greeting": c.pack(c.to_supervisor_codec().encode(c.Pause(), 1)),
    "a length of gigabytes": c.LENGTH.pack(2**32 - 1),
    "deep nesting": c.pack(b"\x91" * 100_000),
    "unknown request": c.pack(msgpack.packb([1, 1, {"type": "eval", "code": "1"}])),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("words", HOSTILE)
def test_what_is_no_request_is_told_why_and_hung_up_on(words, path):
    with raw(path) as connection, contextlib.suppress(BrokenPipeError):
        connection.sendall(HOSTILE[words])
        assert refusal_in(read_to_end(connection)).code == "protocol_violation"
    with Attached(path) as attached:
        attached.status()


def test_a_violation_after_the_greeting_ends_that_client_only(path):
    with Attached(path) as other:
        with raw(path) as connection:
            connection.sendall(GREET + GREET)
            data = read_to_end(connection)
            (length,) = c.LENGTH.unpack_from(data)
            assert refusal_in(data[c.LENGTH.size + length :]).message.startswith("the first message is Greet")
        other.status()


def test_a_request_may_come_byte_by_byte(path):
    with raw(path) as connection:
        for byte in GREET:
            connection.send(bytes([byte]))
        assert len(connection.recv(1000)) > c.LENGTH.size


def test_who_does_not_greet_is_hung_up_on(tmp_path, monkeypatch):
    monkeypatch.setattr(c, "GREETING_S", 0.1)
    with served(tmp_path) as (path, _, _), raw(path) as connection:
        assert read_to_end(connection) == b""


def test_no_more_programs_than_there_are_places(tmp_path, monkeypatch):
    monkeypatch.setattr(c, "MAX_CLIENTS", 3)
    with served(tmp_path) as (path, _, _), contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(Attached(path)).status()
        with pytest.raises(errors.ResourceExceeded, match="3 programs"):
            Attached(path)
        stack.close()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(errors.ResourceExceeded), Attached(path) as attached:
                attached.status()
                return
        pytest.fail("places of clients that left stay taken")


def test_descriptors_that_a_client_attaches_are_closed(path):
    before = len(os.listdir("/proc/self/fd"))
    with raw(path) as connection, open(os.devnull) as file:
        socket.send_fds(connection, [GREET], [file.fileno()] * 20)
        assert connection.recv(10)
        # Ours: the connection, the file, and the server's end; what was attached would be twenty more.
        assert len(os.listdir("/proc/self/fd")) < before + 10


# -- how fast, how slowly ----------------------------------------------------------------------------------------------


def test_who_asks_too_fast_waits_and_others_do_not(path):
    asked = 260
    began = time.monotonic()
    with raw(path) as greedy:
        greedy.sendall(GREET)
        codec = c.to_supervisor_codec()
        flood = b"".join(c.pack(codec.encode(c.CancelJob(job="j1"), number)) for number in range(2, asked + 2))
        sender = threading.Thread(target=greedy.sendall, args=(flood,))
        sender.start()
        with Attached(path) as patient:
            patient.status()
            answered_after = time.monotonic() - began
        answers = 0
        buffer = b""
        while answers < asked + 1:
            buffer += greedy.recv(1 << 16)
            while len(buffer) >= 4 and len(buffer) >= 4 + c.LENGTH.unpack_from(buffer)[0]:
                buffer = buffer[4 + c.LENGTH.unpack_from(buffer)[0] :]
                answers += 1
        took = time.monotonic() - began
        sender.join(10)
    assert took > (asked - c.REQUEST_BURST) / c.REQUESTS_PER_S * 0.8
    assert answered_after < took


def test_who_does_not_read_makes_nobody_wait_and_fills_nothing(tmp_path):
    with served(tmp_path) as (path, idle, server), contextlib.closing(Wire(path)) as wire:
        wire.send(submit(), 2)
        assert isinstance(wire.receive()[1], c.Submitted)
        wire.send(c.FollowJob(job="j1"), 3)
        job = idle.jobs["j1"]
        picture = bytes(128 * 128 * 3)
        began = time.monotonic()
        for number in range(200):  # some 13 MB of events
            job.emit(ev.LatentPreview(number, 128, 128, picture))
        assert time.monotonic() - began < 5
        with Attached(path) as other:
            other.status()
        assert max(client.unsent for client in list(server._clients)) < 2 * c.MAX_UNSENT_BYTES
        job.finish(errors.JobCancelled("enough"))
        seen = []
        while not seen or seen[-1].kind != "Ended":
            message = wire.receive()[1]
            if isinstance(message, c.JobEvent):
                seen.append(message)
        assert [one.index for one in seen] == sorted({one.index for one in seen})


def test_a_supervisor_that_does_not_answer_keeps_nobody_waiting_for_long(tmp_path):
    with served(tmp_path) as (path, idle, _), contextlib.closing(Attached(path, answer_s=0.1)) as attached:
        asleep = threading.Event()
        idle.pause = lambda: asleep.wait(20)  # type: ignore[assignment,method-assign]
        with pytest.raises(errors.DeadlineExceeded, match="has not answered within"):
            attached.pause()
        asleep.set()
        attached._answer_s = 20.0
        assert attached.status().id == "idle"


# -- what they may -----------------------------------------------------------------------------------------------------


def test_orders_reach_the_supervisor(tmp_path):
    with served(tmp_path) as (path, idle, _), Attached(path) as attached:
        assert attached.greeting.pid == os.getpid()
        assert not attached.cancel("j9") and not attached.kill_worker("w1")
        attached.pause()
        attached.resume()
        assert attached.drain()
        assert idle.asked == ["cancel j9", "kill w1", "pause", "resume", "drain 0"]


def test_a_read_only_socket_shows_and_takes_no_orders(tmp_path):
    with served(tmp_path, serves=False, read_only=True) as (path, idle, _), Attached(path) as attached:
        status = attached.status()
        assert status.read_only and not status.serves
        for order in (attached.pause, attached.resume, attached.drain, lambda: attached.cancel("j1")):
            with pytest.raises(errors.RefusedByPolicy, match="no orders"):
                order()
        with pytest.raises(errors.RefusedByPolicy):
            attached.kill_worker("w1")
        assert idle.asked == []


def test_a_supervisor_that_does_not_serve_takes_no_jobs(tmp_path):
    with served(tmp_path, serves=False) as (path, idle, _), RemoteSupervisor(path) as remote:
        with pytest.raises(errors.RefusedByPolicy, match="its own program only"):
            remote.submit(request())
        assert idle.jobs == {}


@pytest.mark.parametrize("fields", [{"output": "v.mp4"}, {"references": ("a.png",)}, {"model": "wan"}])
def test_a_relative_path_is_refused(fields, path):
    with contextlib.closing(Wire(path)) as wire:
        wire.send(c.Submit(key=f"{next(KEY):032x}", generation=request(**fields)), 2)
        answer = wire.receive()[1]
    assert isinstance(answer, c.Refusal) and "is not an absolute path" in answer.message


@pytest.mark.parametrize("both", [True, False])
def test_a_job_is_one_thing(both, path):
    job = {"generation": request(), "conversion": {"model": "/m", "output": "/o"}} if both else {}
    with contextlib.closing(Wire(path)) as wire:
        wire.send(c.Submit(key=f"{next(KEY):032x}", **job), 2)
        answer = wire.receive()[1]
    assert isinstance(answer, c.Refusal) and "either" in answer.message


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_submitting_twice_with_one_key_is_one_job(tmp_path):
    with served(tmp_path) as (path, idle, _):
        order = submit()
        for _ in range(2):
            with contextlib.closing(Wire(path)) as wire:
                wire.send(order, 2)
                assert wire.receive()[1] == c.Submitted(job="j1")
        assert list(idle.jobs) == ["j1"]


def test_only_a_job_that_asked_for_it_is_cancelled_when_its_client_leaves(tmp_path):
    with served(tmp_path) as (path, idle, _):
        with contextlib.closing(Wire(path)) as wire:
            for number, wish in enumerate((True, False, True), 2):
                wire.send(submit(cancel_on_disconnect=wish), number)
                wire.receive()
        deadline = time.monotonic() + 10
        while len(idle.asked) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert idle.asked == ["cancel j1", "cancel j3"]


def test_a_job_that_was_not_submitted_here_is_unknown(path):
    with RemoteSupervisor(path) as remote, pytest.raises(errors.UnknownJob, match="j7"):
        remote.job("j7")


def test_jobs_that_are_over_are_forgotten_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(c, "MAX_KEPT_JOBS", 3)
    with served(tmp_path) as (path, idle, server), RemoteSupervisor(path) as remote:
        for _ in range(6):
            job = remote.submit(request())
            idle.jobs[job.id].finish(errors.JobCancelled("enough"))
            with pytest.raises(errors.JobCancelled):
                job.result(10)
        kept = server._requests.kept  # type: ignore[union-attr]
        assert list(kept._jobs) == ["j3", "j4", "j5", "j6"] and len(kept._by_key) == 4
        with pytest.raises(errors.UnknownJob):
            remote.job("j1")


def test_a_bug_in_one_request_is_told_and_the_socket_goes_on(tmp_path, monkeypatch):
    with served(tmp_path) as (path, idle, _), Attached(path) as attached:
        monkeypatch.setattr(idle, "pause", lambda: 1 / 0)
        with pytest.raises(errors.GenerationFailed, match="ZeroDivisionError"):
            attached.pause()
        attached.resume()


def test_closing_leaves_no_socket_no_thread_and_no_descriptor(tmp_path):
    before, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    with served(tmp_path) as (path, _, server), Attached(path) as attached:
        attached.status()
        server.close()
        server.close()
        with pytest.raises(errors.SupervisorGone):
            attached.status()
    assert not os.path.exists(path)
    assert len(os.listdir("/proc/self/fd")) == before
    new = set(threading.enumerate()) - threads
    assert not [thread for thread in new if thread.name == "wan-compat-control"]


def test_a_path_that_is_too_long_is_a_typed_error(tmp_path):
    with pytest.raises(errors.EnvironmentLacks, match="longer than the 107 bytes"):
        ControlServer(Idle(), id="idle").listen(str(tmp_path / ("x" * 120)))
