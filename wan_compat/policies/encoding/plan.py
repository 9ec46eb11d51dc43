"""The plan of one encoding: from a size, a rate, a name and wishes to every setting, or to why it cannot be."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

from wan_compat.policies.encoding.codecs import CODECS, HARDWARE_ENCODERS, Codec
from wan_compat.policies.encoding.formats import FORMATS, Format, Writer, format_for
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.values import MAX_SIDE
from wan_compat.protocol.video import MetadataLevel, VideoOptions

MAX_FPS = 240
# A GIF of more pixels than this is larger than its raw frames would let one expect, and an animated WebP far smaller.
GIF_ADVICE_PIXELS = 8_000_000


@dataclasses.dataclass(frozen=True)
class EncodingConfig:
    """One encoding, resolved.

    Args:
        codec: Key of CODECS; the format's own name where the supervisor writes it.
        bitrate: Like "8M" or "800k"; empty means constant quality (`crf` in additional_params), which is the default.
        fps: Frames per second; `frame_rate` is the exact rate that is written.
        resolution: (width, height) in pixels, of the file. Of the frames too, unless `crop` says otherwise.
        additional_params: `container` (key of FORMATS), `pixel_format`, `preset`, `crf`; where they are so: `crop`
            (width, height of the frames, of which right and lower edge are cut), `fragmented`, `audio` (a path),
            `comment`, `still` (one picture). Nothing else is taken.
        reasons: Why anything differs from the default.
    """

    codec: str
    bitrate: str
    fps: float
    resolution: tuple[int, int]
    additional_params: dict[str, Any]
    reasons: tuple[str, ...] = ()

    @property
    def frame_rate(self) -> Fraction:
        return exact_frame_rate(self.fps)

    @property
    def format(self) -> Format:
        form = FORMATS.get(str(self.additional_params["container"]))
        if form is None:
            raise InvalidRequest(f"there is no format {self.additional_params['container']!r}")
        return form

    @property
    def source_size(self) -> tuple[int, int]:
        """(width, height) of the frames that go in."""
        crop = self.additional_params.get("crop")
        return crop if crop else self.resolution

    @property
    def is_sequence(self) -> bool:
        """Whether the output is a folder of pictures."""
        return self.format.pictures and not self.additional_params.get("still")


def plan_encoding(
    width: int,
    height: int,
    fps: float,
    output_suffix: str,
    options: VideoOptions | None = None,
    *,
    num_frames: int | None = None,
) -> EncodingConfig:
    """Choose how frames of (height, width, 3) uint8 RGB become a file with this suffix ("" for a folder).

    Args:
        num_frames: Where it is known; decides whether a picture can hold them.

    Raises:
        InvalidRequest: The format, the codec or their combination does not exist, or cannot hold such frames.
    """
    options = options or VideoOptions()
    form = format_for(output_suffix, options.format)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InvalidRequest(f"cannot encode {width}x{height} frames: sides must be 1 to {MAX_SIDE} pixels")
    exact_frame_rate(fps)
    if fps > form.max_fps:
        raise InvalidRequest(
            f"{form.name} cannot show {fps:g} frames per second", hint=f"use --fps {form.max_fps:g} or less, or mp4"
        )
    still = bool(output_suffix) and (form.pictures or (num_frames == 1 and bool(form.still_demuxer)))
    if form.pictures and still and num_frames is not None and num_frames != 1:
        raise InvalidRequest(
            f"a {output_suffix} file holds one picture, not {num_frames}",
            hint=f"for a folder of pictures: --format {form.name} and a name without a suffix",
        )
    _check_combination(form, options)
    params: dict[str, Any] = {"container": form.name}
    if still:
        params["still"] = True
    if form.writer is not Writer.FFMPEG:
        _own_codec(form, options)
        return EncodingConfig(form.name, "", fps, (width, height), params | {"pixel_format": "rgb24"})
    codec = _choose_codec(form, options, odd=bool(width % 2 or height % 2))
    reasons: list[str] = [codec.note] if codec.note and options.codec is None else []
    size, crop = _fit(width, height, codec, options)
    if crop:
        params["crop"] = (width, height)
        reasons.append(f"cut from {width}x{height} to {size[0]}x{size[1]}, as --crop-odd permits")
    odd = bool(size[0] % 2 or size[1] % 2)
    pixels = codec.odd_pixels if odd else codec.even_pixels
    if odd and codec.odd_pixels != codec.even_pixels:
        reasons.append(f"{pixels}: {width}x{height} has an odd side, which {codec.even_pixels} cannot express")
    preset, crf = codec.qualities[options.quality]
    params |= {"pixel_format": pixels, "preset": preset, "crf": crf}
    if options.fragmented:
        params["fragmented"] = True
    if options.audio is not None:
        params["audio"] = options.audio
    if form.name == "gif" and not still:
        reasons += _gif_advice(width, height, num_frames, fps)
    return EncodingConfig(codec.name, "", fps, size, params, tuple(reasons))


def exact_frame_rate(fps: float) -> Fraction:
    """Return the rate that a number of frames per second means: 23.976 is 24000/1001, 12.5 is 25/2.

    A rounded broadcast rate written as it stands would drift against sound and other editors' timelines.
    """
    if not 0 < fps <= MAX_FPS:  # also refuses NaN
        raise InvalidRequest(f"cannot encode {fps} frames per second: the rate must be above 0 and at most {MAX_FPS}")
    nominal = round(fps)
    broadcast = Fraction(nominal * 1000, 1001)
    # People write 23.976, 23.98 and 29.97: the distance is at most 0.005 where two decimals are kept, and the
    # nearest whole rate is 0.024 or more away.
    if nominal in (24, 30, 48, 60, 120, 240) and abs(fps - broadcast) <= 0.005:
        return broadcast
    exact = Fraction(fps).limit_denominator(1001)
    return exact if exact > 0 else Fraction(1, 1001)


def _check_combination(form: Format, options: VideoOptions) -> None:
    if options.audio is not None and not form.audio:
        raise InvalidRequest(f"{form.label} cannot have sound", hint="use mp4, webm, mov or mkv, or leave --audio out")
    if options.fragmented and form.name != "mp4":
        raise InvalidRequest(f"only mp4 can be fragmented, not {form.name}", hint="leave --fragmented out")
    if options.metadata is MetadataLevel.FULL and not form.comment:
        raise InvalidRequest(
            f"{form.label} has no place for metadata", hint="leave --metadata out: the sidecar has everything"
        )


def _own_codec(form: Format, options: VideoOptions) -> None:
    if options.codec is not None and options.codec != form.name:
        raise InvalidRequest(f"{form.name} has no codecs to choose from", hint="leave --codec out")


def _choose_codec(form: Format, options: VideoOptions, *, odd: bool) -> Codec:
    """Return the wished codec, or the format's first that has the quality and can hold the size."""
    if options.codec is not None:
        codec = CODECS.get(options.codec)
        if codec is None and options.codec in HARDWARE_ENCODERS:
            raise InvalidRequest(
                f"{options.codec!r} encodes in hardware, and ffmpeg runs in a sandbox without devices",
                hint=f"use --codec {HARDWARE_ENCODERS[options.codec]}; wan-compat doctor -v tells what it says there",
            )
        if codec is None:
            raise InvalidRequest(f"there is no codec {options.codec!r}", hint=f"{form.name} takes {_names(form)}")
        if codec.name not in form.codecs:
            raise InvalidRequest(f"{form.name} cannot hold {codec.label}", hint=f"it takes {_names(form)}")
        # The same compression, in the form that loses nothing: `--codec h265 --quality lossless` means h265_rgb.
        lossless = CODECS.get(f"{codec.name}_rgb")
        if options.quality not in codec.qualities and lossless and lossless.name in form.codecs:
            codec = lossless
        if options.quality not in codec.qualities:
            having = ", ".join(quality.value for quality in codec.qualities)
            raise InvalidRequest(f"{codec.label} has no quality {options.quality.value!r}", hint=f"it has {having}")
        return codec
    having_quality = [CODECS[name] for name in form.codecs if options.quality in CODECS[name].qualities]
    if not having_quality:
        raise InvalidRequest(
            f"{form.label} cannot be {options.quality.value}", hint="use mkv (FFV1), png or npy, or another quality"
        )
    fitting = [codec for codec in having_quality if codec.odd_pixels or not odd or options.crop_odd]
    return (fitting or having_quality)[0]


