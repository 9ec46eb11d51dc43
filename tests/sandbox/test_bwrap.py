"""An outer bubblewrap: which program is trusted, what it must make, and that it holds without any layer of ours."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.harness import ROOT, run_program
from wan_compat.protocol.errors import SandboxEntryFailed
from wan_compat.sandbox import bwrap, cgroup, runtime_view, selftest, view
from wan_compat.sandbox.spec import (
    CONTROL_TARGET,
    MODEL_TARGET,
    OUTER_LAYERS,
    Bind,
    ConfinementSpec,
    FileIdentity,
    GpuAccess,
    Layer,
    Limits,
    StaticFile,
    View,
)

PROBE = f"""
import json, os
from wan_compat.sandbox import libc, selftest
seen = {{path: sorted(os.listdir(path)) for path in ("/", "/scratch", "{MODEL_TARGET}", "{CONTROL_TARGET}", "/dev")}}
doors = {{probe.name: probe.denied for probe in selftest.run_outer_probes({sorted(layer.value for layer in OUTER_LAYERS)!r})}}
with open("/etc/passwd") as file:
    passwd = file.read()
print(json.dumps(dict(seen=seen, doors=doors, threads=libc.count_threads(), passwd=passwd, environment=dict(os.environ))))
"""


@pytest.fixture(scope="module")
def program() -> str:
    try:
        return bwrap.find()
    except SandboxEntryFailed as error:
        pytest.skip(error.message)


@pytest.fixture
def spec(tmp_path: Path) -> ConfinementSpec:
    model, control = tmp_path / "weights", tmp_path / "control"
    model.write_text("admitted")
    control.mkdir()
    seen = model.stat()
    admitted = Bind(
        str(model),
        f"{MODEL_TARGET}/vae/weights",
        FileIdentity(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns),
    )
    return ConfinementSpec(
        layers=frozenset(),
        outer=OUTER_LAYERS,
        view=View(
            binds=(*runtime_view.runtime_binds(), admitted),
            files=(StaticFile("/etc/passwd", b"worker:x:1:1::/scratch:/nonexistent\n"),),
            control_dir=str(control),
        ),
        limits=Limits(memory_bytes=1 << 30, threads=8, open_files=64),
    )


@pytest.fixture
def files() -> Iterator[Any]:
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaints:
        yield said, complaints


def run_inside(path: str, spec: ConfinementSpec, command: list[str], files: Any) -> tuple[str, frozenset[Layer]]:
    said, complaints = files
    process, made = bwrap.start(
        path, spec, command, env={"LC_ALL": "C.UTF-8"}, pass_fds=(), stdout=said.fileno(), stderr=complaints.fileno()
    )
    process.wait(20)
    said.seek(0)
    complaints.seek(0)
    assert process.returncode == 0, complaints.read()
    return said.read().decode(), made


def test_it_holds_before_any_layer_of_ours_is_entered(program, spec, files):
    text, made = run_inside(program, spec, [sys.executable, "-I", "-c", PROBE], files)
    found = json.loads(text)
    assert made >= OUTER_LAYERS
    assert all(found["doors"].values()), found["doors"]
    assert found["threads"] == 1
    assert found["seen"]["/scratch"] == [] and found["seen"][CONTROL_TARGET] == []
    assert found["seen"][MODEL_TARGET] == ["vae"]
    assert found["seen"]["/dev"] == ["null", "urandom"]
    assert not {"home", "root", "proc", "sys", "var", "run"} & set(found["seen"]["/"]) - set(_on_the_way())
    assert found["passwd"].startswith("worker:x:1:1:")
    assert set(found["environment"]) <= {"LC_ALL", "PWD"}


def test_with_a_gpus_nodes_it_holds_as_well_and_threads_can_be_named(program, spec, files):
    """/dev/zero and /dev/full stand in for the nodes; the kernel's own /proc is there, which Landlock closes later."""
    names = "import threading; open(f'/proc/self/task/{threading.get_native_id()}/comm', 'r+').write('cuda')"
    spec = dataclasses.replace(
        spec,
        gpu=GpuAccess(("/dev/zero", "/dev/full")),
        view=dataclasses.replace(spec.view, files=(*spec.view.files, StaticFile("/proc/devices", b"a copy"))),
    )
    text, made = run_inside(program, spec, [sys.executable, "-I", "-c", f"{names}\n{PROBE}"], files)
    found = json.loads(text)
    assert made >= OUTER_LAYERS
    assert all(found["doors"].values()), found["doors"]
    assert found["seen"]["/dev"] == ["full", "null", "urandom", "zero"]


