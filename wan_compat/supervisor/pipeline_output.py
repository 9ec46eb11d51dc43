"""Frames of finished jobs in the shapes in which diffusers' pipelines return them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wan_compat.policies.drop_in import OUTPUT_TYPES
from wan_compat.protocol.errors import EnvironmentLacks, InvalidRequest, PipelineFeatureMissing
from wan_compat.protocol.results import VideoGenerationResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class PipelineOutput:
    """What a call gives back, used as diffusers' `WanPipelineOutput` is: `.frames`, `[0]` or `["frames"]`.

    Frames cross the sandbox's wall as uint8; a float is that number / 255, below diffusers' own by less than 1/255.

    Args:
        frames: "np": (batch, num_frames, height, width, 3) float32 from 0 to 1; "pt": (batch, num_frames, 3, height,
            width) float32; "pil": a list of pictures for each video.
        results: One for each video, without its pixels: seed and other values as they were used, timings, warnings.
    """

    frames: Any
    results: tuple[VideoGenerationResult, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(warning for result in self.results for warning in result.warnings))

    def to_tuple(self) -> tuple[Any, ...]:
        return (self.frames,)

    def __getitem__(self, key: int | str) -> Any:
        if key in (0, "frames"):
            return self.frames
        raise KeyError(key) if isinstance(key, str) else IndexError(key)


def check_output_type(output_type: str | None) -> str:
    """Return a known output type. Before anything is generated: nobody wants to learn it after an hour.

    Raises:
        InvalidRequest: It is unknown.
        PipelineFeatureMissing: Latents were asked for, or tensors by a program without torch.
        EnvironmentLacks: Pictures were asked for, and Pillow is not there.
    """
    if output_type == "latent":
        raise PipelineFeatureMissing("latents do not leave the worker", hint='use output_type="np"')
    if output_type not in OUTPUT_TYPES:
        raise InvalidRequest(f"output_type is {output_type!r}; known are {', '.join(OUTPUT_TYPES)}")
    if output_type == "pt" and "torch" not in sys.modules:
        raise PipelineFeatureMissing(
            'output_type="pt" makes tensors with the torch of the calling program, which has not imported it',
            hint='import torch first, or use output_type="np"',
        )
    if output_type == "pil":
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise EnvironmentLacks(f"output_type='pil' needs Pillow: {error}", hint="pip install pillow") from error
    return output_type


def as_output(results: Sequence[VideoGenerationResult], output_type: str) -> PipelineOutput:
    """Return the frames of results that have them, all of one shape."""
    videos = [result.frames.frames for result in results if result.frames is not None]
    frames = _pictures(videos) if output_type == "pil" else _floats(videos)
    if output_type == "pt":
        torch: Any = sys.modules["torch"]
        frames = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous()
    return PipelineOutput(frames, tuple(dataclasses.replace(result, frames=None) for result in results))


def _floats(videos: Sequence[NDArray[np.uint8]]) -> Any:
    import numpy as np

    frames = np.empty((len(videos), *videos[0].shape), np.float32)
    for index, video in enumerate(videos):
        # A whole number again when multiplied by 255, for each of the 256: `export_to_video` truncates.
        np.divide(video, np.float32(255), out=frames[index])
    return frames


def _pictures(videos: Sequence[NDArray[np.uint8]]) -> Any:
    import PIL.Image

    return [[PIL.Image.fromarray(frame) for frame in video] for video in videos]
