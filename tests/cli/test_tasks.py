"""Tasks on the command line: pictures in, a video out; what does not fit ends with 2 before any worker is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.assets.media_files import png
from tests.assets.tiny_wan import tiny_model
from tests.cli.conftest import RunCli

SMALL = ("--width", "96", "--height", "64", "--num-frames", "5", "--num-inference-steps", "1", "--fps", "8")


@pytest.fixture
def picture(cwd: Path) -> str:
    (cwd / "a.png").write_bytes(png(96, 64, b"".join(b"\0" + bytes([3 * row] * 288) for row in range(64))))
    return "a.png"


@pytest.mark.long
def test_a_picture_becomes_a_video(cli: RunCli, cwd: Path, picture: str) -> None:
    given = ("--image", picture, "--last-image", picture)
    ended = cli("generate", str(tiny_model("i2v22")), "--prompt", "a ball", *SMALL, *given, "--json")
    assert ended.code == 0, ended
    parameters = ended.document["metadata"]["generation_params"]
    assert parameters["task"] == "flf2v" and [item["role"] for item in parameters["media"]] == ["image", "last_image"]
    assert ended.document["metadata"]["pipeline_class"] == "WanImageToVideoPipeline"
    assert ended.document["output"]["num_frames"] == 5


@pytest.mark.long
def test_a_character_is_moved_by_two_videos_and_put_into_a_third(cli: RunCli, cwd: Path, picture: str) -> None:
    # The frames that move it, as an animated picture: five times the same.
    from PIL import Image

    frames = [Image.new("RGB", (96, 64), (index, 0, 0)) for index in range(5)]
    frames[0].save(cwd / "v.webp", save_all=True, append_images=frames[1:], lossless=True)
    given = ("--image", picture, "--pose-video", "v.webp", "--face-video", "v.webp")
    replaced = ("--background-video", "v.webp", "--mask", picture)
    ended = cli("generate", str(tiny_model("animate")), "--prompt", "a ball", *SMALL, *given, *replaced, "--json")
    assert ended.code == 0, ended
    assert ended.document["metadata"]["generation_params"]["task"] == "animate"
    assert ended.document["output"]["num_frames"] == 5


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("i2v", (), "needs --image"),
        ("i2v", ("--image", "a.png", "--last-image", "a.png"), "takes no --last-image"),
        ("flf2v", ("--image", "a.png"), "needs --last-image"),
        ("t2v", ("--image", "a.png"), "given was --image"),
        ("t2v", ("--task", "v2v"), "needs --video"),
        ("t2v", ("--strength", "0.5"), "no strength"),
        ("vace", ("--reference", "a.png", "--mask", "a.png"), "needs --video for its --mask"),
        ("vace", ("--task", "animate"), "not animate"),
        ("animate", ("--image", "a.png", "--pose-video", "a.png"), "needs --face-video"),
        ("animate2", ("--image", "a.png", "--pose-video", "a.png"), "needs --video"),
        ("i2v", ("--image", "absent.png"), "No such file"),
        ("i2v", ("--image", "/dev/zero"), "no regular file"),
        ("vace", ("--reference", "a.png") * 9, "reference"),
        ("t2v", ("--video", "a.png", "--strength", "1.5"), "--strength"),
    ],
)
def test_what_does_not_fit_ends_with_2_before_a_worker(
    kind: str, options: tuple[str, ...], told: str, cli: RunCli, cwd: Path, picture: str
) -> None:
    ended = cli("generate", str(tiny_model(kind)), "--prompt", "a ball", *SMALL, *options)
    assert ended.code == 2 and told in ended.err, ended
    assert "Starting worker" not in ended.err
    assert [path.name for path in cwd.iterdir()] == [picture]


def test_a_file_that_is_no_picture_ends_with_2_and_leaves_nothing(cli: RunCli, cwd: Path) -> None:
    (cwd / "a.png").write_text("hello")
    ended = cli("generate", str(tiny_model("i2v22")), "--prompt", "a ball", *SMALL, "--image", "a.png", "--json")
    assert ended.code == 2 and ended.document["error"]["code"] == "invalid_request"
    assert "no picture of a known format" in ended.document["error"]["message"]
    assert [path.name for path in cwd.iterdir()] == ["a.png"]
