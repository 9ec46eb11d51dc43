"""`make gpu-check`: what only an NVIDIA GPU can show, and a report with one line for each claim.

    ok          it was tried on the GPU of this machine
    FAILED      it was tried, and is not so
    not tried   why: no GPU, no driver, a torch without CUDA, ...
    rehearsed   with WAN_COMPAT_REHEARSE=1: the same code ran on the processor, which proves nothing about a GPU

Nothing else depends on these tests. A claim is the first line of a test's docstring; what a test prints stands below it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from wan_compat.policies.planning.machine import GpuFacts
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import GpuUnusable
from wan_compat.supervisor import gpus

REPOSITORY = Path(__file__).resolve().parent.parent.parent
REHEARSAL = os.environ.get("WAN_COMPAT_REHEARSE") == "1"
_lines = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def gpu() -> GpuFacts:
    """The GPU that a job would be given."""
    try:
        chosen = gpus.gpu_for("cuda", Policy()).gpu
    except GpuUnusable as error:
        pytest.skip(error.message)
    assert chosen is not None
    return chosen


@pytest.fixture(scope="session")
def device() -> str:
    """Where torch computes: the GPU, or the processor in a rehearsal."""
    if REHEARSAL:
        return "cpu"
    try:
        gpus.gpu_for("cuda", Policy())
    except GpuUnusable as error:
        pytest.skip(error.message)
    return "cuda"


@pytest.fixture
def inside(device: str) -> Callable[[str], None]:
    """Return a function that runs one of tests/gpu/checks.py in a process of its own: CUDA does not survive a fork, and
    memory that one check leaves behind is not the next one's."""

    def run(check: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "tests.gpu.checks", check, device],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "4"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        print(done.stdout, end="")
        assert done.returncode == 0, done.stderr[-3000:]

    return run


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_lines] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" or (report.when == "setup" and not report.passed):
        item.config.stash[_lines] += _told(item, report)
    return report


def _told(item: pytest.Item, report: pytest.TestReport) -> list[str]:
    claim = str(getattr(item, "function").__doc__ or item.name).strip().partition("\n")[0]  # noqa: B009
    parameters = item.name.partition("[")[2].rstrip("]")
    claim = f"{claim.rstrip('.')} [{parameters}]" if parameters else claim.rstrip(".")
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return [f"not tried   {claim}: {reason.removeprefix('Skipped: ')}"]
    verdict = "FAILED" if report.failed else "rehearsed" if REHEARSAL and "device" in item.fixturenames else "ok"  # type: ignore[attr-defined]
    return [f"{verdict:<11} {claim}", *(f"              {line}" for line in report.capstdout.splitlines())]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    # In the suite these tests are a few skips among thousands; the report is for who asked for it.
    if config.stash[_lines] and config.option.markexpr == "gpu":
        terminalreporter.section("GPU check")
        for line in config.stash[_lines]:
            terminalreporter.line(line)
