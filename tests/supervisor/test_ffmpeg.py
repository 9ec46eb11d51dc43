"""Finding ffmpeg, with the real one and with files that only look like it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import pytest

from wan_compat.protocol.errors import FfmpegMissing
from wan_compat.supervisor import ffmpeg as ffmpeg_module
from wan_compat.supervisor.ffmpeg import find_ffmpeg, probe, run_bounded


@pytest.fixture
def program(tmp_path):
    def make(body: str):
        path = tmp_path / "fake_ffmpeg"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return make


def test_bundled_ffmpeg_is_found_and_has_x264(monkeypatch):
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    found = find_ffmpeg()
    assert os.path.isabs(found.path)
    assert found.version[0] in "n0123456789N"
    assert "libx264" in found.encoders
    assert "=" not in found.encoders  # the legend above the list is not an encoder


def test_second_call_starts_no_process(monkeypatch):
    first = find_ffmpeg()
    monkeypatch.setattr(ffmpeg_module, "run_bounded", None)
    assert find_ffmpeg() is first


def test_environment_variable_is_honoured_and_followed_when_it_changes(monkeypatch, tmp_path):
    link = tmp_path / "mine"
    link.symlink_to(find_ffmpeg().path)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(link))
    assert "libx264" in find_ffmpeg().encoders
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "missing"))
    with pytest.raises(FfmpegMissing, match="missing") as caught:
        find_ffmpeg()
    assert "IMAGEIO_FFMPEG_EXE" in caught.value.fixes[0]


def test_program_that_is_replaced_is_probed_again(monkeypatch, program):
    path = program("echo 'ffmpeg version 1.0 x' >&2; echo ' V....D libx264 x'")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    assert find_ffmpeg().version == "1.0"
    path = program("echo 'ffmpeg version 2.0.1 x' >&2; echo ' V....D libx264 x'")
    assert find_ffmpeg().version == "2.0.1"


@pytest.mark.parametrize("body", ["exit 3", "echo hello", "echo 'ffmpeg version 1' >&2", "kill -9 $$"])
def test_program_that_is_not_ffmpeg_is_refused(program, body):
    with pytest.raises(FfmpegMissing, match="does not behave like ffmpeg"):
        probe(str(program(body)))


def test_file_that_cannot_run_is_refused(tmp_path):
    path = tmp_path / "text"
    path.write_text("not a program")
    path.chmod(0o755)
    with pytest.raises(FfmpegMissing, match="cannot be run"):
        probe(str(path))


def test_words_of_a_program_are_cleaned_before_they_are_shown(program):
    with pytest.raises(FfmpegMissing) as caught:
        probe(str(program("printf '\\033[31mred' >&2; exit 1")))
    assert "\x1b" not in caught.value.message


def test_program_that_hangs_is_killed_with_its_children(program, tmp_path):
    path = program(f"sleep 60 & echo $! > {tmp_path}/child; wait")
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        run_bounded([str(path)], timeout_s=0.5, max_bytes=100)
    assert time.monotonic() - began < 5
    orphan = int((tmp_path / "child").read_text())
    while os.path.exists(f"/proc/{orphan}"):
        with contextlib.suppress(ChildProcessError):  # whoever adopted it reaps it; under pytest that is us
            os.waitpid(orphan, os.WNOHANG)
        assert time.monotonic() - began < 10
        time.sleep(0.01)


def test_what_is_written_beyond_the_bound_is_thrown_away():
    code = "import os; os.write(1, b'x' * 300000); os.write(2, b'y')"
    finished = run_bounded([sys.executable, "-c", code], timeout_s=20, max_bytes=1000)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"x" * 1000, b"y")


def test_programs_get_an_empty_environment(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hf_x")
    code = "import os; print(sorted(k for k in os.environ if not k.startswith('LC_')))"
    assert run_bounded([sys.executable, "-c", code], timeout_s=20, max_bytes=1000).stdout == b"[]\n"


def test_importing_the_encoder_brings_neither_numpy_nor_imageio():
    code = (
        "import sys, wan_compat.supervisor.encoder; "
        "print([name for name in ('numpy', 'imageio_ffmpeg', 'torch', 'zmq') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
