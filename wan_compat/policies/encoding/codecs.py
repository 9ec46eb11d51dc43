"""The codecs: with which encoder, which settings mean what quality, which pixels, and how a reader names the result."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

from wan_compat.protocol.video import Quality

Q = Quality


class Colour(enum.Enum):
    """How RGB is stored, and what a file says about it.

    BT709     Converted to bt709, limited range, and tagged so: what players assume of video and editors ask for.
    RGB       Not converted at all: full range RGB with sRGB's curve, tagged so where there are tags.
    JPEG      bt601 in full range. JFIF knows nothing else and has no tag; every reader knows.
    OWN       The format's own (a palette, WebP's); readers know, there is no tag.
    """

    BT709 = "bt709"
    RGB = "rgb"
    JPEG = "jpeg"
    OWN = "own"


@dataclasses.dataclass(frozen=True)
class Codec:
    """One way to compress.

    Args:
        name: Key of CODECS.
        encoder: ffmpeg's name of the means.
        stream: What a reader calls the result.
        label: For people.
        qualities: What each quality means: (preset, crf), of `presets` and 0..`max_crf`. A quality that is not there
            cannot be had.
        preset_option, presets: ffmpeg's option for speed, and its values; empty where there is none.
        preset_changes: Options by which we differ from a preset.
        crf_option, max_crf: The option for constant quality; empty where there is none.
        options: Always given.
        even_pixels, odd_pixels: Pixel format where both sides are even, and otherwise; None refuses odd sizes.
        read_pixels: As which a reader sees them, where that differs.
        colour: How RGB is stored.
        lossless: Every byte comes back.
        min_side: Smallest side that the encoder takes.
        bytes_per_pixel: Memory that the encoder keeps per pixel of a frame, at most, besides its threads' share.
        merges: Repeated frames become one that stays longer.
        bitrate: Whether a bit rate can be asked for instead of a quality.
        note: Why somebody who did not ask for it gets it; told with the plan.
    """

    name: str
    encoder: str
    stream: str
    label: str
    qualities: Mapping[Quality, tuple[str, int]]
    even_pixels: str
    odd_pixels: str | None
    colour: Colour
    preset_option: str = ""
    presets: tuple[str, ...] = ("",)
    preset_changes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    crf_option: str = ""
    max_crf: int = 0
    options: tuple[str, ...] = ()
    read_pixels: str = ""
    lossless: bool = False
    min_side: int = 1
    bytes_per_pixel: int = 120
    merges: bool = False
    bitrate: bool = False
    note: str = ""


_X264_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_NUMBERS = tuple(str(number) for number in range(14))


def _same(preset: str, crf: int = 0) -> dict[Quality, tuple[str, int]]:
    return dict.fromkeys(Quality, (preset, crf))


# Encoders in hardware that people ask for by ffmpeg's name, and the codec that does the same without. None is offered:
# ffmpeg's confinement has no devices (docs/adr/0016-no-encoders-in-hardware.md). `doctor` tries them all the same.
HARDWARE_ENCODERS: dict[str, str] = {
    f"{stream}_{means}": software
    for stream, software in (("h264", "h264"), ("hevc", "h265"), ("av1", "av1"))
    for means in ("nvenc", "qsv", "vaapi")
}

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        # crf 18 is where x264's loss disappears behind that of 4:2:0. superfast with veryfast's look-ahead, which
        # superfast itself leaves out, has the same error as veryfast at the same crf in two thirds to four fifths of
        # its time (docs/video.md has the figures), and keeps up with every decoder we measured: no tail is left after
        # the last frame. 4:2:0 stores colour for 2x2 pixels and so cannot express an odd side. 4:4:4 can, exactly;
        # desktop players and browsers' software decoders play it, hardware decoders often do not. Wan's own sizes are
        # multiples of 16 and never get there.
        Codec(
            name="h264",
            encoder="libx264",
            stream="h264",
            label="H.264",
            preset_option="-preset",
            presets=_X264_PRESETS,
            preset_changes={"superfast": ("-mbtree", "1", "-rc-lookahead", "10")},
            crf_option="-crf",
            max_crf=51,
            qualities={Q.DRAFT: ("superfast", 28), Q.STANDARD: ("superfast", 18), Q.HIGH: ("medium", 14)},
            even_pixels="yuv420p",
            odd_pixels="yuv444p",
            colour=Colour.BT709,
            bitrate=True,
        ),
        Codec(
            name="h264_rgb",
            encoder="libx264rgb",
            stream="h264",
            label="H.264, lossless RGB",
            preset_option="-preset",
            presets=_X264_PRESETS,
            crf_option="-qp",
            qualities={Q.LOSSLESS: ("veryfast", 0)},
            even_pixels="rgb24",
            odd_pixels="rgb24",
            read_pixels="gbrp",
            colour=Colour.RGB,
            lossless=True,
            bytes_per_pixel=240,
            note="lossless H.264 keeps RGB, which editors, mpv and VLC play and browsers do not",
        ),
        # hvc1 and not ffmpeg's hev1: Apple's players take nothing else.
        Codec(
            name="h265",
            encoder="libx265",
            stream="hevc",
            label="H.265",
            preset_option="-preset",
            presets=_X264_PRESETS,
            crf_option="-crf",
            max_crf=51,
            options=("-x265-params", "log-level=error"),
            qualities={Q.DRAFT: ("superfast", 30), Q.STANDARD: ("fast", 21), Q.HIGH: ("medium", 17)},
            even_pixels="yuv420p",
            odd_pixels="yuv444p",
            colour=Colour.BT709,
            min_side=16,
            bytes_per_pixel=300,
            bitrate=True,
        ),
        Codec(
            name="h265_rgb",
            encoder="libx265",
            stream="hevc",
            label="H.265, lossless RGB",
            preset_option="-preset",
            presets=_X264_PRESETS,
            options=("-x265-params", "lossless=1:log-level=error"),
            qualities={Q.LOSSLESS: ("superfast", 0)},
            even_pixels="gbrp",
            odd_pixels="gbrp",
            colour=Colour.RGB,
            lossless=True,
            min_side=16,
            bytes_per_pixel=300,
            note="lossless H.265 keeps RGB, which few players know",
        ),
        # AV1 and VP9 store an odd side as it is, also in 4:2:0. SVT-AV1 4.2 aborts on pictures of a few pixels.
        Codec(
            name="av1",
            encoder="libsvtav1",
            stream="av1",
            label="AV1",
            preset_option="-preset",
            presets=_NUMBERS,
            crf_option="-crf",
            max_crf=63,
            qualities={Q.DRAFT: ("12", 42), Q.STANDARD: ("10", 24), Q.HIGH: ("6", 16)},
            even_pixels="yuv420p",
            odd_pixels="yuv420p",
            colour=Colour.BT709,
            min_side=16,
            bytes_per_pixel=900,
            bitrate=True,
        ),
        Codec(
            name="av1_rgb",
            encoder="libaom-av1",
            stream="av1",
            label="AV1, lossless RGB",
            preset_option="-cpu-used",
            presets=_NUMBERS[:9],
            # Not "realtime", which libaom before 3.9 lets lose a little all the same (measured with ffmpeg 7.0).
            options=("-usage", "good", "-aom-params", "lossless=1"),
            qualities={Q.LOSSLESS: ("6", 0)},
            even_pixels="gbrp",
            odd_pixels="gbrp",
            colour=Colour.RGB,
            lossless=True,
            bytes_per_pixel=300,
            note="lossless AV1 keeps RGB: dav1d and browsers decode it, hardware does not",
        ),
        Codec(
            name="vp9",
            encoder="libvpx-vp9",
            stream="vp9",
            label="VP9",
            preset_option="-cpu-used",
            presets=_NUMBERS[:9],
            crf_option="-crf",
            max_crf=63,
            options=("-deadline", "good", "-row-mt", "1"),
            qualities={Q.DRAFT: ("8", 40), Q.STANDARD: ("5", 24), Q.HIGH: ("3", 15)},
            even_pixels="yuv420p",
            odd_pixels="yuv420p",
            colour=Colour.BT709,
            bytes_per_pixel=300,
            bitrate=True,
        ),
        Codec(
            name="vp9_rgb",
            encoder="libvpx-vp9",
            stream="vp9",
            label="VP9, lossless RGB",
            preset_option="-cpu-used",
            presets=_NUMBERS[:9],
            options=("-deadline", "good", "-row-mt", "1", "-lossless", "1"),
            qualities={Q.LOSSLESS: ("5", 0)},
            even_pixels="gbrp",
            odd_pixels="gbrp",
            colour=Colour.RGB,
            lossless=True,
            bytes_per_pixel=450,
            note="lossless VP9 keeps RGB (profile 1), which browsers' software decoders play",
        ),
        # prores_ks in 4:2:2 shifts the colours of an odd width (measured: by 28 of 255); 4444 does not.
        Codec(
            name="prores",
            encoder="prores_ks",
            stream="prores",
            label="ProRes 422",
            preset_option="-profile:v",
            presets=("0", "1", "2", "3"),
            options=("-vendor", "apl0"),
            qualities={Q.DRAFT: ("0", 0), Q.STANDARD: ("3", 0)},
            even_pixels="yuv422p10le",
            odd_pixels=None,
            colour=Colour.BT709,
        ),
        Codec(
            name="prores_4444",
            encoder="prores_ks",
            stream="prores",
            label="ProRes 4444",
            preset_option="-profile:v",
            presets=("4", "5"),
            options=("-vendor", "apl0"),
            qualities={Q.DRAFT: ("4", 0), Q.STANDARD: ("4", 0), Q.HIGH: ("4", 0)},
            even_pixels="yuv444p10le",
            odd_pixels="yuv444p10le",
            read_pixels="yuv444p12le",
            colour=Colour.BT709,
        ),
        Codec(
            name="ffv1",
            encoder="ffv1",
            stream="ffv1",
            label="FFV1, lossless",
            options=("-level", "3", "-g", "1", "-slicecrc", "1"),
            qualities=_same(""),
            even_pixels="bgr0",
            odd_pixels="bgr0",
            colour=Colour.RGB,
            lossless=True,
        ),
        # A palette per frame: nothing has to be held back until the last frame is known, and 256 colours of one frame
        # are nearer to it than 256 of all (measured on gradients: a third of the error at the same size).
        Codec(
            name="gif",
            encoder="gif",
            stream="gif",
            label="GIF",
            preset_option="dither",  # an argument of paletteuse, not of ffmpeg
            presets=("bayer", "sierra2_4a", "floyd_steinberg"),
            qualities={Q.DRAFT: ("bayer", 0), Q.STANDARD: ("sierra2_4a", 0), Q.HIGH: ("floyd_steinberg", 0)},
            even_pixels="pal8",
            odd_pixels="pal8",
            read_pixels="bgra",
            colour=Colour.OWN,
        ),
        Codec(
            name="webp",
            encoder="libwebp_anim",
            stream="webp",
            label="WebP",
            crf_option="-quality",
            max_crf=100,
            qualities={Q.DRAFT: ("", 60), Q.STANDARD: ("", 85), Q.HIGH: ("", 97)},
            even_pixels="bgra",
            odd_pixels="bgra",
            read_pixels="argb",
            colour=Colour.OWN,
            merges=True,
        ),
        Codec(
            name="webp_lossless",
            encoder="libwebp_anim",
            stream="webp",
            label="WebP, lossless",
            options=("-lossless", "1"),
            qualities={Q.LOSSLESS: ("", 0)},
            even_pixels="bgra",
            odd_pixels="bgra",
            read_pixels="argb",
            colour=Colour.OWN,
            merges=True,
            lossless=True,
        ),
        Codec(
            name="jpeg",
            encoder="mjpeg",
            stream="mjpeg",
            label="JPEG",
            crf_option="-q:v",
            max_crf=31,
            options=("-qmin", "1"),
            qualities={Q.DRAFT: ("", 6), Q.STANDARD: ("", 3), Q.HIGH: ("", 1)},
            even_pixels="yuvj444p",
            odd_pixels="yuvj444p",
            colour=Colour.JPEG,
        ),
    )
}
