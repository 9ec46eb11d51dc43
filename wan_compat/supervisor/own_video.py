"""A video that needs no encoder: PNG pictures as the frames of an MP4 or QuickTime file, written by the supervisor.

    ftyp  mdat: picture, picture, ...  moov: when each is shown, how large it is, where it lies

What is left of a video when no ffmpeg works. It loses nothing and is as large as the pictures; players of ffmpeg's
kind (mpv, VLC) show it, browsers do not. In MP4 the codec is a registered object type of MPEG-4 systems (0x6D, PNG;
https://mp4ra.org/registered-types/object-types), in QuickTime a format of its own ("png "). Boxes: ISO/IEC 14496-12.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from fractions import Fraction

from wan_compat.protocol.values import FrameSpec
from wan_compat.supervisor.frame_files import disk_error, png_bytes

# Containers of policies/encoding/formats.py that can hold it.
CONTAINERS = ("mp4", "mov")

_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_PNG = 0x6D
_VISUAL = 0x11  # of ISO/IEC 14496-1: stream type 4, and a bit that is always set


def write_png_video(
    path: str, pictures: Iterable[memoryview], frames: FrameSpec, rate: Fraction, container: str, comment: str = ""
) -> None:
    """Write all frames into an existing file, which is emptied.

    Args:
        pictures: (height, width, 3) uint8 each, as one run of bytes.
        rate: Frames per second, exactly.
        container: One of CONTAINERS.
        comment: ASCII text to carry.

    Raises:
        DiskExceeded, OutputNotWritable: The disk refused.
    """
    brand = b"qt  " if container == "mov" else b"isom"
    sizes: list[int] = []
    try:
        with open(path, "r+b") as file:
            file.truncate(0)
            file.write(
                _box(b"ftyp", brand, struct.pack(">I", 0x200), brand, *(() if container == "mov" else (b"mp41",)))
            )
            start = file.tell()
            file.write(struct.pack(">I4sQ", 1, b"mdat", 0))  # its length is put in at the end
            first = file.tell()
            for pixels in pictures:
                sizes.append(file.write(png_bytes(pixels, frames.width, frames.height)))
            end = file.tell()
            file.write(_index(frames, rate, sizes, first, container, comment))
            file.seek(start)
            file.write(struct.pack(">I4sQ", 1, b"mdat", end - start))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(error, path) from error


def _index(frames: FrameSpec, rate: Fraction, sizes: list[int], first: int, container: str, comment: str) -> bytes:
    count, scale, each = len(sizes), rate.numerator, rate.denominator
    length = count * each
    entry = struct.pack(">6xH16xHHIII H32xHh", 1, frames.width, frames.height, 0x480000, 0x480000, 0, 1, 24, -1)
    if container == "mov":
        description = _box(b"png ", entry, _box(b"colr", b"nclc", struct.pack(">HHH", 1, 13, 0)))
    else:
        description = _box(
            b"mp4v", entry, _decoder(sizes), _box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 0, 0x80))
        )
    table = _box(
        b"stbl",
        _full(b"stsd", struct.pack(">I", 1), description),
        _full(b"stts", struct.pack(">III", 1, count, each)),
        _full(b"stsc", struct.pack(">IIII", 1, 1, count, 1)),  # one chunk that has all
        _full(b"stsz", struct.pack(f">II{count}I", 0, count, *sizes)),
        _full(b"co64", struct.pack(">IQ", 1, first)),
    )
    media = _box(
        b"mdia",
        _full(b"mdhd", struct.pack(">IIIIHH", 0, 0, scale, length, 0x55C4, 0)),  # language: undetermined
        _full(b"hdlr", struct.pack(">I4s12x", 0, b"vide"), b"\0"),
        _box(
            b"minf",
            _full(b"vmhd", bytes(8), flags=1),
            _box(b"dinf", _full(b"dref", struct.pack(">I", 1), _full(b"url ", flags=1))),
            table,
        ),
    )
    size = struct.pack(">II", frames.width << 16, frames.height << 16)
    track = _full(b"tkhd", struct.pack(">IIIII8x8x", 0, 0, 1, 0, length), _MATRIX, size, flags=3)
    movie = struct.pack(">IIIIIH10x", 0, 0, scale, length, 0x10000, 0x100) + _MATRIX + struct.pack(">24xI", 2)
    text = comment.encode("ascii", "replace")[:0xFFFF]
    said = _box(b"udta", _box(b"\xa9cmt", struct.pack(">HH", len(text), 0x55C4), text)) if text else b""
    return _box(b"moov", _full(b"mvhd", movie), _box(b"trak", track, media), said)


def _decoder(sizes: list[int]) -> bytes:
    """Return the box that names the codec: an elementary stream's descriptor, and in it the decoder's."""
    config = struct.pack(">BB", _PNG, _VISUAL) + max(sizes, default=0).to_bytes(4, "big")[1:] + bytes(8)
    inner = _descriptor(4, config) + _descriptor(6, b"\x02")
    return _full(b"esds", _descriptor(3, struct.pack(">HB", 1, 0) + inner))


def _descriptor(tag: int, content: bytes) -> bytes:
    return struct.pack(">BB", tag, len(content)) + content  # none is longer than 127


def _full(kind: bytes, *content: bytes, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", flags), *content)


def _box(kind: bytes, *content: bytes) -> bytes:
    joined = b"".join(content)
    return struct.pack(">I4s", 8 + len(joined), kind) + joined
