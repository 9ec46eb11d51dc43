"""Frames in memory, and files of ours, into other files: VideoEncoder and FormatConverter."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.supervisor.test_formats import decode, gradient, spec_of
from wan_compat.policies.encoding import FORMATS
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.results import ProcessedFrames
from wan_compat.protocol.video import VideoOptions
from wan_compat.supervisor import FormatConverter, VideoEncoder
from wan_compat.supervisor.encode_file import encode_file
from wan_compat.supervisor.ffmpeg import find_ffmpeg
from wan_compat.supervisor.frame_source import open_source
from wan_compat.supervisor.video_info import read_info


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def processed(count: int = 5, fps: float = 8.0) -> ProcessedFrames:
    return ProcessedFrames(frames=gradient(48, 32, count), fps=fps, duration=count / fps)


def test_frames_become_a_file_whose_name_gets_its_suffix(tmp_path):
    result = VideoEncoder().encode_frames_to_video(processed(), tmp_path / "fox")
    assert result.success and result.output_path == str(tmp_path / "fox.mp4")
    assert result.config.codec == "h264" and result.size_bytes == os.path.getsize(result.output_path)


def test_configuration_says_what_would_be_done():
    config = VideoEncoder().configure_encoding_params(processed(), "webm")
    assert (config.codec, config.fps, config.resolution, config.bitrate) == ("vp9", 8.0, (48, 32), "")
    assert VideoEncoder().configure_encoding_params(processed(), "png").is_sequence
    with pytest.raises(InvalidRequest):
        VideoEncoder().configure_encoding_params(processed(), "avi")


def test_dependencies_are_told(monkeypatch, tmp_path):
    status = VideoEncoder().check_encoding_dependencies()
    assert status.available and "libx264" in status.encoders
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    lacking = VideoEncoder().check_encoding_dependencies()
    assert not lacking.available and lacking.hint


def test_without_ffmpeg_the_frames_become_pictures(monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    result = VideoEncoder().encode_frames_to_video(processed(), tmp_path / "fox.mp4")
    assert not result.success and result.fallback.success and len(result.fallback.files) == 5
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    finished = FormatConverter().convert(result.fallback.directory, tmp_path / "fox.mp4")
    assert finished.success and finished.report.fps == 8.0 and finished.report.num_frames == 5


def test_frames_that_are_none_are_refused(tmp_path):
    bad = ProcessedFrames(frames=np.zeros((3, 8, 8, 3), np.float32), fps=8, duration=1)
    with pytest.raises(InvalidRequest, match="uint8"):
        VideoEncoder().encode_frames_to_video(bad, tmp_path / "fox.mp4")


LOSSLESS = {
    ".mkv": {},
    ".npy": {},
    "": {"format": "png"},
    ".webm": {"quality": "lossless"},
    ".mp4": {"quality": "lossless"},
}


@pytest.mark.parametrize("source", LOSSLESS)
@pytest.mark.parametrize("target", [".npy", ".mkv"])
def test_one_lossless_format_becomes_another_without_losing_a_byte(source, target, tmp_path):
    frames = processed()
    format = LOSSLESS[source].get("format", source.removeprefix("."))
    first = VideoEncoder(VideoOptions(**LOSSLESS[source])).encode_frames_to_video(
        frames, tmp_path / f"a{source}", format
    )
    second = FormatConverter().convert(first.output_path, tmp_path / f"b{target}", fps=8)
    assert (decode(Path(second.output_path), frames.frames.shape) == frames.frames).all()
    assert second.report.fps == 8.0


def reads_animated_webp() -> bool:
    listed = subprocess.run([find_ffmpeg().path, "-hide_banner", "-demuxers"], capture_output=True, text=True)
    return "webp_anim" in listed.stdout


@pytest.mark.parametrize("source", [".mp4", ".webm", ".mov", ".gif", ".webp", ""])
def test_every_format_can_become_another(source, tmp_path):
    frames = processed(7)
    options = {"format": "jpeg"} if not source else {}
    first = VideoEncoder(VideoOptions(**options)).encode_frames_to_video(
        frames, tmp_path / f"a{source}", options.get("format", source.removeprefix("."))
    )
    if source == ".webp" and not reads_animated_webp():
        with pytest.raises(InvalidRequest, match="version 8"):
            FormatConverter().convert(first.output_path, tmp_path / "b.mkv", fps=8)
        return
    second = FormatConverter().convert(first.output_path, tmp_path / "b.mkv", fps=8)
    back = decode(Path(second.output_path), frames.frames.shape)
    assert 6 <= len(back) <= 7
    assert np.abs(back[0].astype(int) - frames.frames[0]).mean() < 8


def test_a_rate_that_nobody_says_is_asked_for(tmp_path):
    first = VideoEncoder().encode_frames_to_video(processed(), tmp_path / "a.npy", "npy")
    with pytest.raises(InvalidRequest, match="frames per second"):
        FormatConverter().convert(first.output_path, tmp_path / "b.mp4")


HOSTILE = {
    "text.mp4": b"this is no video",
    "empty.mp4": b"",
    "lying.npy": b"\x93NUMPY\x01\x00\x76\x00{'descr': '|u1', 'fortran_order': False, 'shape': (4000, 4000, 4000, 3), }",
    "object.npy": b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (1, 2, 2, 3), }"
    + b" " * 100,
    "code.npy": b"\x93NUMPY\x01\x00\x76\x00{'descr': '|u1', 'fortran_order': False, 'shape': (__import__('os'),), }"
    + b" " * 100,
    "cut.webm": b"\x1aE\xdf\xa3\x9fB\x86\x81\x01",
    "playlist.mp4": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "bomb.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\x00\x00\x00",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_and_leave_nothing(name, tmp_path):
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(InvalidRequest):
        FormatConverter().convert(tmp_path / name, tmp_path / "b.mkv", fps=8)
    assert os.listdir(tmp_path) == [name]


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "holiday.png").write_bytes(b"x")
    with pytest.raises(InvalidRequest, match="no pictures"):
        FormatConverter().convert(tmp_path / "folder", tmp_path / "b.mkv", fps=8)


def test_the_sidecar_goes_along(tmp_path):
    first = VideoEncoder().encode_frames_to_video(processed(), tmp_path / "a.mkv", "mkv")
    Path(f"{first.output_path}.json").write_text(
        json.dumps(
            {"schema_version": 1, "kind": "wan-compat video", "request": {"prompt": "a fox"}, "video": {"fps": 8}}
        )
    )
    FormatConverter().convert(first.output_path, tmp_path / "b.mp4")
    document = json.loads((tmp_path / "b.mp4.json").read_text())
    assert document["request"] == {"prompt": "a fox"} and document["video"]["path"] == "b.mp4"


def test_a_sidecar_of_another_file_says_nothing_about_this_one(tmp_path):
    VideoEncoder().encode_frames_to_video(processed(), tmp_path / "a.mkv", "mkv")
    beside = tmp_path / "a.mkv.json"
    video = {"fps": 60, "bytes": 12345}
    beside.write_text(
        json.dumps({"schema_version": 1, "kind": "wan-compat video", "request": {"prompt": "a fox"}, "video": video})
    )
    found = open_source(tmp_path / "a.mkv")
    assert (found.fps, found.stale) == (processed().fps, True)
    FormatConverter().convert(tmp_path / "a.mkv", tmp_path / "b.mkv")
    assert not (tmp_path / "b.mkv.json").exists()
    FormatConverter(overwrite=True).convert(tmp_path / "b.mkv", tmp_path / "a.mkv")
    assert not beside.exists()  # its video is gone, and the new one has none


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.comment] + ["png"])
def test_every_file_that_can_say_how_it_was_made_is_read_back_to_the_letter(name, tmp_path):
    said = {"generator": "wan-compat 1", "prompt": '=;#\\ "a\'b" {}', "parameters": {"seed": 3}}
    frames = gradient(48, 32, 1)
    path = tmp_path / f"fox{FORMATS[name].suffix}"
    encode_file((memoryview(frame) for frame in frames), spec_of(frames), 8, path, label=json.dumps(said))
    assert read_info(str(path))["label"] == said


def test_poster_and_contact_sheet_lie_beside_the_video(tmp_path):
    frames = processed(20)
    options = VideoOptions(poster=True, contact_sheet=True, preview=str(tmp_path / "preview"))
    VideoEncoder(options).encode_frames_to_video(frames, tmp_path / "fox.mp4")
    poster = decode(tmp_path / "fox.mp4.poster.png", (1, 32, 48, 3))
    assert (poster[0] == frames.frames[0]).all()
    sheet = decode(tmp_path / "fox.mp4.sheet.png", (1, 3 * 36 + 4, 4 * 52 + 4, 3))
    assert (sheet[0, 4:36, 4:52] == frames.frames[0]).all()
    assert (sheet[0, -36:-4, -52:-4] == frames.frames[-1]).all()
    assert len(os.listdir(tmp_path / "preview")) == 20


def test_a_preview_of_a_large_picture_is_small(tmp_path):
    frames = ProcessedFrames(gradient(1030, 20, 2), 8, 0.25)
    VideoEncoder(VideoOptions(preview=str(tmp_path / "p"))).encode_frames_to_video(frames, tmp_path / "f.npy", "npy")
    assert decode(tmp_path / "p" / "frame_000001.png", (1, 6, 343, 3)).shape == (1, 6, 343, 3)
