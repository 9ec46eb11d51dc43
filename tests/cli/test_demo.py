"""`wan-compat demo` for real: a sandboxed worker, the trained model, a file that is looked at."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.cli.conftest import RunCli
from wan_compat.policies.demo_grammar import understand
from wan_compat.supervisor import demo as demo_models
from wan_compat.supervisor.cli.demo import describe_understood
from wan_compat.supervisor.ffmpeg import find_ffmpeg


def read_pixels(video: Path, width: int = 160, height: int = 96) -> npt.NDArray[np.uint8]:
    """Decode a file into (num_frames, height, width, 3)."""
    arguments = ["-v", "error", "-i", str(video), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run([find_ffmpeg().path, *arguments], capture_output=True, timeout=60, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)


def test_a_dry_run_of_the_demo_writes_nothing(cli: RunCli, cwd: Path) -> None:
    told = cli("demo", "--dry-run")
    assert told.code == 0 and "Would write" in told.out and "33 frames, 160x96" in told.out, told
    assert cli("demo", "--dry-run", "--variant", "t2v").code == 2 and list(cwd.iterdir()) == []


def test_demo_draws_what_its_prompt_says_beside_what_is_there(cli: RunCli, cwd: Path) -> None:
    (cwd / "wan-compat-demo.mp4").write_bytes(b"mine")
    ended = cli("demo")
    assert ended.code == 0, ended
    assert (cwd / "wan-compat-demo.mp4").read_bytes() == b"mine"
    (cwd / "wan-compat-demo.mp4").unlink()
    video = cwd / "wan-compat-demo-2.mp4"
    assert ended.out.startswith(f"Wrote {video}: 33 frames, 160x96, 16 fps")
    assert sorted(path.name for path in cwd.iterdir()) == [video.name, f"{video.name}.json"]

    pixels = read_pixels(video).astype(int)
    assert pixels.shape == (33, 96, 160, 3)
    corner = pixels[:, :8, :8].mean(axis=(0, 1, 2))
    assert corner[2] > 60 and corner[0] < 50 and corner[1] < 60, "the background is dark blue"
    white = (pixels.min(axis=3) > 170).sum(axis=(1, 2))
    assert white[2] > 60, "there is something white"
    assert white[-1] > 1.5 * white[2], "and it grows"


@pytest.mark.long
def test_demo_says_the_same_to_a_program(cli: RunCli, cwd: Path) -> None:
    ended = cli("demo", "--json", "--output", "clip.mp4", "--seed", "3")
    assert ended.code == 0, ended
    document = ended.document
    assert document["schema_version"] == 1 and document["success"] is True
    assert document["output"]["path"] == str(cwd / "clip.mp4")
    assert document["output"]["num_frames"] == 33 and document["output"]["fps"] == 16
    assert document["metadata"]["generation_params"]["seed"] == 3
    assert document["sandbox"]["tier"] in "AB" and all(document["sandbox"]["self_test"].values())
    assert {
        "worker_start_s",
        "load_s",
        "text_encode_s",
        "denoise_s",
        "decode_s",
        "first_frame_s",
        "encode_s",
        "total_s",
    } <= set(document["timings"])
    assert "Denoising" in ended.err and "\x1b" not in ended.err


def test_demo_never_overwrites(cli: RunCli, cwd: Path) -> None:
    (cwd / "wan-compat-demo.mp4").write_bytes(b"mine")
    ended = cli("demo", "--output", "wan-compat-demo.mp4")
    assert ended.code == 2 and "\nOutput exists (output_exists)\n" in ended.err
    assert (cwd / "wan-compat-demo.mp4").read_bytes() == b"mine"


@pytest.mark.long
def test_an_offered_variant_is_built_and_runs(cli: RunCli, cwd: Path, tmp_path: Path) -> None:
    variant = "i2v"  # every kind generates in tests/test_tasks_end_to_end.py
    ended = cli("demo", "--variant", variant, "--output", "clip.mp4", "--json")
    assert ended.code == 0, ended
    assert ended.document["output"]["num_frames"] == 17
    assert "Building" in ended.err
    built = list((tmp_path / "cache" / "wan-compat" / "tiny_models").glob(f"{variant}-*/model_index.json"))
    assert len(built) == 1


def test_a_tiny_model_is_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    builds: list[str] = []

    def build(kind: str, folder: Path) -> None:
        builds.append(kind)
        folder.mkdir()

    monkeypatch.setattr(demo_models, "_build", build)
    said: list[str] = []
    first = demo_models.tiny_model("t2v", announce=said.append)
    assert demo_models.tiny_model("t2v", announce=said.append) == first
    assert builds == ["t2v"] and len(said) == 1


def test_a_build_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: RunCli) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo_models.sys, "executable", "/bin/false")  # type: ignore[attr-defined]
    with pytest.raises(demo_models.EnvironmentLacks, match="exit 1"):
        demo_models.tiny_model("t2v", announce=lambda text: None)
    assert [path.name for path in (tmp_path / "wan-compat" / "tiny_models").iterdir() if path.is_dir()] == []


def test_demo_says_which_words_it_understood() -> None:
    whole = describe_understood(understand("a red ball rises over the sea"))
    assert whole == "Understood: red, ball, rises, over the sea."
    part = describe_understood(understand("a red car drives left"))
    assert part.startswith(
        "Understood: red, left. Left to chance: shape, background.\nThe demo model knows COLOUR SHAPE"
    )
    assert describe_understood(understand("cats")).startswith("No word of it is known to the demo model.")


def test_the_demo_model_is_the_one_its_card_describes(repository: Path) -> None:
    folder = Path(demo_models.demo_model())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.suffix == ".safetensors")
    assert 10e6 < size < 12e6
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "WanPipeline"
    assert "160x96 pixels, 33 frames" in (folder / "README.md").read_text()
