"""FrameTensorHandler: whatever a pipeline returns becomes frames of (num_frames, height, width, 3) uint8 RGB.

For programs that run a pipeline themselves; the frames of our own workers come as bytes and need none of this. Tensors
and pictures are known by what they can do (`detach`, `convert`), so that neither torch nor Pillow is imported here.

The rule for a pixel is that of diffusers' `export_to_video`, byte for byte: values in [0, 1] times 255, truncated; a
decoder's values in [-1, 1] are `(x + 1) * 127.5`, truncated, which is the same (workers/frames.py says why).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, Literal

from wan_compat.policies.architecture import ValidationResult
from wan_compat.protocol.errors import InvalidRequest, UnusableFrames
from wan_compat.protocol.results import ProcessedFrames
from wan_compat.protocol.values import MAX_FRAMES, MAX_SIDE

if TYPE_CHECKING:
    import numpy as np

ValueRange = Literal["unit", "signed"]

# By how much values may leave their range: what resampling and half precision do, and no other range.
TOLERANCE = 0.02
_LATENT_CHANNELS = (4, 8, 12, 16, 32, 36, 48)
MAX_NESTING = 4


@dataclasses.dataclass(frozen=True)
class FrameTensorHandler:
    """Turns outputs of pipelines into frames.

    Args:
        fps: Of the results; 16 is that of Wan 2.1 and A14B, 24 that of TI2V-5B.
        value_range: "unit" for [0, 1], "signed" for [-1, 1]; None takes "signed" where there are negative values.
        allow_black: Take frames that are black throughout, which are otherwise an error: a decode that overflowed and
            was turned into zeros looks like this.
    """

    fps: float = 16.0
    value_range: ValueRange | None = None
    allow_black: bool = False

    def process_output_tensors(self, output: Any) -> ProcessedFrames:
        """Return the frames of an output that holds one video.

        Args:
            output: Of a pipeline (`.frames`, `.images`, a tuple), or a tensor, array, picture, or list of these; as
                `output_type` "pt", "np" or "pil" gives them, with or without a batch.

        Raises:
            InvalidRequest: It holds several videos, latents, or nothing that is a video.
            UnusableFrames: NaN, infinite, out of range, or black throughout.
        """
        videos = self.handle_batch_outputs(output)
        if len(videos) != 1:
            raise InvalidRequest(
                f"the output holds {len(videos)} videos, not one", hint="use handle_batch_outputs, which returns all"
            )
        return videos[0]

    def handle_batch_outputs(self, batch_output: Any) -> list[ProcessedFrames]:
        """Return each video of an output. Raises as `process_output_tensors`, except for the number."""
        found = []
        for video in _videos(_unwrapped(batch_output)):
            frames = self.normalize_frame_data(video)
            found.append(
                ProcessedFrames(
                    frames=frames,
                    fps=self.fps,
                    duration=len(frames) / self.fps,
                    metadata={"source_shape": list(video.shape), "source_dtype": str(video.dtype)},
                )
            )
        return found

    def validate_frame_dimensions(self, frames: np.ndarray) -> ValidationResult:
        """Say whether an array can be normalised, and everything that is wrong with it."""
        try:
            self.normalize_frame_data(frames)
        except (InvalidRequest, UnusableFrames) as error:
            return ValidationResult(is_valid=False, errors=[error.message])
        return ValidationResult(is_valid=True)

    def normalize_frame_data(self, frames: np.ndarray) -> np.ndarray:
        """Return (num_frames, height, width, 3) uint8, contiguous, of an array in any order of axes and type.

        Raises:
            InvalidRequest: Its shape or type is not that of frames.
            UnusableFrames: Its values are not those of frames.
        """
        import numpy as np

        pixels = _channels_last(frames)
        if pixels.dtype == np.uint8:
            result = pixels
        elif pixels.dtype.kind == "f":
            result = self._from_floats(pixels)
        elif pixels.dtype.kind in "iu":
            low, high = int(pixels.min()), int(pixels.max())
            if low < 0 or high > 255:
                raise UnusableFrames(f"the frames have values from {low} to {high}, instead of 0 to 255")
            result = pixels.astype(np.uint8)
        else:
            raise InvalidRequest(f"frames of type {pixels.dtype} are neither whole numbers nor floating point")
        if not self.allow_black and not result.any():
            raise UnusableFrames(
                "every frame is black",
                fixes=("decode in float32 instead of half precision", "allow_black=True if that is what it shows"),
            )
        return np.ascontiguousarray(result)

    def _from_floats(self, pixels: np.ndarray) -> np.ndarray:
        import numpy as np

        low, high = float(pixels.min()), float(pixels.max())
        if not (np.isfinite(low) and np.isfinite(high)):  # min and max pass NaN on
            raise UnusableFrames(
                "the frames contain NaN or infinite values",
                fixes=("decode in float32 instead of half precision", "try another seed or fewer steps"),
            )
        kind = self.value_range or ("signed" if low < -TOLERANCE else "unit")
        lowest = -1.0 if kind == "signed" else 0.0
        if low < lowest - TOLERANCE or high > 1 + TOLERANCE:
            raise UnusableFrames(f"the frames have values from {low:.3g} to {high:.3g}, instead of {lowest:g} to 1")
        working = np.float64 if pixels.dtype.itemsize > 4 else np.float32
        result = np.empty(pixels.shape, np.uint8)
        for index, frame in enumerate(pixels):  # one at a time: a float copy of all is four times the video
            if kind == "signed":
                # The addition in the values' own type, as diffusers does it; the product in fp32.
                scaled = (np.clip(frame, -1, 1) + frame.dtype.type(1)).astype(working) * working(127.5)
            else:
                scaled = np.clip(frame, 0, 1).astype(working) * working(255)
            result[index] = scaled.astype(np.uint8)
        return result


def _unwrapped(output: Any) -> Any:
    """Return what holds the pixels: the field of a pipeline's output, the first part of a tuple."""
    for _ in range(MAX_NESTING):
        if isinstance(output, dict):
            output = next((output[name] for name in ("frames", "images", "videos") if name in output), None)
        elif isinstance(output, tuple) and output:
            output = output[0]
        else:
            fields = (getattr(output, name, None) for name in ("frames", "images"))
            inner = next((field for field in fields if field is not None), None)
            if inner is None:
                break
            output = inner
    if output is None:
        raise InvalidRequest("there are no frames in this output")
    return output


