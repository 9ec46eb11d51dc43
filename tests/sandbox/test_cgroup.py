"""Cgroups: found by trying, limited, counted, killed and removed; and the reading of version 2's files."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sandbox.harness import REPOSITORY
from wan_compat.protocol.errors import SandboxEntryFailed
from wan_compat.sandbox import cgroup, failure
from wan_compat.sandbox.spec import Layer, Limits

SUPPORT = cgroup.detect()
needs_cgroup = pytest.mark.skipif(not SUPPORT.available, reason=f"no cgroup can be made: {SUPPORT.reason}")
SMALL = Limits(memory_bytes=64 << 20, threads=8, cpu_cores=0.5)


@pytest.fixture
def group() -> object:
    made = cgroup.create("test", SMALL)
    yield made
    made.kill()
    assert made.remove()


def start(group: cgroup.Cgroup, code: str) -> subprocess.Popen[bytes]:
    join = "".join(f"open({folder + '/cgroup.procs'!r}, 'w').write('0')\n" for folder in group.dirs)
    return subprocess.Popen([sys.executable, "-c", join + code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def test_detection_leaves_nothing_and_explains_itself() -> None:
    found = cgroup.detect()
    assert found.available == (found.version is not None)
    assert found.available or (found.reason and found.remedy)
    assert cgroup.sweep_stale() == ()


@needs_cgroup
def test_process_beyond_its_memory_is_killed_and_counted(group: cgroup.Cgroup) -> None:
    with start(group, "b = bytearray(256 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1") as process:
        assert process.wait(timeout=30) == -signal.SIGKILL
    usage = group.usage()
    assert usage.oom_kills >= 1
    assert 32 << 20 < usage.peak_bytes <= 64 << 20


@needs_cgroup
def test_threads_are_bounded(group: cgroup.Cgroup) -> None:
    code = (
        "import threading, os\ns = threading.Event(); n = 0\n"
        "try:\n"
        "    while n < 50: threading.Thread(target=s.wait, daemon=True).start(); n += 1\n"
        "except RuntimeError: pass\n"
        "os.write(1, str(n).encode()); os._exit(0)\n"
    )
    with start(group, code) as process:
        assert process.stdout is not None
        assert int(process.stdout.read()) <= 10


@needs_cgroup
def test_kill_ends_everything_also_what_forked(group: cgroup.Cgroup) -> None:
    with start(group, "import os, time\nos.fork(); os.fork(); print('up', flush=True); time.sleep(60)") as process:
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 5
        while group.usage().processes < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        group.kill()
        assert process.wait(timeout=5) == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while group.usage().processes and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):  # the session's guard made pytest a subreaper
            os.waitpid(-1, os.WNOHANG)
        time.sleep(0.01)
    assert group.usage().processes == 0


@needs_cgroup
def test_remove_waits_no_longer_than_told(group: cgroup.Cgroup) -> None:
    with start(group, "import time; print('up', flush=True); time.sleep(60)") as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = time.monotonic()
        assert not group.remove(timeout_s=0.2)
        assert time.monotonic() - started < 10  # of a minute
        group.kill()
        process.wait(timeout=5)
    assert all(Path(folder).exists() for folder in group.dirs[:1])


@needs_cgroup
def test_groups_of_a_dead_supervisor_are_swept_and_those_of_the_living_are_not(group: cgroup.Cgroup) -> None:
    code = (
        "from wan_compat.sandbox import cgroup\nfrom wan_compat.sandbox.spec import Limits\n"
        "print('\\n'.join(cgroup.create('left', Limits(memory_bytes=64 << 20)).dirs))\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True,
        env={"PYTHONPATH": str(REPOSITORY)},
    ).stdout.split()  # fmt: skip
    assert all(Path(folder).is_dir() for folder in made)
    assert set(cgroup.sweep_stale()) == set(made)
    assert not any(Path(folder).exists() for folder in made)
    assert all(Path(folder).is_dir() for folder in group.dirs)


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", ""])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name for a cgroup"):
        cgroup.create(name, SMALL)


def test_refusal_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_mounts", list)
    with pytest.raises(SandboxEntryFailed, match="no cgroup can be made") as caught:
        cgroup.create("x", SMALL)
    assert "tier B" in str(caught.value.hint)
    assert not cgroup.detect().available


def test_version_2_is_limited_and_read_by_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in for a delegated group: this machine may have no version 2 with controllers.
    (tmp_path / "cgroup.subtree_control").touch()
    real_mkdir = os.mkdir

    def mkdir(path: str) -> None:
        real_mkdir(path)
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "cgroup.kill"):
            Path(path, name).touch()

    monkeypatch.setattr(cgroup, "_own_v2_folder", lambda: str(tmp_path))
    monkeypatch.setattr(cgroup.os, "mkdir", mkdir)
    made = cgroup.create("x", SMALL)
    folder = Path(made.dirs[0])
    assert made.version == "v2"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    found = {name: (folder / name).read_text() for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max")}
    assert found == {"memory.max": str(64 << 20), "memory.swap.max": "0", "pids.max": "10", "cpu.max": "50000 100000"}
    (folder / "memory.current").write_text("123\n")
    (folder / "memory.peak").write_text("456\n")
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\n")
    (folder / "memory.stat").write_text("anon 1\nfile 77\n")
    (folder / "cgroup.procs").write_text("1\n2\n")
    assert made.usage() == cgroup.CgroupUsage(123, 456, 2, 2, 77)
    made.kill()
    assert (folder / "cgroup.kill").read_text() == "1"


class FakeKernel:
    """What version 2 does with writes, on a tree of ordinary files: no controllers for children while processes are in
    the group, and a process is in one group only."""

    def __init__(self, group: Path, pids: list[int], controllers: str = "cpu io memory pids") -> None:
        self.group = group
        self.forks = 0  # how many children appear in the group while it is being emptied
        (group / "cgroup.controllers").write_text(controllers)
        (group / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        (group / "cgroup.subtree_control").write_text("")

    def mkdir(self, path: str) -> None:
        REAL_MKDIR(path)
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "cgroup.procs"):
            Path(path, name).touch()

    def write(self, path: str, text: str) -> None:
        file = Path(path)
        if file.name == "cgroup.procs":
            for procs in (self.group / "cgroup.procs", *self.group.glob("*/cgroup.procs")):
                procs.write_text("".join(f"{pid}\n" for pid in procs.read_text().split() if pid != text))
            file.write_text(file.read_text() + f"{text}\n")
            if self.forks and file.parent != self.group:
                self.forks -= 1
                own = self.group / "cgroup.procs"
                own.write_text(own.read_text() + f"{9000 + self.forks}\n")
        elif file.name == "cgroup.subtree_control":
            if (self.group / "cgroup.procs").read_text().split():
                raise OSError(errno.EBUSY, "Device or resource busy")
            if missing := {name.lstrip("+") for name in text.split()} - set(
                (self.group / "cgroup.controllers").read_text().split()
            ):
                raise OSError(errno.ENOENT, f"no {missing}")
            file.write_text(text)
        else:
            file.write_text(text)

    def install(self, monkeypatch: pytest.MonkeyPatch, own: Path | None = None) -> FakeKernel:
        monkeypatch.setattr(cgroup, "_write", self.write)
        monkeypatch.setattr(cgroup.os, "mkdir", self.mkdir)
        monkeypatch.setattr(cgroup.os, "makedirs", lambda path, exist_ok: Path(path).exists() or self.mkdir(path))
        monkeypatch.setattr(cgroup, "_own_v2_folder", lambda: str(own or self.group))
        return self

    def pids(self, group: Path) -> list[str]:
        return (group / "cgroup.procs").read_text().split()


REAL_MKDIR = os.mkdir


def test_delegated_group_is_emptied_into_a_leaf_before_it_gives_controllers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeKernel(tmp_path, [100, os.getpid()]).install(monkeypatch)
    made = cgroup.create("x", SMALL)
    leaf = tmp_path / f"wan-compat-supervisor-{os.getpid()}"
    assert kernel.pids(tmp_path) == [] and sorted(kernel.pids(leaf)) == sorted(["100", str(os.getpid())])
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert Path(made.dirs[0]).parent == tmp_path
    # From now on our own group is the leaf; the next worker's group must not end up below it.
    kernel.install(monkeypatch, own=leaf)
    assert Path(cgroup.create("y", SMALL).dirs[0]).parent == tmp_path


def test_what_forks_while_the_group_is_emptied_is_moved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel(tmp_path, [100]).install(monkeypatch)
    kernel.forks = 3
    cgroup.create("x", SMALL)
    assert kernel.pids(tmp_path) == []


def test_group_that_never_gets_empty_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel(tmp_path, [100]).install(monkeypatch)
    kernel.forks = 1000
    monkeypatch.setattr(cgroup, "_mounts", list)  # nor is there a version 1
    with pytest.raises(SandboxEntryFailed, match="busy"):
        cgroup.create("x", SMALL)
    assert "100" in kernel.pids(tmp_path)
    assert not (tmp_path / "cgroup.subtree_control").read_text()


@pytest.mark.parametrize(
    ("controllers", "cpu_cores", "missing"),
    [("memory pids", None, ""), ("memory pids", 0.5, "cpu"), ("memory", None, "pids"), ("cpu pids", None, "memory")],
)
def test_controllers_that_were_not_delegated_are_named_if_needed(
    controllers: str, cpu_cores: float | None, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeKernel(tmp_path, [], controllers).install(monkeypatch)
    monkeypatch.setattr(cgroup, "_mounts", list)
    limits = Limits(memory_bytes=64 << 20, cpu_cores=cpu_cores)
    if missing:
        with pytest.raises(SandboxEntryFailed, match=f"without the controller {missing}"):
            cgroup.create("x", limits)
    else:
        assert cgroup.create("x", limits).version == "v2"


@pytest.mark.parametrize(
    ("uid", "present", "said"),
    [
        (0, [], "mount the cgroup file system writable"),
        (1000, [], "version 1"),
        (1000, ["/sys/fs/cgroup/cgroup.controllers"], "let root hand you a group"),
        (1000, ["/sys/fs/cgroup/cgroup.controllers", "/run/systemd/system"], "loginctl enable-linger 1000"),
        (
            1000,
            ["/sys/fs/cgroup/cgroup.controllers", "/run/systemd/system", "/run/user/1000/systemd"],
            "let systemd delegate a cgroup: systemd-run --user --scope -p Delegate=yes",
        ),
    ],
)
def test_remedy_fits_the_machine(uid: int, present: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure.os, "geteuid", lambda: uid)
    monkeypatch.setattr(failure.os.path, "exists", lambda path: path in present)
    monkeypatch.setattr(failure.os.path, "isdir", lambda path: path in present)
    told = failure.remedy(Layer.CGROUP, None)
    assert said in told and "tier B" in told
    assert uid == 0 or "systemd-run --user --scope -p Delegate=yes" in told


def test_own_group_is_found_below_a_partly_shown_hierarchy() -> None:
    assert cgroup._join("/", "/sys/fs/cgroup", "/user.slice/x") == "/sys/fs/cgroup/user.slice/x"
    assert cgroup._join("/docker/abc", "/sys/fs/cgroup", "/docker/abc/x") == "/sys/fs/cgroup/x"
    assert cgroup._join("/", "/sys/fs/cgroup", "/") == "/sys/fs/cgroup"
