"""Every format from every kind of source, decoded back: frames, colours, length, rate, tags. By the real ffmpeg."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from wan_compat.policies.encoding import CODECS, FORMATS
from wan_compat.protocol.errors import InvalidRequest, OutputExists
from wan_compat.protocol.values import FrameSpec
from wan_compat.protocol.video import VideoOptions
from wan_compat.supervisor.encode_file import encode_file
from wan_compat.supervisor.ffmpeg import find_ffmpeg

# format, options, suffix, mean error per byte, mean error of a channel. A wrong matrix or range shifts channels by 5 to 20.
CASES = {
    "mp4": ({}, ".mp4", 2.5, 2.0),
    "mp4-draft": ({"quality": "draft"}, ".mp4", 5.0, 2.5),
    "mp4-high": ({"quality": "high"}, ".mp4", 2.0, 2.0),
    "mp4-lossless": ({"quality": "lossless"}, ".mp4", 0, 0),
    "mp4-fragmented": ({"fragmented": True}, ".mp4", 2.5, 2.0),
    "mp4-h265": ({"codec": "h265"}, ".mp4", 2.5, 2.0),
    "mp4-h265-lossless": ({"codec": "h265", "quality": "lossless"}, ".mp4", 0, 0),
    "mp4-av1": ({"codec": "av1"}, ".mp4", 2.5, 2.0),
    "mp4-av1-lossless": ({"codec": "av1", "quality": "lossless"}, ".mp4", 0, 0),
    "webm": ({}, ".webm", 2.5, 2.0),
    "webm-av1": ({"codec": "av1"}, ".webm", 2.5, 2.0),
    "webm-lossless": ({"quality": "lossless"}, ".webm", 0, 0),
    "mov": ({}, ".mov", 2.5, 2.2),
    "mov-high": ({"quality": "high"}, ".mov", 0.6, 0.5),
    "mkv": ({}, ".mkv", 0, 0),
    "gif": ({}, ".gif", 6.0, 2.0),
    "gif-draft": ({"quality": "draft"}, ".gif", 8.0, 3.0),
    "webp": ({}, ".webp", 3.5, 2.0),
    "webp-lossless": ({"quality": "lossless"}, ".webp", 0, 0),
    "png": ({"format": "png"}, "", 0, 0),
    "jpeg": ({"format": "jpeg"}, "", 2.0, 1.5),
    "npy": ({}, ".npy", 0, 0),
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def gradient(width: int, height: int, count: int) -> np.ndarray:
    """A moving gradient in all colours: what an encoder can keep, and a mixed-up colour matrix shows."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    return np.stack(
        [
            np.stack([255 * x, 255 * y, 255 * (1 - x) * (1 + np.sin(index / 3)) / 2], -1).astype(np.uint8)
            for index in range(count)
        ]
    )


def spec_of(frames: np.ndarray) -> FrameSpec:
    return FrameSpec(num_frames=frames.shape[0], height=frames.shape[1], width=frames.shape[2])


def write(frames: np.ndarray, path: Path, fps: float = 16, **options: object):
    if options.get("codec") == "av1" and "quality" not in options and "libsvtav1" not in find_ffmpeg().encoders:
        pytest.skip("this ffmpeg was built without SVT-AV1")  # the bundled one of imageio-ffmpeg 0.8 has it
    return encode_file((memoryview(f) for f in frames), spec_of(frames), fps, path, options=VideoOptions(**options))


def decode(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".webp":  # ffmpeg before version 8 cannot read animations
        with Image.open(path) as image:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    source = ["-i", str(path)]
    if path.is_dir():
        suffix = sorted(os.listdir(path))[0].rpartition(".")[2]
        source = ["-start_number", "1", "-i", str(path / f"frame_%06d.{suffix}")]
    done = subprocess.run(
        [
            find_ffmpeg().path,
            "-v",
            "error",
            *source,
            "-map",
            "0:v",
            "-fps_mode",
            "passthrough",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "pipe:1",
        ],
        capture_output=True,
        check=True,
    )
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, *shape[1:])


def described(path: Path) -> str:
    done = subprocess.run([find_ffmpeg().path, "-hide_banner", "-i", str(path)], capture_output=True, text=True)
    return done.stderr


ODD = ("mp4", "mp4-lossless", "mp4-h265", "mp4-av1", "webm", "mov", "mkv", "gif", "webp", "png", "jpeg", "npy")


