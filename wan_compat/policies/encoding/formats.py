"""The formats: what kinds of files there are, and which one a name, a `--format` or both mean."""

from __future__ import annotations

import dataclasses
import enum

from wan_compat.protocol.errors import InvalidRequest


class Writer(enum.Enum):
    """Who writes a format: ffmpeg in its confinement, or the supervisor itself, which needs no ffmpeg for it."""

    FFMPEG = "ffmpeg"
    PNG = "png"
    NPY = "npy"


@dataclasses.dataclass(frozen=True)
class Format:
    """One kind of file.

    Args:
        name: As in `--format`; key of FORMATS.
        suffixes: Names that mean it, the first is the usual one.
        label: For people.
        codecs: What may go into it, the first is the default. Empty where the supervisor writes it.
        writer: Who writes it.
        muxer, demuxer: ffmpeg's names of the container, for writing and for reading back.
        still_muxer, still_demuxer: The same for one frame, where that is another kind of file.
        options: For the muxer.
        audio: ffmpeg's encoder for a sound track; empty where there can be none.
        comment: Whether it can carry our label.
        pictures: One file per frame: a name with a suffix is a single picture, one without is a folder of them.
        plain_time: The file itself has no frame rate (pictures, arrays); the sidecar has it.
        max_fps: Beyond it, readers do not follow.
    """

    name: str
    suffixes: tuple[str, ...]
    label: str
    codecs: tuple[str, ...] = ()
    writer: Writer = Writer.FFMPEG
    muxer: str = ""
    demuxer: str = ""
    still_muxer: str = ""
    still_demuxer: str = ""
    options: tuple[str, ...] = ()
    audio: str = ""
    comment: bool = False
    pictures: bool = False
    plain_time: bool = False
    max_fps: float = 240.0

    @property
    def suffix(self) -> str:
        return self.suffixes[0]


# bitexact: without it Matroska files get a random id, and the same frames would not give the same file.
_MATROSKA = ("-fflags", "+bitexact")

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        # faststart moves the index to the front, so that a player on a network starts before it has the whole file.
        Format(
            name="mp4",
            suffixes=(".mp4", ".m4v"),
            label="MP4",
            codecs=("h264", "h265", "av1", "h264_rgb", "h265_rgb", "av1_rgb"),
            muxer="mp4",
            demuxer="mov",
            options=("-movflags", "+faststart"),
            audio="aac",
            comment=True,
        ),
        Format(
            name="webm",
            suffixes=(".webm",),
            label="WebM",
            codecs=("vp9", "av1", "vp9_rgb", "av1_rgb"),
            muxer="webm",
            demuxer="matroska,webm",
            options=_MATROSKA,
            audio="libopus",
            comment=True,
        ),
        Format(
            name="mov",
            suffixes=(".mov",),
            label="QuickTime",
            codecs=("prores", "prores_4444", "h264", "h265"),
            muxer="mov",
            demuxer="mov",
            options=("-movflags", "+faststart"),
            audio="pcm_s16le",
            comment=True,
        ),
        Format(
            name="mkv",
            suffixes=(".mkv",),
            label="Matroska",
            codecs=("ffv1", "h264", "h265", "av1", "vp9", "h264_rgb", "h265_rgb", "av1_rgb", "vp9_rgb"),
            muxer="matroska",
            demuxer="matroska,webm",
            options=_MATROSKA,
            audio="flac",
            comment=True,
        ),
        # A GIF counts hundredths of a second, and players take a delay of less than two for ten.
        Format(
            name="gif",
            suffixes=(".gif",),
            label="GIF",
            codecs=("gif",),
            muxer="gif",
            demuxer="gif",
            options=("-loop", "0"),
            max_fps=50.0,
        ),
        Format(
            name="webp",
            suffixes=(".webp",),
            label="WebP",
            codecs=("webp", "webp_lossless"),
            muxer="webp",
            demuxer="webp_anim",
            still_demuxer="webp_pipe",
            options=("-loop", "0"),
        ),
        Format(
            name="png",
            suffixes=(".png",),
            label="PNG pictures",
            writer=Writer.PNG,
            demuxer="png_pipe",
            pictures=True,
            plain_time=True,
        ),
        # All pictures in one stream, since a confined ffmpeg gets one file and no folder; we cut it apart.
        Format(
            name="jpeg",
            suffixes=(".jpg", ".jpeg"),
            label="JPEG pictures",
            codecs=("jpeg",),
            muxer="mjpeg",
            demuxer="mjpeg",
            pictures=True,
            plain_time=True,
        ),
        Format(name="npy", suffixes=(".npy",), label="NumPy array", writer=Writer.NPY, plain_time=True),
    )
}

_BY_SUFFIX = {suffix: form for form in FORMATS.values() for suffix in form.suffixes}


def suffix_of(name: str, format_name: str | None = None) -> str:
    """Return the suffix that tells a file's format; empty for a folder of pictures, whose name may have any."""
    suffix = f".{name.rpartition('.')[2]}" if "." in name.lstrip(".") else ""
    form = FORMATS.get(format_name or "")
    return "" if form is not None and form.pictures and suffix.lower() not in _BY_SUFFIX else suffix


def format_for(suffix: str, name: str | None = None) -> Format:
    """Return what a name's suffix (like ".mp4", any case, or empty) and a wished format mean together.

    Raises:
        InvalidRequest: Unknown, contradicting each other, or nothing to go by.
    """
    by_suffix = _BY_SUFFIX.get(suffix.lower())
    if name is None:
        if by_suffix is None:
            raise InvalidRequest(
                f"cannot write {suffix!r} files" if suffix else "the output has no suffix, so its format is unknown",
                hint=f"use a name that ends in {', '.join(_BY_SUFFIX)}, or --format",
                details={"supported": list(_BY_SUFFIX)},
            )
        return by_suffix
    form = FORMATS.get(name) or _BY_SUFFIX.get(f".{name}")
    if form is None:
        raise InvalidRequest(
            f"there is no format {name!r}", hint=f"use {', '.join(FORMATS)}", details={"supported": list(FORMATS)}
        )
    if suffix and by_suffix is not form:
        raise InvalidRequest(
            f"the name ends in {suffix!r}, and the format is {form.name}",
            hint=f"let it end in {form.suffix}" + (", or in nothing for a folder" if form.pictures else ""),
        )
    if not suffix and not form.pictures:
        raise InvalidRequest(f"a {form.name} file needs its suffix", hint=f"let the name end in {form.suffix}")
    return form
