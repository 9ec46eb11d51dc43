"""Frames that a pipeline returns: found in what it answers, whatever form that has, and published one by one.

As many videos as were asked for must be there. Of others than that nobody can say which ones are meant: an error,
before a frame is published, and never the first one in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from wan_compat.protocol.errors import GenerationFailed

# Under which names a modular pipeline leaves its video; those of diffusers' own blocks first.
_VIDEO_NAMES = ("videos", "frames", "video")


def returned_videos(output: Any, wanted: int) -> list[Iterator[torch.Tensor]]:
    """Return the frames of each video that a pipeline returned: (3, height, width), uint8 or floating point.

    Takes what diffusers' video pipelines return as "pt", "np" and "pil": an object with `frames`, a tuple, or the state
    of a modular pipeline, with a batch of videos, or one video, inside.

    Raises:
        GenerationFailed: It is no video, or not `wanted` of them.
    """
    videos = _batch(_video(output))
    if (found := len(videos)) != wanted:
        raise GenerationFailed(
            f"the pipeline returned {found} videos, and {'one was' if wanted == 1 else f'{wanted} were'} asked for",
            hint=f"ask for as many as it makes at once: --num-videos {found} --videos-at-once {found}"
            if found
            else None,
        )
    return [_pictures(video) for video in videos]


def _pictures(video: Any) -> Iterator[torch.Tensor]:
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


def _batch(found: Any) -> list[Any]:
    """Return the videos of what may be one, or a batch: lists of pictures, or tensors of four dimensions."""
    if isinstance(found, list | tuple):
        while len(found) == 1 and isinstance(found[0], list | tuple) and _is_deep(found[0]):
            found = found[0]
        if found and (isinstance(found[0], list | tuple) or _tensor(found[0]).ndim == 4):
            return list(found)
        return [found]
    tensor = _tensor(found)
    return list(tensor) if tensor.ndim == 5 else [tensor]


def _is_deep(inner: Any) -> bool:
    return bool(inner) and isinstance(inner[0], list | tuple)


def _frames(video: Any) -> Iterator[Any]:
    if isinstance(video, list | tuple):
        yield from video
        return
    tensor = _tensor(video)
    if tensor.ndim != 4:
        raise GenerationFailed(f"the pipeline returned an array of shape {tuple(tensor.shape)}, which is no video")
    yield from tensor


def _tensor(value: Any) -> torch.Tensor:
    import numpy as np

    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if callable(convert := getattr(value, "convert", None)):  # a PIL image
        return torch.from_numpy(np.array(convert("RGB")))
    raise GenerationFailed(f"the pipeline returned {type(value).__name__}, which is no picture")
