"""How a video is encoded: from a job's size and rate to ffmpeg's arguments, and from a written file to a verdict.

    plan_encoding      (width, height, fps, suffix)        -> EncodingConfig
    ffmpeg_arguments   (config, output)                    -> the command line, without the executable
    encoder_limits     (config, num_frames, threads)       -> what that ffmpeg may use
    video_mismatches   (config, num_frames, VideoFacts)    -> what the file has that was not asked for

A new format is an entry in CODECS and CONTAINERS. Sizes are exact: nothing here scales, pads or crops.
"""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from typing import Any

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.values import MAX_SIDE

MAX_FPS = 240


@dataclasses.dataclass(frozen=True)
class Codec:
    """One way to compress. `stream` is ffmpeg's name of the result, `encoder` its name of the means.

    `even_pixels` is used when both sides are even, `odd_pixels` otherwise; None refuses odd sizes.
    """

    name: str
    stream: str
    encoder: str
    presets: tuple[str, ...]
    preset: str
    max_crf: int
    crf: int
    even_pixels: str
    odd_pixels: str | None


@dataclasses.dataclass(frozen=True)
class Container:
    """One kind of file. `codecs` may go into it, the first is the default; `options` go to the muxer."""

    suffix: str
    muxer: str
    demuxer: str
    codecs: tuple[str, ...]
    options: tuple[str, ...] = ()


_X264_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        # veryfast keeps up with every decoder we measured, so that no tail is left after the last frame, and crf 18
        # is where x264's loss disappears behind that of 4:2:0. 4:2:0 stores colour for 2x2 pixels and so cannot
        # express an odd side. 4:4:4 can, exactly; desktop players and browsers' software decoders play it, hardware
        # decoders often do not. Wan's own sizes are multiples of 16 and never get there.
        Codec(
            name="h264",
            stream="h264",
            encoder="libx264",
            presets=_X264_PRESETS,
            preset="veryfast",
            max_crf=51,
            crf=18,
            even_pixels="yuv420p",
            odd_pixels="yuv444p",
        ),
    )
}

CONTAINERS: dict[str, Container] = {
    container.suffix: container
    for container in (
        # faststart moves the index to the front, so that a player on a network starts before it has the whole file.
        Container(suffix=".mp4", muxer="mp4", demuxer="mov", codecs=("h264",), options=("-movflags", "+faststart")),
    )
}


@dataclasses.dataclass(frozen=True)
class EncodingConfig:
    """One encoding, resolved.

    Args:
        codec: Key of CODECS.
        bitrate: Like "8M" or "800k"; empty means constant quality (`crf` in additional_params), which is the default.
        fps: Frames per second; `frame_rate` is the exact rate that is written.
        resolution: (width, height) in pixels, of the frames and of the file.
        additional_params: `container` (key of CONTAINERS), `pixel_format`, `preset`, `crf`. Nothing else is taken.
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
    def container(self) -> Container:
        return container_for(self.additional_params["container"])


@dataclasses.dataclass(frozen=True)
class EncoderLimits:
    """What one ffmpeg may use. Wide: they end a runaway, they do not pace an encoder."""

    memory_bytes: int
    cpu_seconds: int
    file_size_bytes: int


@dataclasses.dataclass(frozen=True)
class VideoFacts:
    """What a written file says of itself, as its container was read back."""

    codec: str
    pixel_format: str
    color: tuple[str, ...]  # ("tv", "bt709"): range, then matrix, primaries and transfer, once if all the same
    width: int
    height: int
    num_frames: int
    duration: Fraction  # seconds
    tick: Fraction  # seconds; the container's unit of time

    @property
    def fps(self) -> float:
        return float(self.num_frames / self.duration) if self.duration else 0.0


def plan_encoding(width: int, height: int, fps: float, output_suffix: str) -> EncodingConfig:
    """Choose how frames of (height, width, 3) uint8 RGB become a file with this suffix.

    Raises:
        InvalidRequest: The suffix is not supported, or the size or rate cannot be encoded.
    """
    container = container_for(output_suffix)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InvalidRequest(f"cannot encode {width}x{height} frames: sides must be 1 to {MAX_SIDE} pixels")
    exact_frame_rate(fps)
    codec = CODECS[container.codecs[0]]
    odd = bool(width % 2 or height % 2)
    pixels = codec.odd_pixels if odd else codec.even_pixels
    if pixels is None:
        raise InvalidRequest(f"{codec.name} cannot hold {width}x{height} frames: both sides must be even")
    reasons: tuple[str, ...] = ()
    if odd:
        reasons = (f"{pixels}: {width}x{height} has an odd side, which {codec.even_pixels} cannot express",)
    return EncodingConfig(
        codec=codec.name,
        bitrate="",
        fps=fps,
        resolution=(width, height),
        additional_params={
            "container": container.suffix,
            "pixel_format": pixels,
            "preset": codec.preset,
            "crf": codec.crf,
        },
        reasons=reasons,
    )


def container_for(suffix: str) -> Container:
    """Return the kind of file for a suffix like ".mp4". Raises InvalidRequest naming the supported ones."""
    container = CONTAINERS.get(suffix.lower())
    if container is None:
        supported = ", ".join(CONTAINERS)
        raise InvalidRequest(
            f"cannot write {suffix!r} files" if suffix else "the output has no suffix, so its format is unknown",
            hint=f"use a name that ends in {supported}",
            details={"supported": list(CONTAINERS)},
        )
    return container


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


def ffmpeg_arguments(config: EncodingConfig, output: str, *, threads: int) -> list[str]:
    """Return ffmpeg's arguments: raw rgb24 frames on standard input, one file out.

    Every value is checked against the tables first, since several end inside ffmpeg's own little languages.

    Args:
        config: From plan_encoding, possibly with other values put in.
        output: Absolute path; the file may exist (it is ours) and its name need not have the container's suffix.
        threads: Of the encoder itself.
    """
    codec, params, rate = _checked_codec(config), config.additional_params, config.frame_rate
    width, height = config.resolution
    if not output.startswith("/"):
        raise ValueError(f"ffmpeg's output must be an absolute path, not {output!r}")
    quality = ["-b:v", config.bitrate] if config.bitrate else ["-crf", str(params["crf"])]
    # Converted and tagged: RGB is turned into bt709 limited range here, where swscale would silently take bt601, and
    # players are told so. setparams stands last because since ffmpeg 8 the encoder takes its tags from the frames,
    # and format conversion drops them. accurate_rnd: luma exact to half a step, at no measured cost.
    filters = (
        f"scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+bicubic,format={params['pixel_format']},"
        "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
    )
    return [
        *("-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-xerror", "-y"),
        # The bundled ffmpeg speaks ssh, http and more. It needs none of them.
        *("-protocol_whitelist", "file,pipe"),
        *("-filter_threads", str(threads)),  # else one per core, and each reserves memory
        *("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}"),
        *("-framerate", f"{rate.numerator}/{rate.denominator}", "-i", "pipe:0"),
        *("-map", "0:v:0", "-map_metadata", "-1", "-vf", filters),
        # passthrough: a frame is never duplicated or dropped to please a clock.
        *("-fps_mode", "passthrough"),
        *("-c:v", codec.encoder, "-preset", params["preset"], *quality, "-threads", str(threads)),
        *(*config.container.options, "-f", config.container.muxer, f"file:{output}"),
    ]


def verify_arguments(config: EncodingConfig, path: str) -> list[str]:
    """Return ffmpeg's arguments that read a container back: one line per packet out, nothing decoded."""
    return [
        *("-hide_banner", "-nostdin", "-nostats", "-loglevel", "info", "-protocol_whitelist", "file,pipe"),
        # The demuxer is named, so that a file is read as what it should be and by no other parser.
        *("-f", config.container.demuxer, "-i", f"file:{path}"),
        *("-map", "0:v", "-c", "copy", "-f", "framecrc", "pipe:1"),
    ]


