"""Runs the real program, as a user's shell or script would."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest


class Ended:
    """How a run ended: exit code and both streams as text."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; fails when there is anything else."""
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


RunCli = Callable[..., Ended]
PROGRAM = ("-m", "wan_compat")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment without a user's settings; its cache, state and data folders belong to the test."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "CI") if name in os.environ}
    folders = {f"XDG_{kind.upper()}_HOME": str(tmp_path / kind) for kind in ("cache", "state", "data")}
    return {**kept, **folders, "COLUMNS": "100"}


@pytest.fixture
def cli(tmp_path: Path, environment: dict[str, str]) -> RunCli:
    """Run `wan-compat ARGUMENTS` in an empty folder without a terminal; returns an Ended."""
    folder = tmp_path / "cwd"
    folder.mkdir()

    def run(
        *arguments: str | Path,
        stdin: bytes | None = None,
        timeout: float = 90,
        program: Sequence[str] = PROGRAM,
        **variables: str,
    ) -> Ended:
        done = subprocess.run(
            command(*arguments, program=program),
            input=stdin if stdin is not None else b"",
            capture_output=True,
            cwd=folder,
            env={**environment, **variables},
            timeout=timeout,
            check=False,
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def terminal(tmp_path: Path, environment: dict[str, str]) -> RunCli:
    """Run with a terminal on all three streams; `act` is called when a question stands there, and gives the answer."""

    def run(
        *arguments: str | Path, act: Callable[[], bytes] = lambda: b"y\n", program: Sequence[str] = PROGRAM
    ) -> Ended:
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            command(*arguments, program=program),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm"},
            cwd=tmp_path,
        ) as process:
            os.close(theirs)
            shown, answered, end = b"", 0, time.monotonic() + 60
            while time.monotonic() < end:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # EIO: nobody has the terminal open any more
                    break
                if shown.count(b"[y/N]") > answered:
                    answered += 1
                    os.write(ours, act())
            code = process.wait(60)
        os.close(ours)
        return Ended(code, shown.decode().replace("\r\n", "\n"), "")

    return run


def command(*arguments: str | Path, program: Sequence[str] = PROGRAM) -> Sequence[str]:
    return [sys.executable, *program, *map(str, arguments)]


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """The folder in which `cli` runs."""
    return tmp_path / "cwd"
