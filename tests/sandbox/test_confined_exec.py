"""ffmpeg, confined: it encodes, and can do nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sandbox.harness import REPOSITORY
from wan_compat.sandbox.confined_exec import EXIT_NOT_CONFINED, confined_argv

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")

SIZE, FRAMES = 64, 32


@pytest.fixture(scope="module")
def ffmpeg() -> str:
    return str(imageio_ffmpeg.get_ffmpeg_exe())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4.part"
    path.touch()
    return path


def run(argv: list[str], output: Path, given: bytes = b"", **changed: int) -> subprocess.CompletedProcess[bytes]:
    limits = {"memory_bytes": 1 << 30, "cpu_seconds": 30, "file_size_bytes": 64 << 20, **changed}
    command = confined_argv(argv, read_paths=(), write_files=(str(output),), **limits)
    return subprocess.run(command, input=given, capture_output=True, timeout=60)


def encode(ffmpeg: str, output: Path, **changed: int) -> subprocess.CompletedProcess[bytes]:
    argv = [ffmpeg, "-v", "error", "-nostdin", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIZE}x{SIZE}"]
    argv += ["-r", "16", "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    return run([*argv, "-f", "mp4", str(output)], output, os.urandom(SIZE * SIZE * 3) * FRAMES, **changed)


def test_confined_ffmpeg_encodes_with_faststart(ffmpeg: str, output: Path) -> None:
    finished = encode(ffmpeg, output)
    assert finished.returncode == 0, finished.stderr
    content = output.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    check = [ffmpeg, "-v", "error", "-nostdin", "-i", str(output), "-f", "null", "-"]
    assert subprocess.run(check, capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize(
    "source",
    ["/etc/passwd", "{folder}/other", "/proc/self/environ", "http://127.0.0.1:9/", "unix:/tmp/x", "udp://127.0.0.1:9"],
)
def test_confined_ffmpeg_opens_nothing_else(ffmpeg: str, output: Path, source: str) -> None:
    (output.parent / "other").write_text("secret")
    source = source.replace("{folder}", str(output.parent))
    argv = [ffmpeg, "-v", "error", "-nostdin", "-f", "rawvideo", "-s", "1x1", "-i", source, "-f", "null", "-"]
    finished = run(argv, output)
    assert finished.returncode != 0
    assert b"Permission denied" in finished.stderr or b"Operation not permitted" in finished.stderr, finished.stderr


def test_confined_ffmpeg_writes_no_other_file(ffmpeg: str, output: Path) -> None:
    argv = [ffmpeg, "-v", "error", "-nostdin", "-f", "lavfi", "-i", "testsrc=d=1:s=64x64", "-f", "mp4"]
    assert run([*argv, str(output.parent / "new.mp4")], output).returncode != 0
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_confined_program_starts_no_other(output: Path) -> None:
    # A shell, because it tries again and again: vfork, fork, then exec in place.
    finished = run(["/bin/sh", "-c", "/bin/true; exec /bin/true"], output)
    assert finished.returncode != 0
    assert run(["/bin/sh", "-c", "exec /bin/sh -c :"], output).returncode != 0
    assert run(["/bin/sh", "-c", ":"], output).returncode == 0


def test_confined_program_holds_no_capability_and_gains_none(output: Path) -> None:
    command = confined_argv(
        [str(Path("/bin/cat").resolve()), "/proc/self/status"],
        read_paths=("/proc",),
        write_files=(str(output),),
        memory_bytes=1 << 30,
        cpu_seconds=10,
        file_size_bytes=1,
    )
    status = subprocess.run(command, capture_output=True, timeout=30, check=True).stdout.decode()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(fields[name], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


def test_limits_hold(ffmpeg: str, output: Path) -> None:
    assert encode(ffmpeg, output, memory_bytes=4 << 20).returncode != 0
    assert encode(ffmpeg, output, file_size_bytes=1000).returncode != 0
    assert output.stat().st_size <= 1000


def test_cpu_limit_kills(output: Path) -> None:
    finished = run(["/bin/sh", "-c", "while :; do :; done"], output, cpu_seconds=1)
    assert finished.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


def test_descriptors_are_not_inherited(output: Path) -> None:
    with open("/etc/passwd") as secret:
        os.set_inheritable(secret.fileno(), True)
        command = confined_argv(
            ["/bin/sh", "-c", f"read line <&{secret.fileno()} && echo $line"],
            read_paths=(),
            write_files=(str(output),),
            memory_bytes=1 << 30,
            cpu_seconds=10,
            file_size_bytes=1,
        )
        finished = subprocess.run(command, capture_output=True, timeout=30, close_fds=False)
    assert finished.stdout == b"" and finished.returncode != 0


def test_output_must_exist(output: Path) -> None:
    output.unlink()
    finished = run(["/bin/true"], output)
    assert finished.returncode == EXIT_NOT_CONFINED
    assert b"does not exist" in finished.stderr


def test_script_is_refused(output: Path) -> None:
    script = output.parent / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    finished = run([str(script)], output)
    assert finished.returncode == EXIT_NOT_CONFINED
    assert b"not a 64-bit ELF" in finished.stderr


def test_program_dies_with_the_process_that_started_it(output: Path) -> None:
    starter = (
        "import subprocess, sys\n"
        "from wan_compat.sandbox.confined_exec import confined_argv\n"
        f"argv = confined_argv(['/bin/cat'], read_paths=(), write_files=({str(output)!r},), memory_bytes=1 << 30,\n"
        "    cpu_seconds=10, file_size_bytes=1)\n"
        "child = subprocess.Popen(argv, stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", starter],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(REPOSITORY)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.kill()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    pytest.fail("the program outlived its parent")


def test_wrong_parent_is_noticed(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    finished = run(["/bin/true"], output)
    assert finished.returncode == EXIT_NOT_CONFINED
    assert b"is gone" in finished.stderr
