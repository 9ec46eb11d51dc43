"""Fixtures of the worker's tests: one zygote per session, tiny models, and a process that has torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.workers.harness import SpawnRefused, WorkerProcess, ZygoteProcess

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZygoteProcess]:
    """The zygote that most tests share; it must survive whatever they do to its workers."""
    with ZygoteProcess(tmp_path_factory.mktemp("zygote")) as process:
        yield process


@pytest.fixture(scope="session")
def confined(zygote: ZygoteProcess) -> bool:
    """Whether this machine can confine; where it cannot, the worker is tested without."""
    try:
        with zygote.spawn(tiny_model("t2v")) as worker:
            worker.kill()
    except SpawnRefused:
        return False
    return True


@pytest.fixture
def t2v_worker(zygote: ZygoteProcess, confined: bool) -> Iterator[WorkerProcess]:
    """A worker with the smallest model loaded."""
    model = tiny_model("t2v")
    with zygote.spawn(model, confined=confined) as worker:
        worker.start(model)
        yield worker
        if not worker.ended(0):
            worker.kill()


class TorchProcess:
    """See tests/programs/worker_torch_process.py."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        program = str(ROOT / "tests" / "programs" / "worker_torch_process.py")
        self._process = subprocess.Popen(
            [sys.executable, program],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, module: str, function: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{module}:{function}\n")
        self._process.stdin.flush()
        failure = json.loads(self._process.stdout.readline() or '"the torch process ended"')
        if failure is not None:
            pytest.fail(failure, pytrace=False)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def torch_process() -> Iterator[TorchProcess]:
    process = TorchProcess()
    yield process
    process.close()
