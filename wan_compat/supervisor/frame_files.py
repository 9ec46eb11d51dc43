"""Frames as files that need no encoder: PNG pictures and NumPy arrays. Written and read by the supervisor itself.

Both lose nothing, and both can be written while frames come in. So they are also what is left when an encoder fails.
An array is a `.npy` of (num_frames, height, width, 3) uint8, which `numpy.load` opens; reading it here goes by its size
and the shape in its header and runs nothing.
"""

from __future__ import annotations

import ast
import errno
import os
import re
import struct
import zlib
from collections.abc import Iterator

from wan_compat.protocol.errors import DiskExceeded, InvalidRequest, OutputNotWritable, WanCompatError
from wan_compat.protocol.values import MAX_FRAMES, MAX_SIDE, FrameSpec

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_MAX_NPY_HEADER = 4096
# Level 1 takes a third of the time of zlib's default, for files a tenth larger.
_ZLIB_LEVEL = 1
_SRGB = b"\x00"  # perceptual, the rendering intent for pictures


def picture_name(index: int, suffix: str) -> str:
    """Return the name of a frame's picture, counted from 1; names sort as frames follow each other."""
    return f"frame_{index + 1:06d}{suffix}"


def png_bytes(pixels: memoryview, width: int, height: int, comment: str = "") -> bytes:
    """Return an RGB picture as PNG, marked as sRGB.

    Args:
        pixels: (height, width, 3) uint8, as one run of bytes.
        comment: ASCII text to carry.
    """
    chunks = [(b"IHDR", png_header(width, height)), (b"sRGB", _SRGB)]
    if comment:
        chunks.append((b"tEXt", b"Comment\0" + comment.encode("ascii", "replace")))
    chunks += [(b"IDAT", png_data(pixels, width, height)), (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(png_chunk(kind, data) for kind, data in chunks)


def png_header(width: int, height: int) -> bytes:
    """Return the content of IHDR for 8-bit RGB."""
    return struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def png_data(pixels: memoryview, width: int, height: int) -> bytes:
    """Return the content of IDAT for (height, width, 3) uint8."""
    import numpy as np

    rows = np.frombuffer(pixels, np.uint8).reshape(height, width * 3)
    # Filter 2 ("up"): each byte minus the one above it. Far smaller than none for smooth pictures, and one subtraction.
    filtered = np.empty((height, width * 3 + 1), np.uint8)
    filtered[:, 0] = 2
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return zlib.compress(filtered.data, _ZLIB_LEVEL)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def npy_header(frames: FrameSpec) -> bytes:
    """Return what stands before the bytes of an array, padded as NumPy pads it."""
    shape = (frames.num_frames, frames.height, frames.width, 3)
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    length = -(-(len(_NPY_MAGIC) + 2 + len(text) + 1) // 64) * 64 - len(_NPY_MAGIC) - 2
    return _NPY_MAGIC + struct.pack("<H", length) + (text.ljust(length - 1) + "\n").encode()


def read_npy_header(descriptor: int, path: str) -> tuple[FrameSpec, int]:
    """Return the frames of an open array and where they begin.

    Raises:
        InvalidRequest: It is no array of frames, or is cut short.
    """
    start = os.pread(descriptor, len(_NPY_MAGIC) + 2, 0)
    length = struct.unpack("<H", start[-2:])[0] if len(start) == len(_NPY_MAGIC) + 2 else 0
    if not start.startswith(_NPY_MAGIC) or not 0 < length <= _MAX_NPY_HEADER:
        raise InvalidRequest(f"{path!r} is not an array of frames")
    text = os.pread(descriptor, length, len(start)).decode("latin-1")
    # Only what we and numpy.save write for such an array; literal_eval sees digits and commas.
    found = re.search(r"'descr': '(?:\||<)u1'.*'fortran_order': False.*'shape': (\([0-9, ]{1,60}\))", text)
    shape: tuple[int, ...] = ast.literal_eval(found[1]) if found else ()
    sides_fit = len(shape) == 4 and shape[3] == 3 and 1 <= shape[0] <= MAX_FRAMES and max(shape[1:3]) <= MAX_SIDE
    if not sides_fit or min(shape) < 1:
        raise InvalidRequest(
            f"{path!r} is not an array of frames", hint="an array of (num_frames, height, width, 3) uint8 is needed"
        )
    frames = FrameSpec(num_frames=shape[0], height=shape[1], width=shape[2])
    offset = len(start) + length
    if os.fstat(descriptor).st_size < offset + frames.num_frames * frames.frame_bytes:
        raise InvalidRequest(f"{path!r} is shorter than its {frames.num_frames} frames")
    return frames, offset


def npy_frames(descriptor: int, frames: FrameSpec, offset: int) -> Iterator[memoryview]:
    """Yield the frames of an array, one at a time, each valid until the next."""
    buffer = bytearray(frames.frame_bytes)
    for index in range(frames.num_frames):
        done = 0
        while done < frames.frame_bytes:
            with memoryview(buffer)[done:] as rest:
                count = os.preadv(descriptor, [rest], offset + index * frames.frame_bytes + done)
            if count == 0:
                raise InvalidRequest("the array became shorter while it was read")
            done += count
        yield memoryview(buffer)


class NpyWriter:
    """Takes frames into an array file, in the order of their bytes. A FrameSink that is never full.

    Args:
        path: An existing file, which is emptied.
        reserve: Claim the room of all frames now, so that a full disk shows before and not in the middle.
    """

    def __init__(self, path: str, frames: FrameSpec, *, reserve: bool = False) -> None:
        self.frames = frames
        self.bytes_written = 0
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            header = npy_header(frames)
            if reserve:
                self._claim(len(header) + frames.frame_bytes * frames.num_frames)
            os.write(self._descriptor, header)
        except OSError as error:
            self.close()
            raise disk_error(error, path) from error
        except BaseException:
            self.close()
            raise

    def _claim(self, size: int) -> None:
        try:
            os.posix_fallocate(self._descriptor, 0, size)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # a file system that promises nothing
                raise

    def write_some(self, view: memoryview) -> int:
        try:
            count = os.write(self._descriptor, view)
        except OSError as error:
            raise disk_error(error, self._path) from error
        self.bytes_written += count
        return count

    def fileno(self) -> int:
        return -1

    def raise_if_ended(self) -> None:
        """A file does not end."""

    def finish(self, timeout_s: float) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class PngWriter:
    """Takes frames into PNG files. A FrameSink that is never full.

    Args:
        target: A folder for many, an existing file for one.
    """

    def __init__(self, target: str, frames: FrameSpec, *, comment: str = "") -> None:
        self.frames = frames
        self._target, self._comment = target, comment
        self._buffer = bytearray(frames.frame_bytes)
        self._filled = 0
        self.written = 0

    def write_some(self, view: memoryview) -> int:
        count = min(len(view), len(self._buffer) - self._filled)
        self._buffer[self._filled : self._filled + count] = view[:count]
        self._filled += count
        if self._filled == len(self._buffer):
            self._write_picture()
            self._filled = 0
        return count

    def fileno(self) -> int:
        return -1

    def raise_if_ended(self) -> None:
        """A folder does not end."""

    def finish(self, timeout_s: float) -> None:
        """Nothing is left to do: each picture stands when its last byte came."""

    def close(self) -> None:
        """Nothing is open between two pictures."""

    def _write_picture(self) -> None:
        path = self._target
        if os.path.isdir(path):
            path = os.path.join(path, picture_name(self.written, ".png"))
        data = png_bytes(memoryview(self._buffer), self.frames.width, self.frames.height, self._comment)
        try:
            with open(path, "wb") as file:
                file.write(data)
        except OSError as error:
            raise disk_error(error, path) from error
        self.written += 1


def disk_error(error: OSError, path: str) -> WanCompatError:
    """Translate what a disk answers."""
    what = f"{path!r} cannot be written: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskExceeded(what, hint="free some space or choose another folder")
    return OutputNotWritable(what, hint="choose a folder that you may write to")
