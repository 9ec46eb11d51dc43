"""Decoding of what a user gives: what comes out, and that hostile files end in a refusal. In this process; the same files
go through a real worker in tests/security/test_hostile_media.py."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.assets import media_files
from wan_compat.protocol.errors import InvalidRequest, JobCancelled
from wan_compat.protocol.media import MediaRole, MediaSpec
from wan_compat.protocol.values import FrameSpec, GenerationParams
from wan_compat.workers.cancellation import Cancellation
from wan_compat.workers.media import Media, decode_media

SIZE = (32, 16)


def decode(
    *files: tuple[MediaRole, bytes],
    num_frames: int = 5,
    size: tuple[int, int] = SIZE,
    cancellation: Cancellation | None = None,
) -> Media:
    descriptors = []
    for _, data in files:
        descriptor = os.memfd_create("media")
        os.write(descriptor, data)
        descriptors.append(descriptor)
    params = GenerationParams(
        prompt="p",
        seed=0,
        num_inference_steps=1,
        guidance_scale=1.0,
        media=tuple(MediaSpec(role=role, bytes=len(data)) for role, data in files),
        frames=FrameSpec(width=size[0], height=size[1], num_frames=num_frames),
    )
    try:
        return decode_media(descriptors, params, 4, cancellation or Cancellation())
    finally:
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def one(media: Media, role: MediaRole = "image") -> np.ndarray:
    return np.asarray(media.pictures[role][0])


NOISE = np.random.default_rng(1).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)


# ---- what comes out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_a_picture_of_the_right_size_comes_out_as_it_was(format: str) -> None:
    data = saved(Image.fromarray(NOISE), format, **({"lossless": True} if format == "WEBP" else {}))
    media = decode(("image", data))
    assert (one(media) == NOISE).all() and media.notes == ()


def test_transparency_is_laid_on_white_and_in_a_mask_on_black() -> None:
    clear = saved(Image.new("RGBA", SIZE, (255, 0, 0, 0)))
    assert (one(decode(("image", clear))) == 255).all()
    assert (one(decode(("mask", clear)), "mask") == 0).all()
    palette = Image.new("P", SIZE, 0)
    palette.putpalette([0, 0, 0])
    assert (one(decode(("image", saved(palette, transparency=0)))) == 255).all()


def test_sixteen_bits_become_eight_and_not_white() -> None:
    deep = Image.fromarray(np.full((SIZE[1], SIZE[0]), 0x4080, np.uint16))
    assert (one(decode(("image", saved(deep)))) == 0x40).all()


def test_a_picture_is_turned_as_its_camera_says() -> None:
    stored = np.zeros((SIZE[0], SIZE[1], 3), np.uint8)
    stored[:8] = 255  # the top of what is stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright = one(decode(("image", saved(Image.fromarray(stored), exif=exif))))
    assert upright.shape == NOISE.shape and upright[:, -8:].min() == 255 and upright[:, :-8].max() == 0


def test_a_reference_is_fitted_on_white() -> None:
    media = decode(
        ("reference", saved(Image.new("RGB", (16, 16), "black"))), ("reference", saved(Image.fromarray(NOISE)))
    )
    first, second = (np.asarray(picture) for picture in media.pictures["reference"])
    assert first[:, :8].min() == 255 and first[:, 8:24].max() == 0 and first[:, 24:].min() == 255
    assert (second == NOISE).all()
    assert media.notes == ("reference: 16x16 was fitted on white into 32x16",)


def test_a_still_mask_serves_for_all_frames() -> None:
    mask = np.where(np.arange(SIZE[0]) < 16, 0, 255).astype(np.uint8)
    media = decode(("mask", saved(Image.fromarray(np.tile(mask, (SIZE[1], 1))))))
    assert len(media.pictures["mask"]) == 5 and media.pictures["mask"][4].mode == "L"


def test_frames_of_a_video_are_taken_in_order_and_trimmed() -> None:
    frames = np.random.default_rng(2).integers(0, 256, (7, SIZE[1], SIZE[0], 3), np.uint8)
    media = decode(("video", media_files.video(frames)))
    assert (np.stack([np.asarray(frame) for frame in media.pictures["video"]]) == frames[:5]).all()
    animated = saved(
        Image.fromarray(frames[0]),
        "WEBP",
        save_all=True,
        append_images=[Image.fromarray(frame) for frame in frames[1:]],
        lossless=True,
    )
    media = decode(("video", animated))
    assert (np.stack([np.asarray(frame) for frame in media.pictures["video"]]) == frames[:5]).all()


def test_a_video_that_is_too_short_is_refused_with_a_length_that_works() -> None:
    with pytest.raises(InvalidRequest, match="has 7 frames, and 9 were asked for") as caught:
        decode(("video", media_files.video(np.zeros((7, 16, 32, 3), np.uint8))), num_frames=9)
    assert caught.value.fixes[0].startswith("use --num-frames 5")
    with pytest.raises(InvalidRequest, match="has 1 frames"):
        decode(("video", saved(Image.fromarray(NOISE))))


def test_a_video_with_oblong_pixels_comes_out_with_square_ones() -> None:
    wide = media_files.oblong_video(5, 32, 16, aspect=2)
    assert decode(("video", wide)).notes == ("video: 64x16 was resized to 32x16, 50% cut off at the edges",)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", media_files.HOSTILE)
def test_hostile_files_are_refused_and_say_which(case: str) -> None:
    role, make = media_files.HOSTILE[case]
    with pytest.raises(InvalidRequest) as caught:
        decode((role, make()))
    assert role in caught.value.message or "picture" in caught.value.message


def test_what_a_library_says_of_a_file_has_no_numbers_of_its_own() -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(("video", b"no video at all"))
    assert caught.value.message == "the video cannot be read: Invalid data found when processing input"


def test_every_cut_of_a_picture_and_of_a_video_is_refused_or_whole() -> None:
    """Nothing but InvalidRequest comes out, wherever a file ends."""
    makers: dict[MediaRole, Callable[[], bytes]] = {
        "image": lambda: saved(Image.fromarray(NOISE)),
        "video": lambda: media_files.video(np.zeros((5, 16, 32, 3), np.uint8)),
    }
    for role, make in makers.items():
        data = make()
        for end in range(1, len(data), max(1, len(data) // 60)):
            try:
                decode((role, data[:end]))
            except InvalidRequest:
                continue


def test_a_length_that_was_not_announced_is_refused(tmp_path: Path) -> None:
    descriptor = os.memfd_create("media")
    os.write(descriptor, b"longer than said")
    params = GenerationParams(
        prompt="p",
        seed=0,
        num_inference_steps=1,
        guidance_scale=1.0,
        media=(MediaSpec(role="image", bytes=3),),
        frames=FrameSpec(width=32, height=16, num_frames=1),
    )
    with pytest.raises(InvalidRequest, match="as long as"):
        decode_media([descriptor], params, 4, Cancellation())


# ---- being told to stop ---------------------------------------------------------------------------------------------


class StopAt(Cancellation):
    """A stop that comes at one of the looks for it."""

    def __init__(self, look: int) -> None:
        super().__init__()
        self._look, self.looks = look, 0

    def check(self) -> None:
        self.looks += 1
        if self.looks == self._look:
            self.request()
        super().check()


@pytest.mark.parametrize("look", [1, 2, 4])
def test_a_stop_is_looked_for_before_each_file_and_each_frame_of_a_video(look: int) -> None:
    frames = [Image.fromarray(NOISE // (number + 1)) for number in range(5)]
    video = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    stop = StopAt(look)
    with pytest.raises(JobCancelled):
        decode(("image", saved(frames[0])), ("video", video), cancellation=stop)
    assert stop.looks == look
    assert len(decode(("video", video), cancellation=StopAt(100)).pictures["video"]) == 5
