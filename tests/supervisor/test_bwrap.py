"""Where only bubblewrap may make namespaces, workers run inside it: same tier, same frames, same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.supervisor.bubblewrap import why_not
from tests.supervisor.test_kill_chain import EMBEDDING_PROGRAM, REPOSITORY, assert_all_gone
from tests.supervisor.test_tiers import PROGRAM
from wan_compat import Supervisor
from wan_compat.protocol import errors
from wan_compat.sandbox import bwrap
from wan_compat.sandbox.spec import OUTER_LAYERS
from wan_compat.supervisor import events as ev
from wan_compat.supervisor import worker_pool, zygote

if reason := why_not():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture
def only_bwrap() -> Iterator[Callable[..., Supervisor]]:
    """Return a function that makes a supervisor whose own zygote (a light one, to be quick) is refused namespaces."""
    made: list[Supervisor] = []

    def make(**options: object) -> Supervisor:
        supervisor = Supervisor(start_method="spawn", **options)  # type: ignore[arg-type]
        supervisor._zygote_program = (str(PROGRAM),)
        made.append(supervisor)
        return supervisor

    yield make
    for supervisor in made:
        supervisor.close()


def below(process: psutil.Process, name: str, words: slice = slice(1)) -> list[psutil.Process]:
    """Return the processes below one, of which the command's `words` (the program alone) contain `name`."""
    found = []
    for child in process.children(recursive=True):
        try:
            if name in " ".join(child.cmdline()[words]):
                found.append(child)
        except psutil.NoSuchProcess:  # ZombieProcess is one of them
            continue
    return found


def test_frames_are_equal_and_the_result_says_what_confined_it(only_bwrap, request_for):
    supervisor = only_bwrap()
    inside = supervisor.generate(request_for(output=None))
    around = below(psutil.Process(), bwrap.NAME)
    with Supervisor() as plain:
        own = plain.generate(request_for(output=None))
    assert inside.frames is not None and own.frames is not None
    assert np.array_equal(inside.frames.frames, own.frames.frames)
    assert inside.sandbox.tier == own.sandbox.tier and inside.warnings == []
    assert (inside.sandbox.outer, own.sandbox.outer) == (bwrap.find(), None)
    assert inside.to_json()["sandbox"]["outer"] == bwrap.find()
    assert {layer.value for layer in OUTER_LAYERS} | {"landlock", "seccomp"} <= set(inside.sandbox.layers)
    assert inside.sandbox.self_test == own.sandbox.self_test and all(inside.sandbox.self_test.values())

    again = supervisor.generate(request_for(output=None))  # warm: no new bwrap
    assert below(psutil.Process(), bwrap.NAME) == around and again.timings.worker_start_s < 1
    assert again.frames is not None and np.array_equal(again.frames.frames, own.frames.frames)
    supervisor.close()
    assert_all_gone(around)


def test_a_killed_worker_takes_its_bwrap_along_and_the_next_job_gets_another(only_bwrap, request_for, tmp_path):
    supervisor = only_bwrap()
    job = supervisor.submit(request_for(num_inference_steps=900))
    around: list[psutil.Process] = []
    for event in job.events():
        if isinstance(event, ev.Progress) and event.phase == "denoise" and not around:
            outside, first = below(psutil.Process(), bwrap.NAME)  # bwrap, and the first process of its namespace
            (inside,) = first.children()
            (worker,) = inside.children()
            around = [outside, first, inside, worker]
            # The shared zygote, which was of no use, is gone.
            assert below(psutil.Process(), str(PROGRAM), slice(None)) == []
            worker.kill()
    with pytest.raises(errors.WorkerDied, match="SIGKILL"):
        job.result()
    assert_all_gone(around)
    assert list(tmp_path.iterdir()) == []
    assert supervisor.generate(request_for(output=None)).sandbox.outer == bwrap.find()


@pytest.mark.parametrize("doubtful", [True, False])
def test_nothing_is_imported_in_vain_where_settings_make_a_refusal_likely(doubtful, request_for, monkeypatch):
    monkeypatch.setattr(worker_pool, "namespaces_are_doubtful", lambda: doubtful)
    started: list[bool] = []
    start = zygote.Zygote.__init__

    def remember(self: zygote.Zygote, *, light: bool, program: Sequence[str], site: str | None) -> None:
        started.append(light)
        start(self, light=light, program=program, site=site)

    monkeypatch.setattr(zygote.Zygote, "__init__", remember)
    monkeypatch.setattr(bwrap, "_PLACES", "/nonexistent")  # the shared zygote is what this is about
    with Supervisor() as supervisor:
        supervisor._zygote_program = (str(PROGRAM),)
        for _ in range(2):
            with pytest.raises(errors.SandboxUnavailable):
                supervisor.generate(request_for(output=None))
    assert started == [doubtful]  # once refused, it is not asked again


@pytest.mark.parametrize("victim", ["supervisor", "bwrap"])
def test_nothing_outlives_its_supervisor_or_its_bwrap(victim, request_for, tmp_path):
    program = EMBEDDING_PROGRAM.replace('(sys.argv[1], "slow")', "(sys.argv[1],)").replace(
        "Supervisor()", "Supervisor(start_method='spawn')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(PROGRAM), request_for().model, str(tmp_path / "x.mp4")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"busy\n"
        inside = below(psutil.Process(process.pid), bwrap.NAME)
        everything = [*inside, *inside[1].children(recursive=True)]
        assert len(everything) == 4  # bwrap twice, zygote, worker
        if victim == "supervisor":
            os.kill(process.pid, signal.SIGKILL)
        else:
            inside[0].kill()
        assert_all_gone(everything)
        process.kill()  # it may have begun anew, in another bwrap, and has many steps to take
        process.wait(30)


def test_without_a_bubblewrap_the_refusal_says_that_it_would_help(only_bwrap, request_for, monkeypatch):
    monkeypatch.setattr(bwrap, "_PLACES", "/nonexistent")
    with pytest.raises(errors.SandboxUnavailable, match="namespace") as caught:
        only_bwrap().generate(request_for(output=None))
    assert any("install bubblewrap" in fix for fix in caught.value.fixes)


def test_a_bubblewrap_that_another_user_could_change_is_not_run(only_bwrap, request_for, monkeypatch, tmp_path):
    mine = tmp_path / "bwrap"
    mine.write_bytes(Path(bwrap.find()).read_bytes())
    mine.chmod(0o755)
    monkeypatch.setattr(bwrap, "_PLACES", str(tmp_path))
    with pytest.raises(errors.SandboxUnavailable) as caught:
        only_bwrap().generate(request_for(output=None))
    assert any("only root can change it" in fix for fix in caught.value.fixes)
