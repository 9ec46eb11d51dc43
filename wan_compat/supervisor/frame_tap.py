"""Pictures on the side: previews while a job runs, a poster, a contact sheet. Taken from the frames as they pass."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from wan_compat.protocol.errors import InvalidRequest, OutputNotWritable
from wan_compat.protocol.values import FrameSpec
from wan_compat.protocol.video import VideoOptions
from wan_compat.supervisor.frame_files import picture_name, png_bytes
from wan_compat.supervisor.outputs import prepare_document

if TYPE_CHECKING:
    import numpy as np

PREVIEW_SIDE = 512  # previews and the pictures of a sheet are for the eye
SHEET_COLUMNS, SHEET_ROWS = 4, 3


def check_preview_folder(path: str) -> str:
    """Return the absolute path of a folder that may be written, making it where only the last part is missing.

    Raises:
        InvalidRequest: Something else is there.
        OutputNotWritable: It cannot be made or written.
    """
    folder = os.path.abspath(path)
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InvalidRequest(f"the preview {path!r} is not a folder", hint="name a folder")
    try:
        os.makedirs(folder, exist_ok=True) if os.path.isdir(os.path.dirname(folder)) else os.mkdir(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise OutputNotWritable(
            f"the preview folder {path!r} cannot be written: {error.strerror}",
            hint="choose a folder that you may write to",
        ) from error
    return folder


class FrameTap:
    """Sees the bytes of all frames in their order and makes pictures of some.

    Args:
        options: `preview`, `poster` and `contact_sheet` say what is wanted; `active` whether anything is.
        video_path: What poster and sheet are named after.
        announce: Called with each preview's path and the frame's index.
    """

    def __init__(
        self,
        options: VideoOptions,
        frames: FrameSpec,
        video_path: str,
        announce: Callable[[str, int], None] = lambda path, index: None,
    ) -> None:
        self.active = bool(options.preview or options.poster or options.contact_sheet)
        self._options, self._frames, self._video_path = options, frames, video_path
        self._announce = announce
        self._preview = check_preview_folder(options.preview) if options.preview else None
        self._buffer = bytearray(frames.frame_bytes if self.active else 0)
        self._filled = self._index = 0
        self._poster: bytes | None = None
        count = min(SHEET_COLUMNS * SHEET_ROWS, frames.num_frames)
        # Evenly spread, first and last included.
        self._chosen = [round(i * (frames.num_frames - 1) / max(1, count - 1)) for i in range(count)]
        self._thumbnails: list[np.ndarray] = []

    def take(self, view: memoryview) -> None:
        """Take in the next bytes, which may end anywhere in a frame."""
        while self.active and view:
            count = min(len(view), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == len(self._buffer):
                self._look()
                self._filled, self._index = 0, self._index + 1

    def write(self, overwrite: bool) -> list[str]:
        """Write poster and sheet; return where. A picture that cannot be written is an error of its own only.

        Raises:
            WanCompatError: One could not be written; the video is not touched by that.
        """
        written = []
        if self._poster is not None:
            written.append(_write(f"{self._video_path}.poster.png", self._poster, overwrite))
        if self._options.contact_sheet and self._thumbnails:
            written.append(_write(f"{self._video_path}.sheet.png", _sheet(self._thumbnails), overwrite))
        return written

    def _look(self) -> None:
        import numpy as np

        frames = self._frames
        if self._options.poster and self._index == 0:
            self._poster = png_bytes(memoryview(self._buffer), frames.width, frames.height)
        for_sheet = self._options.contact_sheet and self._index in self._chosen
        if not (self._preview or for_sheet):
            return
        small = smaller(np.frombuffer(self._buffer, np.uint8).reshape(frames.height, frames.width, 3), PREVIEW_SIDE)
        if for_sheet:
            self._thumbnails.append(smaller(small, 256))
        if self._preview:
            self._show(small)

    def show_latents(self, step: int, pixels: bytes, width: int, height: int) -> str | None:
        """Write a picture of what the video is becoming, as latents-STEP.png; None without a preview folder."""
        if self._preview is None:
            return None
        path = os.path.join(self._preview, f"latents-{step:04}.png")
        return path if _put(path, png_bytes(memoryview(pixels), width, height)) else None

    def _show(self, picture: np.ndarray) -> None:
        assert self._preview is not None
        path = os.path.join(self._preview, picture_name(self._index, ".png"))
        if _put(path, png_bytes(picture.data.cast("B"), picture.shape[1], picture.shape[0])):
            self._announce(path, self._index)


def _put(path: str, data: bytes) -> bool:
    """Write a preview; return whether it stands."""
    # Aside and renamed: whoever looks meanwhile sees whole pictures only. A preview is a courtesy, and a folder
    # that went away costs nobody a video.
    with contextlib.suppress(OSError):
        with open(path + ".part", "wb") as file:
            file.write(data)
        os.replace(path + ".part", path)
        return True
    return False


def smaller(picture: np.ndarray, side: int) -> np.ndarray:
    """Return a picture (height, width, 3) uint8 whose sides are at most `side`, by whole-number averaging."""
    import numpy as np

    factor = -(-max(picture.shape[:2]) // side)
    if factor <= 1:
        return picture.copy()
    height, width = (max(1, length // factor) for length in picture.shape[:2])
    cut = picture[: height * factor, : width * factor]
    if cut.shape[0] < height * factor or cut.shape[1] < width * factor:  # thinner than the factor
        return np.ascontiguousarray(picture[::factor, ::factor])
    blocks = cut.reshape(height, factor, width, factor, 3)
    small: np.ndarray = (blocks.sum((1, 3), dtype=np.uint32) // (factor * factor)).astype(np.uint8)
    return small


def _sheet(pictures: list[np.ndarray]) -> bytes:
    import numpy as np

    height, width = pictures[0].shape[:2]
    columns = min(SHEET_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    gap = 4
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 24, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return png_bytes(sheet.data.cast("B"), sheet.shape[1], sheet.shape[0])


def _write(path: str, data: bytes, overwrite: bool) -> str:
    with prepare_document(path, overwrite) as target:
        try:
            with open(target.part_path, "wb") as file:
                file.write(data)
        except OSError as error:
            raise OutputNotWritable(f"{path!r} cannot be written: {error.strerror}") from error
        target.commit()
        return target.path
