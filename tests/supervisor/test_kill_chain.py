"""Whoever is killed, at whatever moment: nothing of a job survives two seconds, and the next start clears the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from wan_compat.protocol import errors
from wan_compat.supervisor import events as ev
from wan_compat.supervisor import runtime

REPOSITORY = Path(__file__).resolve().parents[2]
MISBEHAVING = REPOSITORY / "tests" / "programs" / "misbehaving_zygote.py"

EMBEDDING_PROGRAM = """
import sys, threading
from wan_compat import GenerationRequest, Supervisor
from wan_compat.supervisor import events as ev
supervisor = Supervisor()
supervisor._zygote_program = (sys.argv[1], "slow")
job = supervisor.submit(GenerationRequest(model=sys.argv[2], prompt="x", height=64, width=96, num_frames=9,
                                          num_inference_steps=900, seed=1, output=sys.argv[3]))
for event in job.events():
    if isinstance(event, ev.Progress) and event.phase == "denoise":
        print("busy", flush=True)
"""


def busy_program(model: str, output: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """Start a program with a generation under way; return it and everything below it."""
    process = subprocess.Popen(
        [sys.executable, "-c", EMBEDDING_PROGRAM, str(MISBEHAVING), model, str(output)],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"busy\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3  # zygote, worker, ffmpeg
    return process, children


@pytest.fixture
def own_runtime_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runtime folders apart from those of other tests, each of which would be the next start that clears the rest."""
    with tempfile.TemporaryDirectory(prefix="wc-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield


def is_zygote(process: psutil.Process) -> bool:
    try:
        return str(MISBEHAVING) in process.cmdline()
    except psutil.NoSuchProcess:  # ZombieProcess is one of them
        return False


def encoders() -> list[psutil.Process]:
    """Return the ffmpeg processes below this one; while its launcher still confines itself there is none."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "ffmpeg" in Path(child.exe()).name:
                found.append(child)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def assert_all_gone(processes: list[psutil.Process], within_s: float = 2.0) -> None:
    deadline = time.monotonic() + within_s
    while left := living(processes):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_nothing_outlives_a_killed_program_and_the_next_start_removes_its_leftovers(
    how, request_for, tmp_path, own_runtime_folder
):
    process, children = busy_program(request_for().model, tmp_path / "x.mp4")
    assert process.stdout is not None
    with process.stdout:
        os.kill(process.pid, how)
        process.wait(5)
        assert_all_gone(children)
    # Nobody was left to remove them: the unfinished video, and the copy of its frames.
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npy", ".part"]
    from wan_compat.sandbox import cgroup

    cgroup.sweep_stale()
    runtime.sweep_stale(runtime.runtime_base())
    assert list(tmp_path.iterdir()) == []


def test_sweep_does_not_remove_a_file_that_took_a_leftovers_name(tmp_path):
    folder = runtime.RuntimeFolder()
    part = tmp_path / "x.part"
    part.write_text("ours")
    keep = tmp_path / "hard-link-keeps-the-inode-busy"
    os.link(part, keep)
    folder.note_leftover(str(part))
    part.unlink()
    part.write_text("somebody else's")
    os.close(folder._lock)  # as a killed process leaves it
    folder._lock = -1
    runtime.sweep_stale(runtime.runtime_base())
    assert part.read_text() == "somebody else's"
    assert not os.path.exists(folder.path)


def test_sweep_removes_an_unfinished_folder_whole(tmp_path):
    folder = runtime.RuntimeFolder()
    unfinished = tmp_path / ".model.part-1"
    (unfinished / "vae").mkdir(parents=True)
    (unfinished / "vae" / "config.json").write_text("{}")
    folder.note_leftover(str(unfinished))
    os.close(folder._lock)  # as a killed process leaves it
    folder._lock = -1
    runtime.sweep_stale(runtime.runtime_base())
    assert list(tmp_path.iterdir()) == []


def test_sweep_leaves_living_supervisors_alone():
    folder = runtime.RuntimeFolder()
    try:
        assert runtime.sweep_stale(runtime.runtime_base()) == []
        assert os.path.isdir(folder.path)
    finally:
        folder.close()
    assert not os.path.exists(folder.path)


@pytest.mark.parametrize("victim", ["zygote", "worker"])
def test_job_whose_zygote_or_worker_is_killed_ends_with_an_error_and_the_next_one_works(
    victim, misbehaving, request_for, tmp_path
):
    supervisor = misbehaving("slow")
    job = supervisor.submit(request_for(num_inference_steps=500))
    children: list[psutil.Process] = []
    for event in job.events():
        if isinstance(event, ev.Progress) and event.phase == "denoise" and not children:
            zygote = next(child for child in psutil.Process().children() if is_zygote(child))
            # Not all below this process: fixtures of other tests may have processes of their own.
            children = [zygote, *zygote.children(recursive=True), *encoders()]
            target = zygote if victim == "zygote" else zygote.children()[0]
            target.kill()
    with pytest.raises(errors.WorkerDied, match=r"SIGKILL|without a status"):
        job.result()
    assert list(tmp_path.iterdir()) == []
    if victim == "zygote":
        assert_all_gone(children)
    assert supervisor.generate(request_for()).success


def test_stopped_ffmpeg_does_not_outlive_the_jobs_deadline(misbehaving, request_for, tmp_path):
    supervisor = misbehaving("slow")
    job = supervisor.submit(request_for(num_inference_steps=100, height=1024, width=1024, timeout_s=8))
    stopped: list[psutil.Process] = []
    for event in job.events():
        if isinstance(event, ev.Progress) and event.phase == "denoise" and not stopped:
            stopped = encoders()
            for process in stopped:
                process.suspend()
    assert stopped
    with pytest.raises(errors.DeadlineExceeded):
        job.result()
    assert_all_gone(stopped)
    assert list(tmp_path.iterdir()) == []


def test_ffmpeg_that_dies_during_denoising_costs_nothing_but_another_encoding(misbehaving, request_for, tmp_path):
    supervisor = misbehaving("slow")
    job = supervisor.submit(request_for(num_inference_steps=40))
    killed = False
    for event in job.events():
        if isinstance(event, ev.Progress) and event.phase == "denoise" and not killed:
            for encoder in encoders():
                encoder.kill()
                killed = True
    result = job.result(1)
    assert killed and [step["outcome"] for step in result.recovery] == ["succeeded"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["video.mp4", "video.mp4.json"]


@pytest.mark.long
def test_soak_of_workers_killed_at_random_moments_leaves_no_trace():
    """The short form of `python -m tests.soak`, which runs 500."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--workers", "8", "--seed", "3"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