def _on_the_way() -> list[str]:
    """The first folders of the paths that this interpreter needs: they exist in the view, with nothing else in them."""
    binds = (*runtime_view.runtime_binds(), *runtime_view.interpreter_binds())
    return [bind.target.split("/")[1] for bind in binds]


def test_the_probes_see_that_there_is_no_bubblewrap():
    open_doors = {probe.name for probe in selftest.run_outer_probes(OUTER_LAYERS) if not probe.denied}
    assert {"read_host_files", "write_outside_scratch", "see_processes", "signal_others"} <= open_doors


def test_the_models_path_is_not_in_the_list_of_processes(program, spec, files):
    ours, theirs = socket.socketpair()
    waits = f"import os; os.write({theirs.fileno()}, b'.'); os.read({theirs.fileno()}, 1)"
    with ours, theirs:
        process, _ = bwrap.start(
            program,
            spec,
            [sys.executable, "-I", "-c", waits],
            env={},
            pass_fds=[theirs.fileno()],
            stdout=files[0].fileno(),
            stderr=files[1].fileno(),
        )
        ours.settimeout(20)
        assert ours.recv(1) == b"."
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"--args" in command and b"weights" not in command
        ours.sendall(b".")
        assert process.wait(20) == 0


def test_a_program_that_somebody_else_could_have_written_is_refused(tmp_path):
    path = tmp_path / "bwrap"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o777)
    with pytest.raises(SandboxEntryFailed, match="is not used"):
        bwrap.check_trustworthy(str(path))
    bwrap.check_trustworthy(os.path.realpath("/bin/sh"))


@pytest.mark.parametrize(
    ("owner", "mode", "where"), [(0, 0o777, "file"), (0, 0o775, "file"), (1, 0o755, "file"), (0, 0o777, "folder")]
)
def test_owner_and_modes_of_program_and_folders_are_looked_at(owner, mode, where, monkeypatch):
    real = os.stat

    def stat(path: str) -> Any:
        found = real("/")
        if path == ("/usr/bin/bwrap" if where == "file" else "/usr/bin"):
            return os.stat_result((0o40000 | mode, 1, 1, 1, owner, 0, 0, 0, 0, 0))
        return os.stat_result((0o40755, *found[1:4], 0, *found[5:]))

    monkeypatch.setattr(bwrap.os, "stat", stat)
    with pytest.raises(SandboxEntryFailed, match=f"owner {owner} and mode {mode:04o}"):
        bwrap.check_trustworthy("/usr/bin/bwrap")


def test_a_machine_without_it_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(bwrap, "_PLACES", "/nonexistent")
    with pytest.raises(SandboxEntryFailed, match="not installed") as caught:
        bwrap.find()
    assert "apt install bubblewrap" in str(caught.value.hint)
    assert caught.value.details["layer"] == bwrap.NAME


IMPOSTORS = {
    "ends": ("import sys; sys.exit('no namespaces for you')", "ended with 1"),
    "silent": ("import time; time.sleep(60)", "said nothing"),
    "shares": ("tell({'child-pid': os.getpid(), **ours})", "made no .*net_namespace"),
    "partial": ("del ours['net-namespace']; tell({'child-pid': os.getpid(), **{k: 1 for k in ours}})", "net_namespace"),
    "nonsense": ("tell(['{}' * 9, {}])", "cannot be understood|nonsense|said nothing"),
    "nobody": ("tell({'child-pid': 2 ** 30, **{k: 1 for k in ours}})", "cannot be understood"),
}


