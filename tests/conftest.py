"""What every test relies on, and the guard that no test leaves anything behind on the machine."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

from tests import second_run
from wan_compat import Supervisor
from wan_compat.supervisor.runtime import runtime_base

# No examples are kept between runs: the checkout may belong to another user than the one who tests it.
settings.register_profile("no-database", database=None)
settings.load_profile("no-database")

# A shell starts background jobs with SIGINT ignored, and every child would inherit that: Ctrl-C could not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What collecting makes lives until the end. Walking it again and again takes 5% to 10% of a run.
gc.disable()

REPOSITORY = Path(__file__).resolve().parent.parent
PR_SET_CHILD_SUBREAPER = 36
SETTLE_S = 5.0


# Files that start processes and take long come first: with `--no-loadscope-reorder`, the last ones are short, and no core
# waits for the other's.
LONGEST_FIRST = (
    "tests/test_end_to_end.py", "tests/test_wheel.py", "tests/test_drop_in.py", "tests/fuzz", "tests/test_trust_mode.py",
    "tests/workers", "tests/cli/test_generate.py",
    "tests/cli/test_demo.py", "tests/supervisor/test_kill_chain.py", "tests/supervisor/test_client.py",
    "tests/supervisor", "tests/security", "tests/cli", "tests/sandbox",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--second-run", action="store_true", help="leave out what tests/second_run.py lists")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.getoption("second_run") and collection_path.is_relative_to(REPOSITORY):
        return second_run.left_out(str(collection_path.relative_to(REPOSITORY))) or None
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("second_run"):
        gone = [item for item in items if second_run.left_out(item.nodeid)]
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if not second_run.left_out(item.nodeid)]
    items.sort(key=_place)  # stable: within a file, and among files of one kind, the order stays


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def _place(item: pytest.Item) -> int:
    places = (index for index, start in enumerate(LONGEST_FIRST) if item.nodeid.startswith(start))
    return next(places, len(LONGEST_FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    if not second_run.is_pure(item.nodeid):
        return (yield)
    with second_run.watched():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and second_run.left_out(item.nodeid) and second_run.skipped_as_root(str(report.longrepr)):
        report.outcome = "failed"
        report.longrepr = f"root skips it, and tests/second_run.py leaves it out of the other run: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def incidents_of_tests_are_not_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Provoked incidents go into a file of the session, not into the one that the user looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def supervisor(nothing_is_left_behind: None) -> Iterator[Supervisor]:
    """A supervisor as programs make it. Shared, since the imports of its zygote take four seconds: not to be closed."""
    with Supervisor() as made:
        yield made


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the session if a process, mount, cgroup or runtime folder outlives its tests.

    As a subreaper this process inherits what its descendants abandon, so that an orphan is found here and not with
    init, and what other sessions on this machine do is not mistaken for ours.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    own = tmp_path_factory.getbasetemp()
    before = (_mounts(own), _cgroups(), abandoned_runtime_folders())
    known = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    deadline = time.monotonic() + SETTLE_S
    while leaks := _processes(known) + _new(before, own):
        if time.monotonic() > deadline:
            pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)
        time.sleep(0.1)


def _new(before: tuple[set[str], set[str], set[str]], own: Path) -> list[str]:
    now = (_mounts(own), _cgroups(), abandoned_runtime_folders())
    kinds = ("mount", "cgroup", "runtime folder")
    return [
        f"{kind} {name}" for kind, then, found in zip(kinds, before, now, strict=True) for name in sorted(found - then)
    ]


def _processes(known: set[int]) -> list[str]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.pid in known:
                continue
            if process.status() == psutil.STATUS_ZOMBIE:
                # Ours only by adoption: nobody else can reap it any more.
                os.waitpid(process.pid, os.WNOHANG)
                continue
            command = process.cmdline()
        except (psutil.NoSuchProcess, ChildProcessError):
            continue
        if not any("resource_tracker" in word for word in command):
            found.append(f"process {process.pid} {' '.join(command)[:200]}")
    return found


def _mounts(own: Path) -> set[str]:
    """Mounts, without those in folders of other sessions' tests, which they still need."""
    found = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return {path for path in found if "/pytest-of-" not in path or Path(path).is_relative_to(own)}


def _cgroups() -> set[str]:
    """Our cgroups whose supervisor is dead or is this process.

    A dead supervisor is one of this session's only below the session's own cgroup: at the root of a hierarchy lie those
    of every session on this machine, which leave some behind for a moment when they test just that.
    """
    own = [line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    found = set()
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        below_own = any(path != "/" and folder.endswith(path) for path in own)
        for name in names:
            owner = name.removeprefix("wan-compat-").split("-")[0] if name.startswith("wan-compat-") else ""
            if owner.isdigit() and (int(owner) == os.getpid() or (below_own and not psutil.pid_exists(int(owner)))):
                found.add(os.path.join(folder, name))
    return found


def abandoned_runtime_folders() -> set[str]:
    """Folders of supervisors whose lock nobody holds: their owner is gone and did not clean up."""
    found = set()
    base = Path(runtime_base())
    for folder in base.iterdir():
        try:
            with (folder / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except (FileNotFoundError, NotADirectoryError):
            continue  # being made or removed right now
        found.add(str(folder))
    return found
