"""ffmpeg's command lines and limits. Every value is checked against the tables first, since several end inside
ffmpeg's own little languages."""

from __future__ import annotations

import dataclasses
import re

from wan_compat.policies.encoding.codecs import CODECS, Codec, Colour
from wan_compat.policies.encoding.plan import EncodingConfig
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.values import MAX_SIDE

MAX_COMMENT_CHARS = 30_000  # the whole order of a confined program is one argument, of which Linux takes 128 KiB

# What sound may come in. Named, so that no playlist or image is read as one.
AUDIO_DEMUXERS = "wav,mp3,flac,ogg,aac,mov,matroska,w64,aiff"

_PARAMETERS = frozenset(
    ("container", "pixel_format", "preset", "crf", "crop", "fragmented", "audio", "comment", "still")
)
_COMMON = ("-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-xerror", "-y")
# The bundled ffmpeg speaks ssh, http and more. It needs none of them.
_PROTOCOLS = ("-protocol_whitelist", "file,pipe")


@dataclasses.dataclass(frozen=True)
class EncoderLimits:
    """What one ffmpeg may use. Wide: they end a runaway, they do not pace an encoder."""

    memory_bytes: int
    cpu_seconds: int
    file_size_bytes: int


def ffmpeg_arguments(config: EncodingConfig, output: str, *, threads: int, num_frames: int | None = None) -> list[str]:
    """Return ffmpeg's arguments: raw rgb24 frames on standard input, one file out.

    Args:
        config: From plan_encoding, possibly with other values put in.
        output: Absolute path; the file may exist (it is ours) and its name need not have the format's suffix.
        threads: Of the encoder itself.
        num_frames: How many come; needed with sound, which is cut or padded to their length.
    """
    codec, params, rate, form = _checked_codec(config), config.additional_params, config.frame_rate, config.format
    width, height = config.source_size
    if not output.startswith("/"):
        raise ValueError(f"ffmpeg's output must be an absolute path, not {output!r}")
    still = bool(params.get("still"))
    sound: list[str] = []
    if audio := params.get("audio"):
        if num_frames is None:
            raise ValueError("sound is cut or padded to the video, whose length must be known")
        # Always exactly as long as the video: padded with silence, then cut. Never dropped, never the longer one.
        # 48 kHz: every codec here takes it, and its blocks are short.
        seconds = f"{float(num_frames / rate):.6f}"
        sound = [
            *("-map", "1:a:0", "-af", f"aresample=48000:async=1:first_pts=0,apad,atrim=end={seconds}"),
            *("-c:a", form.audio, *(() if form.audio in ("pcm_s16le", "flac") else ("-b:a", "192k"))),
        ]
    return [
        *(*_COMMON, *_PROTOCOLS),
        *("-filter_threads", str(threads)),  # else one per core, and each reserves memory
        *("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}"),
        *("-framerate", f"{rate.numerator}/{rate.denominator}", "-i", "pipe:0"),
        *(("-format_whitelist", AUDIO_DEMUXERS, "-vn", "-i", f"file:{audio}") if audio else ()),
        *("-map", "0:v:0", "-map_metadata", "-1", "-vf", _filters(config, codec)),
        # passthrough: a frame is never duplicated or dropped to please a clock.
        *("-fps_mode", "passthrough"),
        *("-c:v", codec.encoder, *_quality(config, codec), *codec.options, "-threads", str(threads)),
        *(("-tag:v", "hvc1") if codec.stream == "hevc" and form.muxer in ("mp4", "mov") else ()),
        *sound,
        *(("-metadata", f"comment={params['comment']}") if params.get("comment") else ()),
        *(*_muxer_options(config), "-f", (form.still_muxer if still else "") or form.muxer, f"file:{output}"),
    ]


def verify_arguments(config: EncodingConfig, path: str) -> list[str]:
    """Return ffmpeg's arguments that read a file back: one line per packet out, nothing decoded."""
    return [
        *("-hide_banner", "-nostdin", "-nostats", "-loglevel", "info", *_PROTOCOLS),
        # The demuxer is named, so that a file is read as what it should be and by no other parser.
        *("-f", demuxer_of(config), "-i", f"file:{path}"),
        *("-map", "0:v", *(("-map", "0:a") if config.additional_params.get("audio") else ())),
        *("-c", "copy", "-f", "framecrc", "pipe:1"),
    ]


def trial_arguments(encoder: str) -> list[str]:
    """Return ffmpeg's arguments that encode one grey frame with an encoder in hardware, to nowhere."""
    vaapi = encoder.endswith("_vaapi")
    return [
        *(*_COMMON, *_PROTOCOLS, *(("-vaapi_device", "/dev/dri/renderD128") if vaapi else ())),
        *("-f", "lavfi", "-i", "color=gray:size=256x256:rate=16"),
        *("-frames:v", "1", "-vf", "format=nv12,hwupload" if vaapi else "format=nv12"),
        *("-c:v", encoder, "-f", "null", "pipe:1"),
    ]


def demuxer_of(config: EncodingConfig) -> str:
    """Return ffmpeg's name of what reads the file that this makes."""
    form = config.format
    return (form.still_demuxer if config.additional_params.get("still") else "") or form.demuxer


