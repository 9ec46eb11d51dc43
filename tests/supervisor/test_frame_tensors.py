"""Every shape in which pipelines return frames, and what is no frame."""

from __future__ import annotations

import types

import numpy as np
import pytest

from wan_compat.protocol.errors import InvalidRequest, UnusableFrames
from wan_compat.protocol.results import ProcessedFrames
from wan_compat.supervisor import FrameTensorHandler

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3)).astype(np.uint8)
# Values that truncation gives back: a little above each step.
UNIT = ((PIXELS.astype(np.float64) + 0.25) / 255).astype(np.float32)
FIRST = np.moveaxis(UNIT, 3, 1)


def torch_of(array: np.ndarray, dtype: str = "float32"):
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(getattr(torch, dtype))


def pictures(array: np.ndarray):
    from PIL import Image

    return [Image.fromarray(frame) for frame in array]


SOURCES = {
    "np": lambda: UNIT,
    "np batch": lambda: UNIT[None],
    "np channels first": lambda: FIRST,
    "np decoder": lambda: np.moveaxis(UNIT, 3, 0),
    "np float64": lambda: (PIXELS + 0.25) / 255,
    "np uint8": lambda: PIXELS,
    "np int64": lambda: PIXELS.astype(np.int64),
    "np list of frames": lambda: list(UNIT),
    "pt": lambda: torch_of(FIRST),
    "pt batch": lambda: torch_of(FIRST[None]),
    "pt decoder": lambda: torch_of(np.moveaxis(UNIT, 3, 0)),
    "pt uint8": lambda: torch_of(PIXELS, "uint8"),
    "pt list": lambda: [torch_of(frame) for frame in FIRST],
    "pil": lambda: pictures(PIXELS),
    "pil batch": lambda: [pictures(PIXELS)],
    "pil with alpha": lambda: [picture.convert("RGBA") for picture in pictures(PIXELS)],
    "pipeline output": lambda: types.SimpleNamespace(frames=UNIT[None]),
    "image pipeline output": lambda: types.SimpleNamespace(images=UNIT[:1]),
    "dictionary": lambda: {"frames": UNIT[None]},
    "tuple": lambda: (UNIT[None],),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_output_gives_the_same_bytes(source):
    result = FrameTensorHandler(fps=24).process_output_tensors(SOURCES[source]())
    assert isinstance(result, ProcessedFrames)
    expected = PIXELS[: len(result.frames)]
    assert result.frames.shape == expected.shape and result.frames.flags.c_contiguous
    assert (result.frames == expected).all()
    assert (result.fps, result.duration) == (24, len(expected) / 24)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_follows_the_rule_of_diffusers(dtype):
    half = torch_of(FIRST, dtype)
    expected = (half.float().numpy() * 255).astype(np.uint8)
    found = FrameTensorHandler().process_output_tensors(half).frames
    assert (np.moveaxis(found, 3, 1) == expected).all()


def test_a_decoders_values_are_truncated_as_export_to_video_does():
    signed = np.random.default_rng(1).uniform(-1, 1, (3, 4, 16, 16)).astype(np.float32)
    through_diffusers = ((signed / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8)
    found = FrameTensorHandler().process_output_tensors(signed).frames
    assert (np.moveaxis(found, 3, 0) == through_diffusers).all()


def test_a_batch_becomes_several_results():
    videos = FrameTensorHandler().handle_batch_outputs(np.stack([UNIT, UNIT[::-1]]))
    assert len(videos) == 2 and (videos[1].frames == PIXELS[::-1]).all()
    assert len(FrameTensorHandler().handle_batch_outputs([pictures(PIXELS), pictures(PIXELS)])) == 2
    with pytest.raises(InvalidRequest, match="2 videos"):
        FrameTensorHandler().process_output_tensors(np.stack([UNIT, UNIT]))


def spoiled(value: float) -> np.ndarray:
    array = UNIT.copy()
    array[2, 3, 4, 1] = value
    return array


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (spoiled(np.nan), "NaN"),
        (spoiled(np.inf), "infinite"),
        (spoiled(-np.inf), "infinite"),
        (spoiled(1.5), "from"),
        (UNIT * 255, "from"),
        (UNIT * 4 - 2, "from"),
        (np.zeros_like(UNIT), "black"),
        (np.zeros_like(PIXELS), "black"),
        (PIXELS.astype(np.int32) - 1, "from -1"),
    ],
)
def test_unusable_values_are_an_error_and_not_a_black_video(frames, message):
    with pytest.raises(UnusableFrames, match=message):
        FrameTensorHandler().process_output_tensors(frames)
    report = FrameTensorHandler().validate_frame_dimensions(frames)
    assert not report.is_valid and message.split()[0] in report.errors[0]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.zeros((1, 16, 5, 8, 8), np.float32), "latents"),
        (np.zeros((48, 5, 8, 8), np.float32), "latents"),
        (np.zeros((5, 8, 8, 2), np.float32), "three colours"),
        (np.zeros((8, 8), np.float32), "no video"),
        (np.zeros((0, 8, 8, 3), np.float32), "no video"),
        (np.zeros((2, 8, 8, 3), "complex64"), "complex64"),
        ([], "no frames"),
        (None, "no frames"),
        ("frames", "no frame"),
        ([np.zeros((8, 8, 3)), np.zeros((8, 9, 3))], "differ in size"),
        (np.zeros((1, 1, 4097, 3), np.uint8), "more than"),
    ],
)
def test_what_is_no_video_is_refused(output, message):
    with pytest.raises(InvalidRequest, match=message):
        FrameTensorHandler().process_output_tensors(output)


def test_black_is_taken_where_it_is_meant():
    assert not FrameTensorHandler(allow_black=True).process_output_tensors(np.zeros_like(PIXELS)).frames.any()


def test_the_range_can_be_said_where_no_value_tells():
    bright = np.full((2, 8, 8, 3), 0.5, np.float32)
    assert FrameTensorHandler().process_output_tensors(bright).frames[0, 0, 0, 0] == 127
    assert FrameTensorHandler(value_range="signed").process_output_tensors(bright).frames[0, 0, 0, 0] == 191