def _fit(width: int, height: int, codec: Codec, options: VideoOptions) -> tuple[tuple[int, int], bool]:
    """Return the size of the file, and whether that cuts something. Raises InvalidRequest where it does not fit."""
    size, even = (width, height), (width - width % 2, height - height % 2)
    crop = False
    if size != even and options.crop_odd and codec.even_pixels != codec.odd_pixels:
        size, crop = even, True
    elif size != even and codec.odd_pixels is None:
        raise InvalidRequest(
            f"{codec.label} cannot hold {width}x{height} frames: both sides must be even",
            hint="--crop-odd permits to cut one row or column",
        )
    if min(size) < codec.min_side:
        raise InvalidRequest(
            f"{codec.label} needs at least {codec.min_side} pixels a side, not {size[0]}x{size[1]}",
            hint="use h264, vp9, ffv1 or png",
        )
    return size, crop


def _names(form: Format) -> str:
    return ", ".join(form.codecs)


def _gif_advice(width: int, height: int, num_frames: int | None, fps: float) -> list[str]:
    advice = []
    if num_frames is not None and width * height * num_frames > GIF_ADVICE_PIXELS:
        # Measured on generated clips: a third to two thirds of a byte per pixel.
        size_mb = width * height * num_frames / 2 / 1e6
        advice.append(
            f"a GIF of {width}x{height} and {num_frames} frames takes about {size_mb:.0f} MB; an animated WebP "
            "takes a tenth, and a smaller picture or lower rate helps"
        )
    if (100 / exact_frame_rate(fps)).denominator != 1:
        advice.append(f"GIF counts hundredths of a second: {fps:g} frames per second come out right on average only")
    return advice
