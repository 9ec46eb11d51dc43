"""`wan-compat generate` for real, with good input and bad."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import RunCli, command
from tests.cli.test_demo import read_pixels
from wan_compat.protocol.values import MAX_PROMPT_CHARS
from wan_compat.supervisor.cli.runner import free_name, name_for_prompt
from wan_compat.supervisor.demo import demo_model

MODEL = demo_model()
SMALL = ("--width", "96", "--height", "64", "--num-frames", "5", "--num-inference-steps", "2", "--fps", "8")


def test_generate_writes_a_video_named_after_its_prompt(cli: RunCli, cwd: Path) -> None:
    ended = cli("generate", MODEL, "--prompt", "A red ball, at sunset!", *SMALL, "--seed", "7")
    assert ended.code == 0, ended
    names = sorted(path.name for path in cwd.iterdir())
    assert names == ["a-red-ball-at-sunset.mp4", "a-red-ball-at-sunset.mp4.json"]
    assert "5 frames, 96x64, 8 fps" in ended.out and "seed 7" in ended.out and len(ended.out.splitlines()) == 1
    assert len(read_pixels(cwd / "a-red-ball-at-sunset.mp4", 96, 64)) == 5


@pytest.mark.long
def test_a_drawn_seed_is_told_and_repeats_the_video(cli: RunCli) -> None:
    def run(output: str, *seed: str) -> tuple[int, str]:
        ended = cli("generate", MODEL, "--prompt", "a red ball", *SMALL, "--json", "--output", output, *seed)
        assert ended.code == 0, ended
        document = ended.document
        return document["metadata"]["generation_params"]["seed"], document["output"]["sha256"]

    seed, digest = run("a.mp4")
    assert run("b.mp4", "--seed", str(seed)) == (seed, digest)


def test_the_prompt_may_come_from_stdin_and_several_videos_are_one_document(cli: RunCli, cwd: Path) -> None:
    stdin = "ein grüner Ball\n".encode()
    (cwd / "ein-gr-ner-ball-2.mp4").write_bytes(b"mine")
    ended = cli("generate", MODEL, "--prompt", "-", *SMALL, "--seed", "7", "--num-videos", "2", "--json", stdin=stdin)
    assert ended.code == 0, ended
    assert ended.document["metadata"]["generation_params"]["prompt"] == "ein grüner Ball"
    told = [(one["video"], one["seed"], Path(one["output_path"]).name) for one in ended.document["videos"]]
    # Of names that are free for both; the second seed follows the first.
    assert told == [(0, 7, "ein-gr-ner-ball-2-1.mp4"), (1, 8, "ein-gr-ner-ball-2-2.mp4")]
    assert all((cwd / name).stat().st_size and (cwd / f"{name}.json").exists() for _, _, name in told)
    assert "Denoising (video 2) ..." in ended.err


def test_a_dry_run_tells_everything_and_starts_and_writes_nothing(cli: RunCli, cwd: Path) -> None:
    asked = ("generate", MODEL, "--prompt", "a red ball", *SMALL, "--dry-run")
    told = cli(*asked, "--seed", "7")
    assert told.code == 0, told
    assert "Would write" in told.out and "5 frames, 96x64, 8 fps" in told.out and "seed 7" in told.out
    document = cli(*asked, "--json").document
    assert "one video is made" in cli(*asked, "--videos-at-once", "2").err and "one video" not in told.err
    assert document["dry_run"] and document["generation_params"]["num_frames"] == 5
    assert document["generation_params"]["seed"] is None and document["plan"]["device"] == "cpu"
    assert {"path", "bytes"} == set(document["admitted"][0]) and document["sandbox"]["min_tier"] == "B"
    assert list(cwd.iterdir()) == []


def test_a_dry_run_ends_as_the_job_would(cli: RunCli, cwd: Path) -> None:
    (cwd / "there.mp4").write_bytes(b"x")
    (cwd / "two-2.mp4").write_bytes(b"x")
    several = ["--output", "two.mp4", "--num-videos", "2"]
    for extra, code in ((["--width", "70"], 2), (["--output", "there.mp4"], 2), (["--mode", "trust"], 5), (several, 2)):
        ended = cli("generate", MODEL, "--prompt", "x", "--dry-run", *extra)
        assert ended.code == code, ended


@pytest.mark.parametrize(
    ("stdin", "message"),
    [(b"\xff\xfe", "not UTF-8"), (b"x" * (MAX_PROMPT_CHARS + 1), "longer than"), (b"y" * 10_000_000, "longer than")],
    ids=["not-text", "long", "endless"],
)
def test_a_prompt_from_stdin_is_bounded(stdin: bytes, message: str, cli: RunCli) -> None:
    ended = cli("generate", MODEL, "--prompt", "-", stdin=stdin)
    assert ended.code == 2 and message in ended.err


REFUSALS = [
    (["nowhere", "--prompt", "x"], 4, "model_not_found"),
    ([MODEL, "--prompt", "x", "--width", "70"], 2, "invalid_request"),
    ([MODEL, "--prompt", "x", "--num-frames", "16"], 2, "invalid_request"),
    ([MODEL, "--prompt", "x", "--num-frames", "5000"], 2, "invalid_request"),
    ([MODEL, "--prompt", "x" * (MAX_PROMPT_CHARS + 1)], 2, "invalid_request"),
    ([MODEL, "--prompt", "x", "--fps", "nan"], 2, "invalid_request"),
    ([MODEL, "--prompt", "x", "--memory-limit", "500GiB"], 6, "memory_exceeded"),
    ([MODEL, "--prompt", "x", "--output", "nowhere/x.mp4"], 2, "output_not_writable"),
    ([MODEL, "--prompt", "x", "--mode", "trust"], 5, "trust_refused"),
    ([MODEL, "--prompt", "x", "--trust-remote-code"], 5, "trust_refused"),
    ([MODEL, "--prompt", "x", "--mode", "trust", "--safe-mode"], 2, "invalid_request"),
    ([MODEL, "--prompt", "x", "--min-tier", "E"], 5, "refused_by_policy"),
]


@pytest.mark.parametrize(("arguments", "code", "name"), REFUSALS, ids=[" ".join(case[0][1:])[:40] for case in REFUSALS])
def test_refusals_come_before_a_worker_and_leave_nothing(
    arguments: list[str], code: int, name: str, cli: RunCli, cwd: Path
) -> None:
    ended = cli("generate", *arguments, "--json")
    assert ended.code == code, ended
    error = ended.document["error"]
    assert error["code"] == name and error["message"] and error["title"]
    assert "Starting worker" not in ended.err
    assert list(cwd.iterdir()) == []


def test_no_message_advises_turning_on_remote_code(cli: RunCli) -> None:
    for arguments in (["--trust-remote-code"], ["--mode", "trust"], ["--mode", "trust", "--safe-mode"]):
        ended = cli("generate", MODEL, "--prompt", "x", *arguments)
        assert "trust-remote-code" not in ended.err.lower() and "trust_remote_code" not in ended.err.lower()


def test_quiet_is_quiet(cli: RunCli) -> None:
    # The original spelling of the safe mode is accepted, too.
    ended = cli("-q", "generate", MODEL, "--prompt", "x", *SMALL, "--safe-mode", "--isolation", "job")
    assert (ended.code, ended.err) == (0, "")


def test_overwrite_and_worker_log_and_verbose(cli: RunCli, cwd: Path) -> None:
    (cwd / "x.mp4").write_bytes(b"old")
    arguments = ("generate", MODEL, "--prompt", "x", *SMALL, "--output", "x.mp4")
    assert cli(*arguments).code == 2
    ended = cli(*arguments, "--overwrite", "--worker-log", "log.txt", "-v")
    assert ended.code == 0, ended
    assert "seccomp" in ended.err and "denoise" in ended.out, "layers and timings"
    assert (cwd / "x.mp4").read_bytes() != b"old"
    assert sorted(path.name for path in cwd.iterdir()) == ["log.txt", "x.mp4", "x.mp4.json"]


def test_a_timeout_is_124_and_leaves_nothing(cli: RunCli, cwd: Path) -> None:
    ended = cli("generate", MODEL, "--prompt", "x", *LONG, "--timeout", "4s", "--json")
    assert ended.code == 124, ended
    assert ended.document["error"]["code"] == "job_timeout"
    assert list(cwd.iterdir()) == []


LONG = ("--width", "96", "--height", "64", "--num-frames", "49", "--num-inference-steps", "1000")


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGINT, 130, "job_cancelled"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_everything(
    number: signal.Signals, code: int, name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    with subprocess.Popen(
        command("generate", MODEL, "--prompt", "x", *LONG, "--json"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("Denoising"):
                break
        family = psutil.Process(process.pid).children(recursive=True)
        assert family, "a worker is running"
        started = time.monotonic()
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert f'"code": "{name}"' in out
    assert time.monotonic() - started < 15
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if not path.is_dir()]
    assert [path for path in left if path.parts[0] != "state"] == []  # the record of the first use


def memory_holds(pid: int, needle: bytes) -> bool:
    """Whether any readable mapping of a process has `needle` in it, its environment and arguments included."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            if not rights.startswith("r") or line.rstrip().endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
                continue
            start, end = (int(text, 16) for text in span.split("-"))
            while start < end:
                try:
                    memory.seek(start)
                    chunk = memory.read(min(end - start, 64 << 20))
                except OSError:
                    break
                if not chunk:
                    break
                if needle in chunk:
                    return True
                start += len(chunk)
    return False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the memory of a worker, which is the point")
