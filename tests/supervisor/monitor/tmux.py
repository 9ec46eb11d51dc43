"""A real terminal for tests: tmux with a server of its own, a shell in it, keys in and the screen out."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
WAIT_S = 40.0

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Tmux:
    """One window with a bash in it."""

    def __init__(self, socket: str) -> None:
        self._socket = socket

    def run(self, *arguments: str) -> str:
        command = ["tmux", "-u", "-S", self._socket, "-f", "/dev/null", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout

    def type(self, line: str) -> None:
        self.run("send-keys", "-l", line)
        self.run("send-keys", "Enter")

    def press(self, *keys: str) -> None:
        """Send keys by tmux's names: `j`, `Enter`, `Escape`, `C-z`."""
        self.run("send-keys", *keys)

    def shows(self) -> str:
        return self.run("capture-pane", "-p")

    def wait(self, text: str | Callable[[str], bool]) -> str:
        """Wait until the screen shows `text`, or satisfies it, and return the screen."""
        found = (lambda shown: text in shown) if isinstance(text, str) else text
        end = time.monotonic() + WAIT_S
        while True:
            if found(shown := self.shows()):
                return shown
            assert time.monotonic() < end, f"waited for {text!r}:\n{shown}"
            time.sleep(0.05)

    def flags(self) -> dict[str, str]:
        """Return what the terminal is set to: whether on the other screen, showing the cursor, wrapping lines."""
        names = ("alternate_on", "cursor_flag", "wrap_flag")
        return dict(
            zip(
                names,
                self.run("display-message", "-p", " ".join(f"#{{{name}}}" for name in names)).split(),
                strict=True,
            )
        )


SANE = {"alternate_on": "0", "cursor_flag": "1", "wrap_flag": "1"}


@contextmanager
def window(columns: int = 80, lines: int = 24, **variables: str) -> Iterator[Tmux]:
    """Open a window whose shell knows `python` as this interpreter, and close everything in it afterwards."""
    folder = tempfile.mkdtemp(prefix="wan-compat-tmux-")
    kept = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    settings = {**kept, "LC_ALL": "C.UTF-8", "PS1": "READY> ", "PYTHONDONTWRITEBYTECODE": "1", **variables}
    shell = ["env", "-i", *(f"{name}={value}" for name, value in settings.items())]
    shell += ["TERM=screen-256color", "bash", "--norc", "--noprofile", "-i"]
    tmux = Tmux(f"{folder}/socket")
    try:
        where = ("-x", str(columns), "-y", str(lines), "-c", str(REPOSITORY))
        tmux.run("new-session", "-d", *where, shlex.join(shell))
        tmux.wait("READY>")
        tmux.type(f'python() {{ {shlex.quote(sys.executable)} "$@"; }}; clear')
        yield tmux
    finally:
        with_server = os.path.exists(f"{folder}/socket")
        if with_server:
            subprocess.run(
                ["tmux", "-S", f"{folder}/socket", "kill-server"], capture_output=True, timeout=20, check=False
            )
        shutil.rmtree(folder, ignore_errors=True)
