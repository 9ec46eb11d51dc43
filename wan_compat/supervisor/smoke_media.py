"""Pictures and videos made up for a smoke test: a ball that moves over a gradient. In a folder, for a job's time.

pictures   PNG
videos     YUV4MPEG2, uncompressed: a line of text, then planes; what wrote it needs no encoder
           (https://wiki.multimedia.cx/index.php/YUV4MPEG2)
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wan_compat.protocol.media import PICTURE_ROLES, MediaRole
from wan_compat.supervisor.frame_files import png_bytes


@contextlib.contextmanager
def smoke_media(roles: tuple[MediaRole, ...], width: int, height: int, num_frames: int) -> Iterator[dict[str, Any]]:
    """Give the fields of a request that name a file for each role; the files are gone on leaving."""
    if not roles:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="wan-compat-smoke-") as folder:
        fields: dict[str, Any] = {}
        for index, role in enumerate(roles):
            still = role in PICTURE_ROLES
            path = Path(folder) / f"{role}.{'png' if still else 'y4m'}"
            # Every role gets another moment: a first and a last picture that are the same would show nothing.
            pixels = moving_ball(1 if still else num_frames, height, width, offset=index * max(1, width // 4))
            path.write_bytes(png_bytes(memoryview(pixels.tobytes()), width, height) if still else y4m(pixels))
            fields["references" if role == "reference" else role] = (str(path),) if role == "reference" else str(path)
        yield fields


def moving_ball(num_frames: int, height: int, width: int, *, offset: int = 0) -> np.ndarray:
    """Return frames of (num_frames, height, width, 3) uint8 RGB."""
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    rows, columns = np.mgrid[0:height, 0:width]
    radius = max(2, min(height, width) // 4)
    for index in range(num_frames):
        frames[index, ..., 0] = 40 + 60 * columns // width
        frames[index, ..., 1] = 60 + 90 * rows // height
        frames[index, ..., 2] = 140
        center = (offset + index * max(1, width // 16)) % width
        frames[index][(rows - height // 2) ** 2 + (columns - center) ** 2 < radius**2] = (210, 50, 40)
    return frames


def y4m(frames: np.ndarray) -> bytes:
    """Return RGB frames as a YUV4MPEG2 file: BT.601, full resolution of colour, 16 frames a second."""
    _, height, width, _ = frames.shape
    pixels = frames.astype(np.float32)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    luma = 16 + 0.257 * red + 0.504 * green + 0.098 * blue
    planes = np.stack((
        luma,
        128 - 0.148 * red - 0.291 * green + 0.439 * blue,
        128 + 0.439 * red - 0.368 * green - 0.071 * blue,
    ), axis=1).clip(0, 255).astype(np.uint8)  # fmt: skip
    header = f"YUV4MPEG2 W{width} H{height} F16:1 Ip A1:1 C444\n".encode("ascii")
    return header + b"".join(b"FRAME\n" + frame.tobytes() for frame in planes)