def tell_time(path: Path, fps: float, count: int) -> None:
    """Check rate and length as a reader tells them, not as we planned them."""
    if path.suffix not in (".mp4", ".webm", ".mov", ".mkv", ".gif"):
        return
    said = described(path)
    assert abs(float(re.search(r"Duration: 00:00:([\d.]+)", said)[1]) - count / fps) <= 0.02, said
    if path.suffix != ".gif":  # of whose delays a reader makes a rate of its own
        assert re.search(rf", {fps:g}(\.0\d)? fps", said), said


@pytest.mark.parametrize(
    ("case", "size"), [(case, (96, 64)) for case in CASES] + [(case, (49, 35)) for case in ODD], ids=str
)
def test_what_comes_back_is_what_went_in(case, size, tmp_path):
    options, suffix, mean_bound, channel_bound = CASES[case]
    frames = gradient(*size, 9)
    report = write(frames, tmp_path / f"fox{suffix}", **options)
    assert (report.width, report.height, report.fps) == (*size, 16.0)
    if suffix == ".webp":  # repeated frames are merged
        assert 7 <= report.num_frames <= 9
        frames = frames[[0, -1]]
        assert np.abs(decode(Path(report.path), (9, *frames.shape[1:]))[[0, -1]].astype(int) - frames).mean() <= 8
        return
    assert report.num_frames == 9
    tell_time(Path(report.path), 16, 9)
    back = decode(Path(report.path), frames.shape)
    assert back.shape == frames.shape
    difference = back.astype(int) - frames
    if size == (49, 35):  # small pictures full of edges: nothing but gross errors shows
        mean_bound, channel_bound = mean_bound * 3, channel_bound * 3
    assert np.abs(difference).mean() <= mean_bound
    assert np.abs(difference.mean((0, 1, 2))).max() <= channel_bound


def test_every_codec_and_format_is_in_the_matrix(tmp_path):
    assert {case.partition("-")[0] for case in CASES} == set(FORMATS)
    reached = set()
    for form in FORMATS.values():
        reached |= set(form.codecs)
    assert reached == set(CODECS)


@pytest.mark.parametrize(
    ("suffix", "fps"),
    [(".mp4", 29.97), (".webm", 24), (".webm", 29.97), (".mkv", 29.97), (".gif", 24), (".webp", 29.97)],
)
def test_rates_are_kept_by_every_container(suffix, fps, tmp_path):
    report = write(gradient(64, 48, 12), tmp_path / f"fox{suffix}", fps=fps)
    assert report.fps == pytest.approx(30000 / 1001 if fps == 29.97 else 24, abs=1e-9)
    tell_time(tmp_path / f"fox{suffix}", fps, 12)


def test_a_higher_quality_is_nearer_to_the_frames_for_every_codec_with_a_scale(tmp_path):
    """Draft and high; the matrix above has standard, lossless, and H.264."""
    frames = gradient(64, 48, 3)
    for codec, suffix in (
        *(("h265", ".mp4"), ("av1", ".mp4"), ("vp9", ".webm"), ("gif", ".gif"), ("webp", ".webp"), ("jpeg", "")),
    ):
        if CODECS[codec].encoder not in find_ffmpeg().encoders:  # older builds have no SVT-AV1
            continue
        errors = []
        for quality in ("draft", "high"):
            wish = {"codec": codec} if suffix else {"format": codec}
            path = Path(write(frames, tmp_path / f"{codec}-{quality}{suffix}", quality=quality, **wish).path)
            errors.append(np.abs(decode(path, frames.shape)[0].astype(int) - frames[0]).mean())
        assert errors[0] > errors[1], (codec, errors)


@pytest.mark.parametrize(
    "case", ["mp4", "mp4-h265", "mp4-av1", "webm", "mov", "mkv", "gif", "webp", "webp-lossless", "png", "jpeg", "npy"]
)
def test_one_frame_is_enough(case, tmp_path):
    options, suffix, mean_bound, _ = CASES[case]
    frames = gradient(64, 48, 1)
    report = write(frames, tmp_path / f"fox{suffix}", **options)
    back = decode(Path(report.path), frames.shape)
    assert back.shape == frames.shape and np.abs(back.astype(int) - frames).mean() <= max(mean_bound, 0) * 2


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp"])
def test_a_still_is_one_picture(suffix, tmp_path):
    frames = gradient(64, 48, 1)
    report = write(frames, tmp_path / f"fox{suffix}")
    assert Path(report.path).is_file()
    assert np.abs(decode(Path(report.path), frames.shape).astype(int) - frames).mean() < 5


COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 128, 128]], np.uint8)


@pytest.mark.parametrize("case", ["mp4", "mp4-h265", "mp4-av1", "webm", "mov", "mov-high", "mp4-fragmented"])
def test_luma_of_pure_colours_is_that_of_bt709(case, tmp_path):
    """bt601's differs by up to 20 steps."""
    options, suffix, *_ = CASES[case]
    frame = np.repeat(np.repeat(COLOURS[None], 64, 0), 64, 1)
    report = write(frame[None], tmp_path / f"fox{suffix}", **options)
    done = subprocess.run(
        [
            find_ffmpeg().path,
            "-v",
            "error",
            "-i",
            report.path,
            "-f",
            "rawvideo",
            "-pix_fmt",
            "gray16le",
            "-vf",
            "extractplanes=y",
            "pipe:1",
        ],
        capture_output=True,
        check=True,
    )
    data = np.frombuffer(done.stdout, np.uint16).reshape(64, -1)[32, 32::64]
    depth = 16 if "mov" in case else 8
    luma = data / (257 if depth == 8 else 256)
    expected = 16 + 219 / 255 * (COLOURS @ np.array([0.2126, 0.7152, 0.0722]))
    assert np.abs(luma - expected).max() <= 1.6


@pytest.mark.parametrize(
    ("case", "tags"),
    [
        ("mp4", r"h264 \(High\) \(avc1.*yuv420p\(tv, bt709"),
        ("mp4-h265", r"hevc \(Main\) \(hvc1.*yuv420p\(tv, bt709"),
        ("mp4-av1", r"av1.*yuv420p\(tv, bt709"),
        ("webm", r"vp9 \(Profile 0\), yuv420p\(tv, bt709"),
        ("mov", r"prores \(HQ\) \(apch.*yuv422p10le\((tv, )?bt709"),
        ("mkv", r"ffv1.*bgr0\(pc, gbr/bt709/iec61966-2-1"),
        ("mp4-lossless", r"h264 .*gbrp\(pc, gbr/bt709/iec61966-2-1"),
        ("webm-lossless", r"vp9 \(Profile 1\), gbrp\(pc, gbr/bt709"),
    ],
)
def test_files_say_how_their_colours_are_stored(case, tags, tmp_path):
    options, suffix, *_ = CASES[case]
    write(gradient(64, 48, 3), tmp_path / f"fox{suffix}", **options)
    assert re.search(tags, described(tmp_path / f"fox{suffix}"))


def test_a_fragmented_file_plays_while_it_is_written(tmp_path):
    write(gradient(64, 48, 40), tmp_path / "fox.mp4", fragmented=True)
    data = (tmp_path / "fox.mp4").read_bytes()
    assert data.count(b"moof") >= 2
    (tmp_path / "half.mp4").write_bytes(data[: data.rindex(b"moof") - 4])
    assert 1 <= len(decode(tmp_path / "half.mp4", (40, 48, 64, 3))) < 40


def test_an_odd_size_is_cut_by_permission_only(tmp_path):
    frames = gradient(49, 35, 3)
    report = write(frames, tmp_path / "cut.mp4", crop_odd=True)
    assert (report.width, report.height) == (48, 34)
    back = decode(tmp_path / "cut.mp4", (3, 34, 48, 3))
    assert np.abs(back.astype(int) - frames[:, :34, :48]).mean() < 4
    with pytest.raises(InvalidRequest, match="both sides must be even"):
        write(frames, tmp_path / "no.mov", codec="prores")


def test_pictures_are_numbered_from_one_and_the_folder_is_whole_or_absent(tmp_path):
    report = write(gradient(32, 16, 3), tmp_path / "fox", format="png")
    assert sorted(os.listdir(report.path)) == ["frame_000001.png", "frame_000002.png", "frame_000003.png"]
    assert sorted(os.listdir(tmp_path)) == ["fox"]
    with pytest.raises(OutputExists):
        write(gradient(32, 16, 3), tmp_path / "fox", format="png")


