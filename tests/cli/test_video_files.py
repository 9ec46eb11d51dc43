"""`generate` with its options for the file, `--from`, `info` and `encode`: the real program."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.assets.tiny_wan import tiny_model
from tests.cli.conftest import Ended, RunCli
from tests.supervisor.test_formats import decode
from wan_compat.protocol import video
from wan_compat.supervisor.cli import video_options
from wan_compat.supervisor.cli.main import main
from wan_compat.supervisor.video_info import request_again

MODEL = str(tiny_model("t2v"))
SMALL = ("--width", "96", "--height", "64", "--num-frames", "5", "--num-inference-steps", "2", "--fps", "8")


def test_options_have_the_values_of_the_request() -> None:
    assert [item.value for item in video_options.Quality] == [item.value for item in video.Quality]
    assert [item.value for item in video_options.Metadata] == [item.value for item in video.MetadataLevel]


@pytest.fixture
def run(cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> RunCli:
    """Run the program in this process: for what ends before anything is started."""
    cwd.mkdir(exist_ok=True)
    monkeypatch.chdir(cwd)
    for kind in ("CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        code = main(arguments)
        return Ended(code, *capsys.readouterr())

    return run


def test_a_sidecar_makes_the_same_frames_again(cli: RunCli, run: RunCli, cwd: Path) -> None:
    first = cli(
        "generate", MODEL, "--prompt", "a s3cret b=a;ll\\ #x", *SMALL, "--output", "a.mkv", "--metadata", "full",
        "--poster", "--contact-sheet", "--preview", "frames",
    )  # fmt: skip
    assert first.code == 0, first
    assert {"a.mkv", "a.mkv.json", "a.mkv.poster.png", "a.mkv.sheet.png", "frames"} == {p.name for p in cwd.iterdir()}
    assert len(list((cwd / "frames").iterdir())) == 5
    document = json.loads((cwd / "a.mkv.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", document["model"]["sha256"])
    assert document["result"]["sandbox"]["self_test"] and document["request"]["prompt"] == "a s3cret b=a;ll\\ #x"
    assert document["mode"] == "safe" and document["result"]["metadata"]["system_info"]["torch"]

    again = cli("generate", "--from", "a.mkv.json", "--metadata", "minimal", "--output", "b.npy", "--json")
    assert again.code == 0, again
    assert "Warning" not in again.err
    frames = decode(cwd / "a.mkv", (5, 64, 96, 3))
    assert (frames == np.load(cwd / "b.npy")).all() and frames.any()

    told = run("info", "a.mkv", "--json")
    assert told.document["unchanged"] is True and told.document["file"]["num_frames"] == 5
    assert told.document["label"]["prompt"] == "a s3cret b=a;ll\\ #x"
    text = run("info", "a.mkv", "--verbose").out
    assert "Again: wan-compat generate --from a.mkv.json" in text and "tier" in text

    told = run("encode", "b.npy", "--output", "c.webm", "--dry-run")
    assert told.code == 0 and told.out.startswith("Would write ") and not (cwd / "c.webm").exists(), told
    made = run("encode", "b.npy", "--output", "c.webm", "--quality", "high", "--json")
    assert made.code == 0 and made.document["output"]["codec"] == "vp9" and made.document["output"]["fps"] == 8
    assert run("info", "c.webm", "--json").document["sidecar"]["request"]["prompt"] == "a s3cret b=a;ll\\ #x"
    with (cwd / "c.webm").open("ab") as file:
        file.write(b"x")
    assert "other bytes" in run("info", "c.webm").out


REFUSALS = [
    ("gif with sound", ["--output", "x.gif", "--audio", "a.wav"]),
    ("unknown format", ["--format", "avi"]),
    ("unknown codec", ["--output", "x.mp4", "--codec", "divx"]),
    ("format against name", ["--output", "x.mp4", "--format", "webm"]),
    ("lossless gif", ["--output", "x.gif", "--quality", "lossless"]),
    ("no sidecar", ["--from", "nowhere.json"]),
    ("a still of many frames", ["--output", "x.png"]),
    ("a name that is no name", ["--output", "x/"]),
    ("missing sound", ["--output", "x.mp4", "--audio", "nowhere.wav"]),
]


@pytest.mark.parametrize("arguments", [case[1] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
def test_impossible_combinations_end_with_2_before_a_worker(arguments: list[str], run: RunCli, cwd: Path) -> None:
    ended = run("generate", MODEL, "--prompt", "x", *SMALL, *arguments)
    assert ended.code == 2, ended
    assert "Starting worker" not in ended.err
    assert list(cwd.iterdir()) == []


def test_generate_without_model_or_prompt_says_what_is_missing(run: RunCli) -> None:
    assert "MODEL is missing" in run("generate", "--prompt", "x").err
    ended = run("generate", MODEL)
    assert ended.code == 2 and "--prompt is missing" in ended.err


SIDECAR = {
    "schema_version": 1,
    "kind": "wan-compat video",
    "mode": "safe",
    "request": {"prompt": "x"},
    "model": {"path": MODEL},
}
HOSTILE = [
    (b"{", "not a sidecar"),
    (b"[" * 100_000, "not a sidecar"),
    (b'{"kind": "something else"}', "not a sidecar"),
    (json.dumps(SIDECAR | {"request": {"prompt": "x", "worker_evil": 1}}).encode(), "worker-evil"),
    (json.dumps(SIDECAR | {"request": {"prompt": "x", "num_frames": 10**9}}).encode(), "num-frames"),
    (json.dumps(SIDECAR | {"mode": "trust"}).encode(), "trust mode"),
    (json.dumps(SIDECAR | {"restricted": True}).encode(), "--restricted"),
    (json.dumps(SIDECAR | {"model": {"path": 7}}).encode(), "names no model"),
]


@pytest.mark.parametrize(("content", "message"), HOSTILE)
def test_a_hostile_sidecar_chooses_nothing(content: bytes, message: str, run: RunCli, cwd: Path) -> None:
    (cwd / "evil.json").write_bytes(content)
    ended = run("generate", "--from", "evil.json")
    assert ended.code == 2 and message in ended.err, ended
    assert [path.name for path in cwd.iterdir()] == ["evil.json"]


def test_a_sidecar_cannot_choose_where_to_write_or_how_much_to_use(tmp_path: Path) -> None:
    chosen = {"output": "/etc/x", "overwrite": True, "preview": "/etc", "worker_log": "/etc/y", "mode": "trust"}
    chosen |= {
        "restricted": True,
        "memory_limit_bytes": 1 << 40,
        "timeout_s": 1e6,
        "model": "/other",
        "isolation": "model",
    }
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(SIDECAR | {"request": {"prompt": "x"} | chosen}))
    fields, _ = request_again(str(path))
    assert fields == {"prompt": "x", "model": MODEL}


def test_a_hostile_video_does_not_hurt_info(run: RunCli, cwd: Path) -> None:
    import imageio_ffmpeg

    (cwd / "note.npy").write_bytes(b"\x93NUMPY\x01\x00")
    assert run("info", "note.npy").code == 2
    import subprocess

    evil = '{"generator":"wan-compat 9","model":"\\u001b]0;owned\\u0007","parameters":{"x":"\\u202e"}}'
    subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=8:duration=1",
         "-metadata", f"comment={evil}", str(cwd / "evil.mp4")],
        check=True,
    )  # fmt: skip
    ended = run("info", "evil.mp4")
    assert ended.code == 0 and "\x1b" not in ended.out and "\u202e" not in ended.out and "owned" in ended.out
    (cwd / "evil.mp4.json").write_text('{"kind": "wan-compat video", "schema_version": 1, "request": "x", "result": 3}')
    assert run("info", "evil.mp4", "--verbose").code == 0
    (cwd / "deep.mp4").write_bytes((cwd / "evil.mp4").read_bytes())
    (cwd / "deep.mp4.json").write_bytes(b'{"a":' * 50_000)
    assert run("info", "deep.mp4").code == 0


def test_encode_says_what_it_cannot(run: RunCli, cwd: Path) -> None:
    assert run("encode", "nowhere.mp4", "--output", "x.mp4").code == 2
    (cwd / "folder").mkdir()
    assert run("encode", "folder", "--output", "x.mp4", "--fps", "8").code == 2
    assert sorted(path.name for path in cwd.iterdir()) == ["folder"]
