"""`wan-compat monitor` as a person and a script use it: with real supervisors, in a real terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.cli.conftest import RunCli
from tests.supervisor.monitor.tmux import REPOSITORY, SANE, needs_tmux, window
from wan_compat.protocol.status import JobStatus, MachineStatus, Note, SupervisorStatus, WorkerStatus


@pytest.fixture
def runtime() -> Iterator[str]:
    """A runtime folder of the test's own, so that nobody else's supervisors are seen; short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="wan-compat-mon-") as folder:
        yield folder


def test_without_supervisors_it_says_what_to_do(cli: RunCli, runtime: str) -> None:
    ended = cli("monitor", "--once", XDG_RUNTIME_DIR=runtime)
    assert ended.code == 0
    assert "No supervisor of yours is running." in ended.out
    assert "wan-compat generate" in ended.out
    assert cli("monitor", "--once", "--json", XDG_RUNTIME_DIR=runtime).document == {
        "schema_version": 1,
        "supervisors": [],
        "silent": [],
    }


def test_without_a_terminal_it_is_refused_and_names_the_way(cli: RunCli, runtime: str) -> None:
    ended = cli("monitor", XDG_RUNTIME_DIR=runtime)
    assert ended.code == 2
    assert "wan-compat monitor --once" in ended.err


@needs_tmux
def test_jobs_are_seen_cancelled_and_killed_and_a_script_sees_the_same(cli: RunCli, runtime: str) -> None:
    command = [sys.executable, "-m", "tests.programs.slow_jobs", str(tiny_model("t2v")), "3"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": runtime}
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(
            subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(program.kill)  # its own processes end with it
        tmux = stack.enter_context(window(XDG_RUNTIME_DIR=runtime))
        assert program.stdout is not None
        tmux.type("python -m wan_compat monitor")
        shown = tmux.wait("denoise")
        assert f"pid {program.pid}" in shown
        assert "fox \\x1b[2J 1" in shown
        tmux.wait("s/it")
        tmux.wait("2 waiting")

        ended = cli("monitor", "--once", "--json", XDG_RUNTIME_DIR=runtime)
        status = ended.document["supervisors"][0]
        assert ended.document["silent"] == []
        assert (status["pid"], status["queued_count"], status["max_workers"]) == (program.pid, 2, 1)
        assert status["running"][0]["id"] == status["workers"][0]["job"] == "j1"
        assert status["workers"][0]["rss_bytes"] > 0
        assert "\x1b" not in ended.out

        # One that waits, one that runs, and the worker of the next.
        tmux.press("/", "j", "3", "Enter", "G", "c")
        tmux.wait("Cancel j3 (fox \\x1b[2J 3)?")
        tmux.press("y", "Escape")
        tmux.wait(" 1 waiting")
        tmux.press("g", "j", "j", "c")
        tmux.wait("Cancel j1 (fox \\x1b[2J 1)?")
        tmux.press("y")
        assert program.stdout.readline() == "j1 JobCancelled\n"
        tmux.wait(lambda shown: "cancelled" in shown and "└ j2    " in shown)
        tmux.press("g", "j", "x")
        tmux.wait("in the middle of j2?")
        tmux.press("y")
        assert program.stdout.read() == "j2 WorkerKilled\nj3 JobCancelled\n"
        tmux.wait("gone")
        tmux.press("q")
        tmux.wait(lambda shown: shown.rstrip().endswith("READY>"))
        assert tmux.flags() == SANE


def test_a_terminal_is_given_back_whatever_ends_the_monitor(runtime: str) -> None:
    """SIGTERM, SIGHUP, Ctrl-C and a terminal that goes away, all at once."""
    ends = {name: Watched(runtime, name) for name in ("SIGTERM", "SIGHUP", "SIGINT", "closed")}
    for watched in ends.values():
        watched.read_until(b"No supervisor of yours")
    for name, watched in ends.items():
        if name == "closed":
            os.close(watched.ours)
        else:
            watched.process.send_signal(signal.Signals[name])
    codes = {name: watched.end() for name, watched in ends.items()}
    assert codes == {"SIGTERM": 143, "SIGHUP": 143, "SIGINT": 0, "closed": 0}
    for name, watched in ends.items():
        if name != "closed":
            assert watched.modes_after == watched.modes_before, name
            for restored in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?7h"):
                assert watched.shown.rfind(restored) > watched.shown.rfind(b"No supervisor"), name
    colored = ends["SIGHUP"].shown, ends["SIGTERM"].shown
    assert b"\x1b[1;36m" in colored[0]  # one of the sixteen
    assert b"\x1b[38;" not in colored[0]
    assert b";36m" not in colored[1]  # NO_COLOR
    assert b"\xe2" not in colored[1]  # LC_ALL=C: ASCII


def test_the_page_names_every_field_of_the_document(repository: Path) -> None:
    page = (repository / "docs" / "monitor.md").read_text()
    classes = (SupervisorStatus, WorkerStatus, JobStatus, Note, MachineStatus)
    assert [name for cls in classes for name in cls.model_fields if f"`{name}`" not in page] == []


class Watched:
    """A monitor on a terminal of ours."""

    def __init__(self, runtime: str, name: str) -> None:
        self.ours, self._theirs = pty.openpty()
        self.modes_before = termios.tcgetattr(self._theirs)
        plain = {"NO_COLOR": "1", "LC_ALL": "C"} if name == "SIGTERM" else {"LC_ALL": "C.UTF-8"}
        kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wan_compat", "monitor"],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env={**kept, "TERM": "xterm", "XDG_RUNTIME_DIR": runtime, **plain},
        )
        os.set_blocking(self.ours, False)
        self.shown = b""
        self.modes_after: list[object] = []

    def read_until(self, text: bytes) -> None:
        end = time.monotonic() + 60
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            self._read()
            time.sleep(0.02)

    def end(self) -> int:
        end = time.monotonic() + 60
        while (code := self.process.poll()) is None:
            assert time.monotonic() < end
            self._read()
            time.sleep(0.02)
        self._read()
        self.modes_after = termios.tcgetattr(self._theirs) if self._is_open() else []
        os.close(self._theirs)
        if self._is_open():
            os.close(self.ours)
        return code

    def _is_open(self) -> bool:
        try:
            os.fstat(self.ours)
        except OSError:
            return False
        return True

    def _read(self) -> None:
        try:
            self.shown += os.read(self.ours, 65536)
        except OSError:
            pass  # nothing there, or closed