def test_the_same_frames_make_the_same_file_in_every_container(tmp_path):
    frames = gradient(64, 48, 4)
    for suffix in (".webm", ".mkv", ".gif", ".webp", ".mov"):
        first, second = (write(frames, tmp_path / f"{name}{suffix}") for name in "ab")
        assert first.sha256 == second.sha256, suffix


REFUSED = {
    "gif with sound": (".gif", {"audio": "/dev/null"}, "sound"),
    "unknown format": (".mp4", {"format": "avi"}, "no format"),
    "name against format": (".mp4", {"format": "webm"}, "ends in"),
    "unknown codec": (".mp4", {"codec": "divx"}, "no codec"),
    "hardware": (".mp4", {"codec": "h264_nvenc"}, "sandbox without devices"),
    "hardware in a webm": (".webm", {"codec": "av1_vaapi"}, "sandbox without devices"),
    "codec of another format": (".webm", {"codec": "h264"}, "cannot hold"),
    "lossless gif": (".gif", {"quality": "lossless"}, "lossless"),
    "lossless jpeg": ("", {"format": "jpeg", "quality": "lossless"}, "lossless"),
    "pictures in one picture": (".png", {}, "one picture"),
    "fragmented webm": (".webm", {"fragmented": True}, "fragmented"),
    "metadata in a gif": (".gif", {"metadata": "full"}, "metadata"),
    "a format without a name": ("", {"format": "mp4"}, "suffix"),
    "no suffix": ("", {}, "format is unknown"),
    "sound that is not there": (".mp4", {"audio": "/nowhere/x.wav"}, "cannot be read"),
    "sound that is a device": (".mp4", {"audio": "/dev/null"}, "not a file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_wishes_are_refused_before_anything_starts(case, tmp_path):
    suffix, options, message = REFUSED[case]
    with pytest.raises(InvalidRequest, match=message):
        write(gradient(32, 16, 3), tmp_path / f"fox{suffix}", **options)
    assert os.listdir(tmp_path) == []
    assert InvalidRequest.exit_code == 2


def test_too_fast_for_gif_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="60 frames per second"):
        write(gradient(32, 16, 3), tmp_path / "fox.gif", fps=60)


def sound(path: Path, seconds: float) -> Path:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        time_s = np.arange(int(8000 * seconds)) / 8000
        file.writeframes((np.sin(time_s * 2 * np.pi * 440) * 12000).astype("<i2").tobytes())
    return path


def heard(path: Path) -> np.ndarray:
    done = subprocess.run(
        [
            find_ffmpeg().path,
            "-v",
            "error",
            "-i",
            str(path),
            "-map",
            "0:a",
            "-f",
            "s16le",
            "-ar",
            "8000",
            "-ac",
            "1",
            "pipe:1",
        ],
        capture_output=True,
        check=True,
    )
    return np.frombuffer(done.stdout, np.int16).astype(float)


@pytest.mark.parametrize("seconds", [0.4, 3.0], ids=["padded", "trimmed"])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mov", ".mkv"])
def test_sound_is_as_long_as_the_video(suffix, seconds, tmp_path):
    track = sound(tmp_path / "track.wav", seconds)
    write(gradient(64, 48, 16), tmp_path / f"fox{suffix}", audio=str(track))
    samples = heard(tmp_path / f"fox{suffix}")
    assert len(samples) / 8000 == pytest.approx(1.0, abs=0.1)
    loud = np.sqrt((samples[: int(8000 * min(seconds, 0.9) * 0.9)] ** 2).mean())
    assert loud > 4000
    if seconds < 1:
        assert np.sqrt((samples[int(8000 * 0.6) :] ** 2).mean()) < 300


@pytest.mark.parametrize(
    "content", [b"", b"not sound at all", b"#EXTM3U\n/etc/passwd\n", b"RIFF\xff\xff\xff\xffWAVEfmt "]
)
def test_what_is_no_sound_is_refused_before_anything_starts(content, tmp_path):
    (tmp_path / "track.wav").write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"none that ffmpeg can read: [A-Z][^@\n]+$"):
        write(gradient(64, 48, 3), tmp_path / "fox.mp4", audio=str(tmp_path / "track.wav"))
    assert os.listdir(tmp_path) == ["track.wav"]


def test_an_animation_that_stands_still_becomes_a_picture(tmp_path):
    assert write(np.repeat(gradient(32, 16, 1), 5, 0), tmp_path / "fox.webp").num_frames == 1
