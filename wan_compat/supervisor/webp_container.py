"""The container of a WebP file, read here: ffmpeg before version 8 writes animations that it cannot read.

    "RIFF" size "WEBP", then chunks: kind (4), size (4), content, padded to even
    VP8X    canvas: 24 bits each of width - 1 and height - 1 at offset 4
    ANMF    one frame: its duration in milliseconds, 24 bits at offset 12
    VP8, VP8L    a single picture

Only sizes and counts are read, a few bytes of each chunk (https://developers.google.com/speed/webp/docs/riff_container).
"""

from __future__ import annotations

import os
import struct
from fractions import Fraction

from wan_compat.policies.encoding import VideoFacts
from wan_compat.protocol.values import MAX_FRAMES

_MAX_CHUNKS = 3 * MAX_FRAMES


def read_webp(path: str) -> VideoFacts | None:
    """Return what a WebP file says of itself; None if it is none, or is cut short."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WEBP" or _number(head[4:8]) + 8 > size:
            return None
        width = height = 0
        durations: list[int] = []
        sizes: list[int] = []
        at = 12
        for _ in range(_MAX_CHUNKS):
            file.seek(at)
            start = file.read(8 + 16)
            if len(start) < 8:
                break
            kind, length, content = start[:4], _number(start[4:8]), start[8:]
            if at + 8 + length > size:
                return None
            if kind == b"VP8X" and len(content) >= 10:
                width, height = _number(content[4:7]) + 1, _number(content[7:10]) + 1
            elif kind == b"ANMF" and len(content) >= 16:
                durations.append(_number(content[12:15]))
                sizes.append(length)
            elif kind == b"VP8 " and len(content) >= 10 and not width:
                width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", content, 6))
            elif kind == b"VP8L" and len(content) >= 5 and not width:
                bits = _number(content[1:5])
                width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            if kind in (b"VP8 ", b"VP8L"):
                sizes.append(length)
            at += 8 + length + length % 2
    if not (width and height and sizes):
        return None
    return VideoFacts(
        codec="webp",
        pixel_format="",
        color=(),
        width=width,
        height=height,
        num_frames=len(sizes),
        duration=Fraction(sum(durations), 1000),
        tick=Fraction(1, 1000),
        packet_bytes=tuple(sizes),
    )


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