@pytest.mark.parametrize("name", IMPOSTORS)
def test_a_bubblewrap_that_does_not_make_what_it_must_is_refused_and_dead(name, spec, files, tmp_path, monkeypatch):
    body, message = IMPOSTORS[name]
    monkeypatch.setattr(bwrap, "_START_TIMEOUT_S", 1.0)
    path = tmp_path / "bwrap"
    path.write_text(
        f"#!{sys.executable} -I\n"
        "import json, os, sys, time\n"
        "words = open(int(sys.argv[sys.argv.index('--args') + 1]), 'rb').read().decode().split('\\0')\n"
        "info = int(words[words.index('--info-fd') + 1])\n"
        "ours = {f'{n}-namespace': os.stat(f'/proc/self/ns/{n}').st_ino "
        "for n in ('mnt', 'pid', 'net', 'ipc', 'uts', 'cgroup')}\n"
        "def tell(what):\n"
        "    os.write(info, json.dumps(what).encode())\n"
        "    time.sleep(60)\n"
        f"{body}\n"
    )
    path.chmod(0o755)
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remember(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(bwrap.subprocess, "Popen", remember)
    with pytest.raises(SandboxEntryFailed, match=message):
        run_inside(str(path), spec, ["/nonexistent"], files)
    assert started[0].returncode is not None


def test_a_file_that_changed_after_its_admission_is_not_the_one_in_the_view(spec, tmp_path):
    (bind,) = (bind for bind in spec.view.binds if bind.identity is not None)
    in_place = dataclasses.replace(bind, target=bind.source)
    same = dataclasses.replace(spec, view=dataclasses.replace(spec.view, binds=(in_place,)))
    view.check_admitted(same)
    (tmp_path / "weights").write_text("something else, and longer")
    with pytest.raises(SandboxEntryFailed, match="not the file that was admitted"):
        view.check_admitted(same)


@pytest.mark.skipif(ROOT, reason="root makes its own namespaces, or may not make them at all")
def test_trial_where_namespaces_are_refused_holds_through_bubblewrap(program):
    report = run_program("sandbox_without_namespaces", {})
    assert report["outer"] == program and report["not_denied"] == [] and report["flagrant_calls_kill"]
    assert {layer.value for layer in OUTER_LAYERS} <= set(report["entered"])
    assert report["layers"]["net_namespace"] == {"available": True, "reason": f"made by {program}", "remedy": ""}


def test_bwrap_and_what_it_starts_are_charged_to_the_workers_cgroup(program, spec, files):
    if not (support := cgroup.detect()).available:
        pytest.skip(f"no cgroup: {support.reason}")
    group = cgroup.create("bwrap-test", spec.limits)
    ours, theirs = socket.socketpair()
    try:
        with ours, theirs:
            process, made = bwrap.start(
                program,
                dataclasses.replace(spec, outer=OUTER_LAYERS | {Layer.CGROUP}, cgroup_dirs=group.dirs),
                [
                    sys.executable,
                    "-I",
                    "-c",
                    f"import os; os.write({theirs.fileno()}, b'.'); os.read({theirs.fileno()}, 1)",
                ],
                env={},
                pass_fds=[theirs.fileno()],
                stdout=files[0].fileno(),
                stderr=files[1].fileno(),
            )
            ours.settimeout(20)
            assert ours.recv(1) == b"." and Layer.CGROUP in made
            for folder in group.dirs:
                members = {int(pid) for pid in Path(folder, "cgroup.procs").read_text().split()}
                assert process.pid in members and len(members) == 3  # bwrap, the namespace's first process, the program
            group.kill()
            assert process.wait(10) != 0
    finally:
        group.kill()
        group.remove()