def _videos(output: Any) -> list[np.ndarray]:
    """Return the videos of an output as arrays of four axes, in any order of channels."""
    import numpy as np

    if isinstance(output, list | tuple):
        if not output:
            raise InvalidRequest("there are no frames in this output")
        if len(output) > MAX_FRAMES:
            raise InvalidRequest(f"{len(output)} frames are more than {MAX_FRAMES}")
        if isinstance(output[0], list | tuple):
            return list(itertools.chain.from_iterable(_videos(part) for part in output))
        parts = [_array(part) for part in output]
        if len({part.shape for part in parts}) != 1:
            raise InvalidRequest(f"the frames differ in size: {sorted({part.shape for part in parts})}")
        if parts[0].ndim >= 4:  # a list of videos
            return list(itertools.chain.from_iterable(_videos(part) for part in parts))
        return [np.stack(parts)]
    array = _array(output)
    if array.ndim == 5:
        return list(array)
    if array.ndim == 3:  # one picture
        return [array[None]]
    if array.ndim != 4:
        raise InvalidRequest(f"an array of {array.ndim} axes, {array.shape}, is no video")
    return [array]


def _array(value: Any) -> np.ndarray:
    import numpy as np

    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # a tensor
        value = value.detach().cpu()
        if "bfloat16" in str(value.dtype) or "float8" in str(value.dtype):  # NumPy has no such type
            value = value.float()
        return np.asarray(value.numpy())
    if hasattr(value, "convert") and hasattr(value, "size"):  # a Pillow picture
        return np.asarray(value.convert("RGB"))
    raise InvalidRequest(f"a {type(value).__name__} is no frame", hint="give a tensor, an array or pictures")


def _channels_last(frames: np.ndarray) -> np.ndarray:
    """Return a view of (num_frames, height, width, 3)."""
    import numpy as np

    if frames.ndim == 5 and frames.shape[0] == 1:
        frames = frames[0]
    if frames.ndim != 4 or 0 in frames.shape:
        raise InvalidRequest(f"an array of shape {frames.shape} is no video: four axes are needed")
    # In the order in which pipelines use them: (f, h, w, 3), then (f, 3, h, w), then a decoder's (3, f, h, w).
    if frames.shape[3] == 3:
        pixels = frames
    elif frames.shape[1] == 3:
        pixels = np.moveaxis(frames, 1, 3)
    elif frames.shape[0] == 3:
        pixels = np.moveaxis(frames, 0, 3)
    elif frames.shape[0] in _LATENT_CHANNELS or frames.shape[1] in _LATENT_CHANNELS:
        raise InvalidRequest(
            f"an array of shape {frames.shape} has no axis of three colours; it looks like latents",
            hint="decode it with the pipeline's VAE first, or ask the pipeline for output_type='np'",
        )
    else:
        raise InvalidRequest(f"an array of shape {frames.shape} has no axis of three colours")
    count, height, width, _ = pixels.shape
    if count > MAX_FRAMES or max(height, width) > MAX_SIDE:
        raise InvalidRequest(f"{count} frames of {width}x{height} are more than {MAX_FRAMES} of {MAX_SIDE} a side")
    return pixels
