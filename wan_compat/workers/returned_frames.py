"""Frames that a pipeline returns: found in what it answers, whatever form that has, and published one by one.

A job is one prompt and makes one video. A pipeline that answers with several was not asked for them, and which one is
meant nobody can say: an error, before a frame is published, and never the first one in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from wan_compat.protocol.errors import GenerationFailed

# Under which names a modular pipeline leaves its video; those of diffusers' own blocks first.
_VIDEO_NAMES = ("videos", "frames", "video")


def pictures(output: Any) -> Iterator[torch.Tensor]:
    """Yield the frames of the video that a pipeline returned, each (3, height, width), uint8 or floating point.

    Takes what diffusers' video pipelines return as "pt", "np" and "pil": an object with `frames`, a tuple, or the state
    of a modular pipeline, with a batch of one video, or one video, inside.

    Raises:
        GenerationFailed: It is no video, or several.
    """
    video = _video(output)
    while isinstance(video, list | tuple) and len(video) > 0 and isinstance(video[0], list | tuple):
        video = _only(video)
    for frame in _frames(video):
        picture = _tensor(frame)
        if picture.ndim == 3 and picture.shape[-1] == 3 and picture.shape[0] != 3:
            picture = picture.permute(2, 0, 1)
        yield picture


def _video(output: Any) -> Any:
    values = getattr(output, "values", None)
    if isinstance(values, Mapping):  # the state of a modular pipeline
        output = values
    if isinstance(output, Mapping):
        for name in _VIDEO_NAMES:
            if output.get(name) is not None:
                return output[name]
        raise GenerationFailed(f"the pipeline left no video: none of {', '.join(_VIDEO_NAMES)}")
    if hasattr(output, "frames"):
        return output.frames
    return output[0] if isinstance(output, tuple) and output else output


def _frames(video: Any) -> Iterator[Any]:
    if isinstance(video, list | tuple):
        first = _tensor(video[0]) if video else None
        if first is not None and first.ndim == 4:  # a batch of videos
            _only(video)
            yield from first
        else:
            yield from video
        return
    tensor = _tensor(video)
    if tensor.ndim == 5:
        tensor = _only(tensor)
    if tensor.ndim != 4:
        raise GenerationFailed(f"the pipeline returned an array of shape {tuple(tensor.shape)}, which is no video")
    yield from tensor


def _only(videos: Any) -> Any:
    if len(videos) != 1:
        raise GenerationFailed(
            f"the pipeline returned {len(videos)} videos, and a job makes one",
            hint="let the pipeline return one video for a prompt; several videos are several jobs, each with its seed",
        )
    return videos[0]


def _tensor(value: Any) -> torch.Tensor:
    import numpy as np

    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if callable(convert := getattr(value, "convert", None)):  # a PIL image
        return torch.from_numpy(np.array(convert("RGB")))
    raise GenerationFailed(f"the pipeline returned {type(value).__name__}, which is no picture")
