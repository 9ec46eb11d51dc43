"""Pictures and videos for tests: sound ones, and ones that somebody made to do harm."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from wan_compat.protocol.media import MediaRole


def video(frames: np.ndarray) -> bytes:
    """Return frames (num_frames, height, width, 3) as a video that loses nothing: FFV1 in Matroska."""
    import av

    data = io.BytesIO()
    with av.open(data, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "bgr0"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="bgr0")))
        container.mux(stream.encode())
    return data.getvalue()


def oblong_video(frames: int, width: int, height: int, aspect: int) -> bytes:
    """Return grey frames whose pixels are `aspect` times as wide as high, as MPEG-4."""
    import av

    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect, 1)
        for _ in range(frames):
            picture = np.full((height, width, 3), 128, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")))
        container.mux(stream.encode())
    return data.getvalue()


def png(width: int, height: int, rows: bytes) -> bytes:
    """Return a PNG whose header says `width` x `height`, whatever its rows hold."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def text_bomb() -> bytes:
    """Return a PNG with a compressed text that unpacks to 200 MB."""
    text = b"k\0\0" + zlib.compress(b"\0" * 200_000_000, 9)
    whole = png(32, 16, b"\0" * (16 * 97))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    return whole[:33] + chunk + whole[33:]


def sizeless_video() -> bytes:
    """Return a Matroska file whose track says that its pictures have no width and no height."""
    data = video(np.zeros((5, 16, 32, 3), np.uint8))
    wide, high = b"\xb0\x81\x20", b"\xba\x81\x10"  # PixelWidth and PixelHeight, each of one byte
    assert data.count(wide) == 1 and data.count(high) == 1
    return data.replace(wide, b"\xb0\x81\x00").replace(high, b"\xba\x81\x00")


def playlist() -> bytes:
    """Return an HLS playlist: a list of other files, which a player would open."""
    return b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


def endless_gif() -> bytes:
    """Return a GIF of one pixel that says it is 65,535 x 65,535."""
    return b"GIF89a\xff\xff\xff\xff\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"


HOSTILE: dict[str, tuple[MediaRole, Callable[[], bytes]]] = {
    "nothing but zeros": ("image", lambda: b"\0" * 5000),
    "text": ("image", lambda: b"a picture, honestly"),
    "a pickle": ("image", lambda: b"\x80\x04cposix\nsystem\nX\x02\x00\x00\x00id\x85R."),
    "a picture of 60,000 x 60,000": ("image", lambda: png(60_000, 60_000, b"\0")),
    "a picture of 2^31 x 2^31": ("image", lambda: png(2**31 - 1, 2**31 - 1, b"\0")),
    "a picture of 16,000 x 16,000": ("image", lambda: png(16_000, 16_000, b"\0" * 48_001)),
    "a picture that ends in its header": ("image", lambda: png(32, 16, b"")[:30]),
    "a picture that ends in its rows": ("image", lambda: png(32, 16, bytes(range(256)) * 6)[:-40]),
    "a text that unpacks to 200 MB": ("image", text_bomb),
    "a GIF that says it is huge": ("image", endless_gif),
    "a video as a picture": ("image", lambda: video(np.zeros((1, 16, 32, 3), np.uint8))),
    "text as a video": ("video", lambda: b"a video, honestly" * 100),
    "a playlist": ("video", playlist),
    "a video whose pictures have no size": ("video", sizeless_video),
    "a video cut off in its first frame": ("video", lambda: video(np.zeros((5, 16, 32, 3), np.uint8))[:700]),
    "an mp4 of nothing but its name": ("video", lambda: b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2mp41"),
    "an mp4 with a box of 2^63 bytes": (
        "video",
        lambda: (
            b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2mp41\x00\x00\x00\x01moov\x7f" + b"\xff" * 7 + b"\0" * 64
        ),
    ),
    "a script for a concatenation": ("video", lambda: b"ffconcat version 1.0\nfile /etc/passwd\n"),
}
