"""The encoding decision, as a table of facts and answers."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest

from wan_compat.policies.encoding import (
    VideoFacts,
    encoder_limits,
    exact_frame_rate,
    ffmpeg_arguments,
    plan_encoding,
    video_mismatches,
)
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.video import Quality, VideoOptions


def test_wan_video_is_planned_as_constant_quality_h264_in_420():
    config = plan_encoding(832, 480, 16, ".mp4")
    assert (config.codec, config.bitrate, config.fps, config.resolution) == ("h264", "", 16, (832, 480))
    assert config.additional_params == {
        "container": "mp4",
        "pixel_format": "yuv420p",
        "preset": "superfast",
        "crf": 18,
    }
    assert config.reasons == ()


@pytest.mark.parametrize("size", [(17, 16), (16, 17), (1, 1)])
def test_odd_sizes_keep_their_size_in_444_and_say_why(size):
    config = plan_encoding(*size, 16, ".mp4")
    assert config.additional_params["pixel_format"] == "yuv444p"
    assert config.resolution == size
    assert "odd side" in config.reasons[0]


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (16, Fraction(16)),
        (24, Fraction(24)),
        (12.5, Fraction(25, 2)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (24000 / 1001, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (119.88, Fraction(120000, 1001)),
        (23.9, Fraction(239, 10)),
        (29.9, Fraction(299, 10)),
        (1 / 3, Fraction(1, 3)),
        (240, Fraction(240)),
        (1e-9, Fraction(1, 1001)),
    ],
)
def test_rate_is_the_one_that_was_meant(fps, exact):
    assert exact_frame_rate(fps) == exact


@pytest.mark.parametrize("fps", [0, -1, 241, math.nan, math.inf])
def test_impossible_rate_is_refused(fps):
    with pytest.raises(InvalidRequest, match="frames per second"):
        plan_encoding(16, 16, fps, ".mp4")


@pytest.mark.parametrize("suffix", [".avi", "", ".mp4 ", "mp4", ".."])
def test_unknown_suffix_is_refused_and_supported_ones_are_named(suffix):
    with pytest.raises(InvalidRequest) as caught:
        plan_encoding(16, 16, 16, suffix)
    assert ".mp4" in caught.value.fixes[0]
    assert ".mp4" in caught.value.details["supported"]


def test_suffix_may_be_upper_case():
    assert plan_encoding(16, 16, 16, ".MP4").format.muxer == "mp4"


@pytest.mark.parametrize("size", [(0, 16), (16, 4097)])
def test_impossible_size_is_refused(size):
    with pytest.raises(InvalidRequest, match="sides must be"):
        plan_encoding(*size, 16, ".mp4")


def test_command_converts_then_tags_and_never_scales_or_drops():
    arguments = ffmpeg_arguments(plan_encoding(64, 32, 29.97, ".mp4"), "/out/a.part", threads=3)
    assert arguments[arguments.index("-framerate") + 1] == "30000/1001"
    assert arguments[arguments.index("-video_size") + 1] == "64x32"
    assert arguments[arguments.index("-protocol_whitelist") + 1] == "file,pipe"
    assert arguments[arguments.index("-fps_mode") + 1] == "passthrough"
    filters = arguments[arguments.index("-vf") + 1].split(",")
    assert filters[-1].startswith("setparams=range=tv:colorspace=bt709")
    assert "out_color_matrix=bt709" in filters[0]
    assert not any("w=" in part or "h=" in part or "size=" in part for part in filters)
    assert arguments[-1] == "file:/out/a.part"
    assert "-b:v" not in arguments and arguments[arguments.index("-crf") + 1] == "18"


def test_the_default_preset_looks_ahead_and_others_are_taken_as_they_are():
    """Without it, superfast needs far more bytes for the same picture (docs/video.md)."""

    def arguments(quality):
        return ffmpeg_arguments(plan_encoding(64, 32, 16, ".mp4", VideoOptions(quality=quality)), "/a", threads=1)

    standard = arguments(Quality.STANDARD)
    assert standard[standard.index("-preset") + 1 :][:5] == ["superfast", "-mbtree", "1", "-rc-lookahead", "10"]
    assert "-mbtree" not in arguments(Quality.HIGH)


def test_a_large_gif_comes_with_its_size_and_the_way_to_a_smaller_one():
    large = plan_encoding(832, 480, 25, ".gif", num_frames=49).reasons
    assert len(large) == 1 and "takes about 10 MB" in large[0] and "animated WebP" in large[0]
    assert plan_encoding(96, 64, 25, ".gif", num_frames=9).reasons == ()
    assert "hundredths of a second" in plan_encoding(96, 64, 16, ".gif", num_frames=9).reasons[0]


def test_bitrate_replaces_constant_quality():
    config = dataclasses.replace(plan_encoding(64, 32, 16, ".mp4"), bitrate="8M")
    arguments = ffmpeg_arguments(config, "/out/a.part", threads=1)
    assert arguments[arguments.index("-b:v") + 1] == "8M"
    assert "-crf" not in arguments


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("preset", "veryfast,scale=2:2"),
        ("preset", None),
        ("crf", "18"),
        ("crf", True),
        ("crf", 52),
        ("crf", -1),
        ("pixel_format", "yuv420p,scale=2:2"),
        ("pixel_format", None),
        ("filter", "movie=/etc/passwd"),
        ("container", ".exe"),
    ],
)
def test_parameters_that_are_not_in_the_tables_never_reach_the_command(field, value):
    config = plan_encoding(64, 32, 16, ".mp4")
    config.additional_params[field] = value
    with pytest.raises(InvalidRequest):
        ffmpeg_arguments(config, "/out/a.part", threads=1)


@pytest.mark.parametrize("bitrate", ["8 M", "-1", "8M -i x", "0", "1e9"])
def test_odd_bitrates_are_refused(bitrate):
    config = dataclasses.replace(plan_encoding(64, 32, 16, ".mp4"), bitrate=bitrate)
    with pytest.raises(InvalidRequest, match="bitrate"):
        ffmpeg_arguments(config, "/out/a.part", threads=1)


def test_420_is_refused_for_an_odd_size():
    config = plan_encoding(17, 16, 16, ".mp4")
    config.additional_params["pixel_format"] = "yuv420p"
    with pytest.raises(InvalidRequest, match="17x16"):
        ffmpeg_arguments(config, "/out/a.part", threads=1)


def test_relative_output_is_refused():
    with pytest.raises(ValueError, match="absolute"):
        ffmpeg_arguments(plan_encoding(16, 16, 16, ".mp4"), "-y.mp4", threads=1)


def test_limits_grow_with_the_video_and_exceed_its_raw_size():
    small = encoder_limits(plan_encoding(16, 16, 16, ".mp4"), 1, 1)
    large = encoder_limits(plan_encoding(4096, 4096, 16, ".mp4"), 4001, 16)
    assert large.memory_bytes > small.memory_bytes >= 512 << 20
    assert large.cpu_seconds > small.cpu_seconds >= 60
    assert large.file_size_bytes > 4096 * 4096 * 3 * 4001


@pytest.mark.parametrize(
    ("width", "height", "threads", "peak_mib"),
    [
        (1280, 720, 3, 335),
        (1279, 719, 3, 417),
        (1280, 720, 16, 926),
        (1279, 719, 16, 1131),
        (2047, 2047, 16, 2823),
        (4095, 4095, 3, 3395),
        (4096, 4096, 16, 4890),
        (4095, 4095, 16, 8031),
    ],
)
def test_memory_limit_leaves_room_over_the_measured_peak(width, height, threads, peak_mib):
    """Peaks of VmData, white noise, ffmpeg 9.0.2; odd sizes are 4:4:4 and need twice the memory."""
    limits = encoder_limits(plan_encoding(width, height, 16, ".mp4"), 40, threads)
    assert 1.5 * peak_mib < limits.memory_bytes / 2**20 < 4 * peak_mib + 1024


GOOD = VideoFacts("h264", "yuv420p", ("tv", "bt709"), 64, 32, 5, Fraction(5, 16), Fraction(1, 16384))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"codec": "hevc"}, "codec"),
        ({"pixel_format": "yuv444p"}, "pixel format"),
        ({"color": ()}, "colour"),
        ({"color": ("tv", "smpte170m")}, "colour"),
        ({"width": 62}, "size"),
        ({"num_frames": 4, "duration": Fraction(4, 16)}, "frames"),
        ({"duration": Fraction(5, 15)}, "duration"),
        ({"duration": Fraction(0)}, "duration"),
    ],
)
def test_whatever_was_not_asked_for_is_found(change, word):
    config = plan_encoding(64, 32, 16, ".mp4")
    assert video_mismatches(config, 5, GOOD) == ()
    assert any(word in wrong for wrong in video_mismatches(config, 5, dataclasses.replace(GOOD, **change)))


def test_duration_may_be_rounded_to_the_containers_tick():
    config = plan_encoding(64, 32, 29.97, ".mp4")
    facts = dataclasses.replace(GOOD, duration=Fraction(5 * 33, 1000), tick=Fraction(1, 1000))
    assert video_mismatches(config, 5, facts) == ()


def test_facts_give_the_rate_that_was_written():
    assert GOOD.fps == 16
    assert dataclasses.replace(GOOD, duration=Fraction(0)).fps == 0
