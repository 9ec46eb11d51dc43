"""Completion in the shell: asked of a real bash by its Tab key, and of the program as zsh and fish ask it."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HEAVY = {"torch", "numpy", "diffusers", "transformers", "prometheus_client", "msgpack", "zmq"}
PROGRAM = Path(sys.executable).with_name("wan-compat")

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="the program is not installed beside this Python")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user's who has nothing yet; the program is found by its name."""
    return {
        "HOME": str(tmp_path),
        "PATH": f"{PROGRAM.parent}:/usr/bin:/bin",
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
        "PS1": "> ",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


class Bash:
    """An interactive bash on a terminal."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        bash = shutil.which("bash")
        assert bash is not None
        self._process = subprocess.Popen(
            [bash, "-i"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        os.close(theirs)

    def type(self, text: str, until: str) -> str:
        """Type something and return what is shown, once `until` is in it."""
        os.write(self._ours, text.encode())
        shown, deadline = "", time.monotonic() + 30
        while until not in shown:
            assert select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0], f"shown: {shown!r}"
            shown += os.read(self._ours, 65536).decode()
        return shown

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


@pytest.fixture
def bash(environment: dict[str, str], tmp_path: Path) -> Iterator[Bash]:
    """A bash whose user ran `wan-compat --install-completion` in one before."""
    # Not the last command of the shell: bash would become the program, and nobody would be its parent.
    done = subprocess.run(
        ["bash", "-c", "wan-compat --install-completion; status=$?; exit $status"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert "bash completion installed" in done.stdout
    (tmp_path / "a-model-folder").mkdir()
    started = Bash(environment, tmp_path)
    try:
        started.type("echo rea''dy\n", until="ready")
        yield started
    finally:
        started.close()


def test_tab_completes_verbs_options_values_and_files(bash: Bash) -> None:
    bash.type("wan-compat gener\t", until="generate ")
    bash.type("--num-inf\t", until="erence-steps ")
    bash.type("2 --mode tr\t", until="ust ")
    bash.type("a-mod\t", until="el-folder")
    bash.type("\x15wan-compat conf\t", until="config ")
    bash.type("sh\t", until="show ")
    bash.type("--orig\t", until="in ")


@pytest.mark.parametrize(
    ("variables", "answer"),
    [
        ({"_WAN_COMPAT_COMPLETE": "complete_bash", "COMP_WORDS": "wan-compat gene", "COMP_CWORD": "1"}, "generate"),
        ({"_WAN_COMPAT_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "wan-compat conf"}, '"config"'),
        (
            {
                "_WAN_COMPAT_COMPLETE": "complete_fish",
                "_TYPER_COMPLETE_ARGS": "wan-compat generate --mode ",
                "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            },
            "safe\ntrust",
        ),
    ],
    ids=["bash", "zsh", "fish"],
)
def test_shells_are_answered_without_a_heavy_import(
    variables: dict[str, str], answer: str, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from wan_compat.supervisor.cli.main import run; run()"],
        env={**environment, **variables}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and answer in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported and not imported & HEAVY


@pytest.mark.parametrize(("shell", "line"), [("zsh", "#compdef wan-compat"), ("fish", "complete --command wan-compat")])
def test_scripts_for_other_shells_are_shown(shell: str, line: str, environment: dict[str, str]) -> None:
    # typer finds out the shell from the process tree; this is its own way to be told instead.
    done = subprocess.run(
        [PROGRAM, "--show-completion", shell],
        env={**environment, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith(line)