def encoder_limits(config: EncodingConfig, num_frames: int, threads: int) -> EncoderLimits:
    """Bound an encoder from above: about twice the memory and far more than the time and bytes measured on noise."""
    width, height = config.resolution
    pixels = width * height
    # x264 holds a row of frames per thread. RLIMIT_DATA also counts what threads only reserve, hence their own share.
    frames_held = (40 + 10 * threads) * (1 if config.additional_params["pixel_format"] == "yuv420p" else 2)
    return EncoderLimits(
        memory_bytes=(512 << 20) + (64 << 20) * threads + pixels * 3 * frames_held,
        cpu_seconds=60 + num_frames * pixels // 500_000,
        # White noise at crf 18 needs a quarter of its raw bytes.
        file_size_bytes=(16 << 20) + num_frames * pixels * 3,
    )


def video_mismatches(config: EncodingConfig, num_frames: int, facts: VideoFacts) -> tuple[str, ...]:
    """Return what is wrong with a written file; empty means that it is what was asked for."""
    rate = config.frame_rate
    expected = {
        "codec": (facts.codec, CODECS[config.codec].stream),
        "pixel format": (facts.pixel_format, config.additional_params["pixel_format"]),
        "size": ((facts.width, facts.height), config.resolution),
        "frames": (facts.num_frames, num_frames),
        "colour": (facts.color, ("tv", "bt709")),
    }
    wrong = [f"{name} is {found}, not {wanted}" for name, (found, wanted) in expected.items() if found != wanted]
    # Each frame may be off by half a tick where a container counts, say, milliseconds; in mp4 the two are equal.
    if abs(facts.duration - num_frames / rate) > num_frames * facts.tick / 2:
        wrong.append(f"duration is {float(facts.duration):.6f} s, not {float(num_frames / rate):.6f} s")
    return tuple(wrong)


def _checked_codec(config: EncodingConfig) -> Codec:
    codec, params = CODECS.get(config.codec), config.additional_params
    if codec is None:
        raise InvalidRequest(f"unknown codec {config.codec!r}", hint=f"use {', '.join(CODECS)}")
    unknown = set(params) - {"container", "pixel_format", "preset", "crf"}
    if unknown:
        raise InvalidRequest(f"unknown encoding parameter {min(unknown)!r}")
    if codec.name not in config.container.codecs:
        raise InvalidRequest(f"{config.container.suffix} cannot hold {codec.name}")
    if params.get("preset") not in codec.presets:
        raise InvalidRequest(f"{codec.name} has no preset {params.get('preset')!r}", hint=f"use {codec.presets}")
    crf = params.get("crf")
    if type(crf) is not int or not 0 <= crf <= codec.max_crf:
        raise InvalidRequest(f"crf {crf!r} is not a whole number from 0 to {codec.max_crf}")
    if config.bitrate and not re.fullmatch(r"[1-9][0-9]{0,8}[kM]?", config.bitrate):
        raise InvalidRequest(f"bitrate {config.bitrate!r} is not like 8M or 800k")
    width, height = config.resolution
    allowed = {codec.odd_pixels} if width % 2 or height % 2 else {codec.even_pixels, codec.odd_pixels}
    if params.get("pixel_format") is None or params["pixel_format"] not in allowed:
        raise InvalidRequest(f"{params.get('pixel_format')!r} cannot hold {width}x{height} {codec.name} frames")
    return codec
