"""Pictures and videos that a program holds in memory, as files that a job can be given.

A `SandboxedPipeline` is called as a diffusers pipeline is, with PIL images, arrays and tensors; a job takes files
(supervisor/media.py). What is written here loses nothing but what 8 bits cannot hold:

    one picture         PNG
    many                animated PNG, one frame after the other (https://www.w3.org/TR/png-3/#apng-frame-based-animation)

Both are read in the worker by Pillow. Neither PIL nor torch is imported here: their objects are known by what they do.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.media import MAX_MEDIA_SIDE
from wan_compat.protocol.values import MAX_FRAMES
from wan_compat.supervisor.frame_files import PNG_SIGNATURE, png_bytes, png_chunk, png_data, png_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TOLERANCE = 0.02  # by which a float picture may leave [0, 1], as resampling does
_WHAT = "a path, a PIL image, an array (height, width, 3), or a tensor (3, height, width)"


class PictureFiles:
    """Files of one call, in a folder that the caller makes, keeps private and removes."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._count = 0

    def picture(self, value: Any, name: str) -> str:
        """Return the path of one picture; a path stays what it is.

        Raises:
            InvalidRequest: It is no picture, or its values have no known range.
        """
        if isinstance(value, str | os.PathLike):
            return os.fspath(value)
        frames = _frames(value, name)
        if len(frames) != 1:
            raise InvalidRequest(f"{name} has {len(frames)} pictures, one is needed")
        return self._write(png_bytes(_bytes(frames[0]), frames[0].shape[1], frames[0].shape[0]))

    def pictures(self, value: Any, name: str) -> tuple[str, ...]:
        """Return the paths of several pictures; lists in lists, as diffusers nests them by batch, are one list."""
        if not isinstance(value, list | tuple):
            return (self.picture(value, name),)
        return tuple(path for one in value for path in self.pictures(one, name))

    def video(self, value: Any, name: str) -> tuple[str, int | None]:
        """Return the path of a video and how many frames it has; None where it was given as a path.

        Raises:
            InvalidRequest: Other frames than `picture` takes, of different sizes, or too many.
        """
        if isinstance(value, str | os.PathLike):
            return os.fspath(value), None
        frames = _frames(value, name)
        if not 1 <= len(frames) <= MAX_FRAMES:
            raise InvalidRequest(f"{name} has {len(frames)} frames; 1 to {MAX_FRAMES} are taken")
        if len({frame.shape for frame in frames}) != 1:
            raise InvalidRequest(f"the frames of {name} have different sizes", hint="give all in one size")
        return self._write(animated_png(frames)), len(frames)

    def _write(self, content: bytes) -> str:
        self._count += 1
        path = os.path.join(self._folder, f"given{self._count}.png")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
        return path


def animated_png(frames: Sequence[NDArray[np.uint8]]) -> bytes:
    """Return frames (height, width, 3) uint8 of one size as an animated PNG. Times are of no account: 1/10 s each."""
    height, width = frames[0].shape[:2]
    parts = [PNG_SIGNATURE, png_chunk(b"IHDR", png_header(width, height))]
    parts.append(png_chunk(b"acTL", struct.pack(">II", len(frames), 0)))
    number = 0
    for index, frame in enumerate(frames):
        # Each replaces the whole picture: no offset, nothing disposed, nothing blended.
        parts.append(png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, 0, 0, 1, 10, 0, 0)))
        number += 1
        data = png_data(_bytes(frame), width, height)
        if index == 0:
            parts.append(png_chunk(b"IDAT", data))
            continue
        parts.append(png_chunk(b"fdAT", struct.pack(">I", number) + data))
        number += 1
    parts.append(png_chunk(b"IEND", b""))
    return b"".join(parts)


def _bytes(frame: NDArray[np.uint8]) -> memoryview:
    return frame.data.cast("B")


def _frames(value: Any, name: str) -> list[NDArray[np.uint8]]:
    """Return all pictures in a value, each contiguous (height, width, 3) uint8."""
    if isinstance(value, list | tuple):
        return [frame for one in value for frame in _frames(one, name)]
    import numpy as np

    if hasattr(value, "getbands") and hasattr(value, "convert"):
        # Transparent pictures become RGB as `diffusers.utils.load_image` makes them so.
        return [np.ascontiguousarray(np.asarray(value.convert("RGB")), dtype=np.uint8)]
    if hasattr(value, "detach") and hasattr(value, "numpy"):
        tensor = value.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        array = np.moveaxis(array, -3, -1) if array.ndim >= 3 else array
    elif isinstance(value, np.ndarray):
        array = value
    else:
        raise InvalidRequest(f"{name} is a {type(value).__name__}; {_WHAT} is needed")
    return [np.ascontiguousarray(frame) for frame in _colours(_eight_bits(array, name), name)]


def _eight_bits(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    import numpy as np

    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(array.dtype, np.floating):
        raise InvalidRequest(f"{name} is of type {array.dtype}", hint="give uint8 from 0 to 255, or floats from 0 to 1")
    lowest, highest = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (lowest >= -_TOLERANCE and highest <= 1 + _TOLERANCE):  # NaN fails both
        raise InvalidRequest(
            f"{name} has values from {lowest:.3g} to {highest:.3g}", hint="a picture of floats has values from 0 to 1"
        )
    eight: NDArray[np.uint8] = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return eight


def _colours(array: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Return (frames, height, width, 3): a picture becomes one frame, grey three channels."""
    import numpy as np

    shape = array.shape
    if array.ndim == 2:
        array = array[None, ..., None]
    elif array.ndim == 3:
        # Grey frames, or one picture: told apart by the last axis, which is no picture's width.
        array = array[None] if shape[-1] in (1, 3) else array[..., None]
    elif array.ndim == 5 and shape[0] == 1:
        array = array[0]
    if (
        array.ndim != 4
        or array.shape[-1] not in (1, 3)
        or not all(1 <= side <= MAX_MEDIA_SIDE for side in array.shape[1:3])
    ):
        raise InvalidRequest(f"{name} has the shape {shape}; {_WHAT} is needed")
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