def encoder_limits(config: EncodingConfig, num_frames: int, threads: int) -> EncoderLimits:
    """Bound an encoder from above: about twice the memory and far more than the time and bytes measured on noise."""
    width, height = config.source_size
    pixels = width * height
    codec = CODECS[config.codec]
    # Encoders hold a row of frames per thread. RLIMIT_DATA also counts what threads only reserve: their own share.
    frames_bytes = codec.bytes_per_pixel + 30 * threads * max(1, codec.bytes_per_pixel // 240)
    if config.additional_params["pixel_format"] == "yuv444p":
        frames_bytes *= 2
    # libwebp puts an animation together in memory: all of it, compressed.
    whole_bytes = num_frames * pixels * 2 if codec.merges else 0
    return EncoderLimits(
        memory_bytes=(512 << 20) + (64 << 20) * threads + pixels * frames_bytes + whole_bytes,
        cpu_seconds=60 + num_frames * pixels // 50_000,  # prores_ks needs three seconds for a frame of noise
        # White noise at crf 18 needs a quarter of its raw bytes; lossless and ProRes need up to twice as many.
        file_size_bytes=(16 << 20) + num_frames * pixels * (3 if codec.bitrate else 8),
    )


def _filters(config: EncodingConfig, codec: Codec) -> str:
    """Return the filters between raw RGB and the encoder."""
    params = config.additional_params
    pixels = params["pixel_format"]
    width, height = config.resolution
    cut = f"crop={width}:{height}:0:0:exact=1," if params.get("crop") else ""
    match codec.colour:
        case Colour.BT709:
            # Converted and tagged: RGB is turned into bt709 limited range here, where swscale would silently take
            # bt601, and players are told so. setparams stands last because since ffmpeg 8 the encoder takes its tags
            # from the frames, and format conversion drops them. accurate_rnd: luma exact to half a step, at no
            # measured cost.
            return cut + (
                f"scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+bicubic,format={pixels},"
                "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
            )
        case Colour.RGB:
            return cut + (
                f"format={pixels},setparams=range=pc:colorspace=gbr:color_primaries=bt709:color_trc=iec61966-2-1"
            )
        case Colour.JPEG:
            return cut + f"scale=out_color_matrix=bt601:out_range=pc:flags=accurate_rnd+bicubic,format={pixels}"
        case Colour.OWN if codec.name == "gif":
            return cut + (
                f"split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=dither={params['preset']}:new=1"
            )
        case Colour.OWN:
            return cut + f"format={pixels}"


def _quality(config: EncodingConfig, codec: Codec) -> list[str]:
    params = config.additional_params
    speed = [codec.preset_option, params["preset"]] if codec.preset_option.startswith("-") else []
    speed += codec.preset_changes.get(params["preset"], ())
    if config.bitrate:
        return [*speed, "-b:v", config.bitrate]
    if not codec.crf_option:
        return speed
    # libvpx takes crf as a ceiling unless the bit rate is said to be 0.
    unlimited = ["-b:v", "0"] if codec.encoder == "libvpx-vp9" else []
    return [*speed, codec.crf_option, str(params["crf"]), *unlimited]


def _muxer_options(config: EncodingConfig) -> tuple[str, ...]:
    if config.additional_params.get("fragmented"):
        # A fragment per keyframe, and the index in front: what is written so far can be played.
        return ("-movflags", "+frag_keyframe+empty_moov+default_base_moof", "-g", "16")
    return config.format.options


def _checked_codec(config: EncodingConfig) -> Codec:
    codec, params = CODECS.get(config.codec), config.additional_params
    if codec is None:
        raise InvalidRequest(f"unknown codec {config.codec!r}", hint=f"use {', '.join(CODECS)}")
    unknown = set(params) - _PARAMETERS
    if unknown:
        raise InvalidRequest(f"unknown encoding parameter {min(unknown)!r}")
    form = config.format
    if codec.name not in form.codecs:
        raise InvalidRequest(f"{form.name} cannot hold {codec.name}")
    if params.get("preset") not in codec.presets:
        raise InvalidRequest(f"{codec.name} has no preset {params.get('preset')!r}", hint=f"use {codec.presets}")
    crf = params.get("crf")
    if type(crf) is not int or not 0 <= crf <= codec.max_crf:
        raise InvalidRequest(f"crf {crf!r} is not a whole number from 0 to {codec.max_crf}")
    if config.bitrate and not (codec.bitrate and re.fullmatch(r"[1-9][0-9]{0,8}[kM]?", config.bitrate)):
        raise InvalidRequest(f"bitrate {config.bitrate!r} is not like 8M or 800k, or {codec.name} takes none")
    width, height = config.resolution
    allowed = {codec.odd_pixels} if width % 2 or height % 2 else {codec.even_pixels, codec.odd_pixels}
    if params.get("pixel_format") is None or params["pixel_format"] not in allowed:
        raise InvalidRequest(f"{params.get('pixel_format')!r} cannot hold {width}x{height} {codec.name} frames")
    _check_extras(config)
    return codec


def _check_extras(config: EncodingConfig) -> None:
    params, (width, height) = config.additional_params, config.resolution
    if (crop := params.get("crop")) is not None:
        sides = isinstance(crop, tuple) and len(crop) == 2 and all(type(side) is int for side in crop)
        if not sides or not all(0 <= full - cut <= 1 for full, cut in zip(crop, (width, height), strict=True)):
            raise InvalidRequest(f"{crop!r} frames cannot be cut to {width}x{height}")
    if max(config.source_size) > MAX_SIDE or min(config.resolution) < 1:
        raise InvalidRequest(f"cannot encode {width}x{height} frames")
    audio = params.get("audio")
    if audio is not None and not (isinstance(audio, str) and audio.startswith("/") and config.format.audio):
        raise InvalidRequest(f"the sound {audio!r} is not an absolute path, or {config.format.name} can have none")
    comment = params.get("comment", "")
    if not isinstance(comment, str) or len(comment) > MAX_COMMENT_CHARS or not comment.isascii() or "\0" in comment:
        raise InvalidRequest("the comment is too long, or not ASCII")
