"""Pictures in memory become files that lose nothing: PIL images, arrays and tensors, as diffusers takes them."""

from __future__ import annotations

import os
import stat

import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.supervisor.given_pictures import PictureFiles

RANDOM = np.random.default_rng(5)
FRAMES = RANDOM.integers(0, 256, (3, 6, 5, 3), np.uint8)


@pytest.fixture
def files(tmp_path):
    return PictureFiles(str(tmp_path))


def read(path: str) -> np.ndarray:
    with PIL.Image.open(path) as picture:
        return np.stack([np.asarray(one.convert("RGB")) for one in PIL.ImageSequence.Iterator(picture)])


class Tensor:
    """What is asked of a torch.Tensor: channels first."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def detach(self) -> Tensor:
        return self

    cpu = float = detach

    def is_floating_point(self) -> bool:
        return self._array.dtype.kind == "f"

    def numpy(self) -> np.ndarray:
        return self._array


@pytest.mark.parametrize(
    "value",
    [
        FRAMES[0],
        FRAMES[:1],
        FRAMES[0].astype(np.float32) / 255,
        PIL.Image.fromarray(FRAMES[0]),
        [PIL.Image.fromarray(FRAMES[0])],
        Tensor(np.moveaxis(FRAMES[0], -1, 0)),
        Tensor(np.moveaxis(FRAMES[0], -1, 0).astype(np.float32) / 255),
    ],
    ids=["array", "batch of one", "floats", "PIL", "list", "tensor", "float tensor"],
)
def test_a_picture_is_written_without_loss(value, files):
    path = files.picture(value, "image")
    assert (read(path) == FRAMES[:1]).all()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@pytest.mark.parametrize(
    "value",
    [
        FRAMES,
        FRAMES[None],
        list(FRAMES),
        [PIL.Image.fromarray(one) for one in FRAMES],
        Tensor(np.moveaxis(FRAMES, -1, 1)),
    ],
    ids=["array", "batch of one", "list", "PIL", "tensor"],
)
def test_a_video_is_written_without_loss_and_counted(value, files):
    path, count = files.video(value, "video")
    assert count == 3 and (read(path) == FRAMES).all()


def test_a_mask_of_one_channel_or_of_truth_values_becomes_grey(files):
    mask = FRAMES[..., 0] > 127
    for value in (mask, mask.astype(np.float32), np.where(mask, 255, 0).astype(np.uint8)[..., None]):
        path, _ = files.video(value, "mask")
        assert (read(path) == np.where(mask, 255, 0)[..., None]).all()


def test_paths_stay_paths_and_nested_references_are_one_list(files, tmp_path):
    assert files.picture(tmp_path / "a.png", "image") == str(tmp_path / "a.png")
    assert files.video("v.mp4", "video") == ("v.mp4", None)
    paths = files.pictures([["a.png", FRAMES[0]], FRAMES[1]], "reference_images")
    assert paths[0] == "a.png" and [int((read(path) != FRAMES[i]).sum()) for i, path in enumerate(paths[1:])] == [0, 0]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (FRAMES, "3 pictures"),
        (7, "a int"),
        (np.full((4, 4, 3), 2.0), "values from 2 to 2"),
        (np.full((4, 4, 3), np.nan), "values from nan"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4, 5), np.uint8)[..., None, None, None], "the shape"),
        (np.zeros((0, 4, 3), np.uint8), "the shape"),
        ([], "0 pictures"),
    ],
)
def test_what_is_no_picture_is_refused_by_what_it_is(value, words, files):
    with pytest.raises(InvalidRequest, match=words):
        files.picture(value, "image")


def test_frames_of_different_sizes_are_refused(files):
    with pytest.raises(InvalidRequest, match="different sizes"):
        files.video([FRAMES[0], FRAMES[0][:4]], "video")