def test_no_secret_of_the_environment_is_in_the_memory_of_zygote_and_worker(
    environment: dict[str, str], tmp_path: Path
) -> None:
    canary = secrets.token_hex(16)
    with subprocess.Popen(
        command("generate", MODEL, "--prompt", "x", *LONG),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**environment, "HF_TOKEN": canary},
        cwd=tmp_path,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("Denoising"):
                break
        family = psutil.Process(process.pid).children(recursive=True)
        held = {member.pid: memory_holds(member.pid, canary.encode()) for member in family}
        control = memory_holds(process.pid, canary.encode())
        process.terminate()
        process.communicate(timeout=30)
    assert control, "the supervisor has it, so that the search would find it"
    assert len(held) >= 2 and not any(held.values()), held


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red fox, in snow!", "a-red-fox-in-snow"),
        ("../../etc/passwd", "etc-passwd"),
        ("ein grüner Ball", "ein-gr-ner-ball"),
        ("狐", "video"),
        ("", "video"),
        ("x" * 500, "x" * 60),
        ("a " * 100, ("a-" * 30).rstrip("-")),
        ("\x1b[31m", "31m"),
    ],
)
def test_names_from_prompts_are_harmless(prompt: str, name: str) -> None:
    assert name_for_prompt(prompt) == name


def test_a_free_name_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert free_name("x") == "x.mp4"
    Path("x.mp4").touch()
    Path("x-2.mp4").symlink_to("nowhere")
    assert free_name("x") == "x-3.mp4"
    assert free_name("y", num_videos=2) == "y.mp4"
    Path("y-2.mp4").touch()
    assert free_name("y", num_videos=2) == "y-2.mp4"
    assert free_name("y", num_videos=1) == "y.mp4"
