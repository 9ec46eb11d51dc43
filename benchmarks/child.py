"""Child processes of benchmarks: whole interpreters that run once, and ones that answer JSON lines.

Imports nothing of ours, since the plain script runs this too.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# What a script's user has imported when the first line that matters runs.
SCRIPT_IMPORTS = (
    "import torch, diffusers, transformers, accelerate, ftfy\n"
    "from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel\n"
    "from transformers import PreTrainedTokenizerFast, UMT5EncoderModel\n"
)


def script_environment(**changes: str) -> dict[str, str]:
    """Return the user's environment without settings of thread pools, and without a network to try."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
    return kept | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)} | changes


class Child:
    """A Python process that answers JSON lines: `python -m MODULE`, whose `__main__` calls `answer`."""

    def __init__(self, module: str, *arguments: str, pass_fds: tuple[int, ...] = (), **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=script_environment(**environment),
            cwd=ROOT,
            text=True,
            pass_fds=pass_fds,
        )
        self.pid = self._process.pid

    def send(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with status {self._process.wait()}")
        return json.loads(line)

    def ask(self, **command: Any) -> Any:
        self.send(**command)
        return self.receive()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answer(**commands: Callable[..., Any]) -> None:
    """Be the child: each line on stdin is {"do": command, **arguments}; print what the command returns."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not look like an answer
    for line in sys.stdin:
        arguments = json.loads(line)
        answers.write(json.dumps(commands[arguments.pop("do")](**arguments)) + "\n")
    answers.flush()
    os._exit(0)  # tearing torch down takes longer than anybody waits


def run_python(code: str, **environment: str) -> tuple[float, str]:
    """Run a whole interpreter; return its seconds from spawn to exit, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=script_environment(**environment),
        cwd="/",
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return time.perf_counter() - started, done.stdout
