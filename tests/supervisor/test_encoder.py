"""The encoder, with the real ffmpeg and with small programs that misbehave on purpose."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from wan_compat.policies.encoding import plan_encoding
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    DiskExceeded,
    EncodingFailed,
    EnvironmentLacks,
    InvalidRequest,
    MemoryExceeded,
    OutputExists,
    SandboxEntryFailed,
)
from wan_compat.protocol.values import FrameSpec
from wan_compat.supervisor import encoder as encoder_module
from wan_compat.supervisor import read_back as read_back_module
from wan_compat.supervisor.encode_file import encode_file
from wan_compat.supervisor.encoder import EncoderProcess, spawn_encoder
from wan_compat.supervisor.ffmpeg import Ffmpeg, find_ffmpeg
from wan_compat.supervisor.outputs import prepare_output
from wan_compat.supervisor.read_back import read_facts, verify_video

PROGRAMS = Path(__file__).parents[1] / "programs"
SPEC = FrameSpec(width=64, height=48, num_frames=5)


@pytest.fixture(autouse=True)
def no_process_and_no_descriptor_is_left():
    find_ffmpeg()
    before, others = descriptors(), children()
    yield
    # What others left to the garbage collector may go meanwhile.
    assert {number: what for number, what in descriptors().items() if before.get(number) != what} == {}
    assert children() == others


def descriptors():
    # A listing holds a descriptor of its own, which is gone when it is looked at.
    found = {name: readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    return {name: target for name, target in found.items() if target}


def readlink(path):
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def smooth_frames(spec, seed=0):
    """A moving gradient in all colours: what an encoder can keep, and a mixed-up colour matrix shows."""
    y, x = np.mgrid[0 : spec.height, 0 : spec.width] / max(spec.height, spec.width)
    return np.stack(
        [
            np.stack([255 * x**1.0, 255 * y, 255 * (1 - x) * (1 + np.sin(seed + index / 3)) / 2], -1).astype(np.uint8)
            for index in range(spec.num_frames)
        ]
    )


def decode(path, spec):
    done = subprocess.run(
        [find_ffmpeg().path, "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"],
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, spec.height, spec.width, 3)


def described(path):
    done = subprocess.run([find_ffmpeg().path, "-hide_banner", "-i", path], capture_output=True, text=True)
    return next(line for line in done.stderr.splitlines() if "Video:" in line)


def views(frames):
    return (memoryview(frame) for frame in frames)


def start(program, *arguments, spec=SPEC):
    return EncoderProcess([sys.executable, str(PROGRAMS / program), *map(str, arguments)], spec)


def feed(encoder, data, limit_s=20.0):
    view, deadline = memoryview(data).cast("B"), time.monotonic() + limit_s
    while view:
        count = encoder.write_some(view)
        view = view[count:]
        if not count:
            assert time.monotonic() < deadline
            select.select([], [encoder], [], 0.05)


@pytest.mark.parametrize("fps", [16, 24, 29.97])
def test_frames_come_back_as_they_went_in(tmp_path, fps):
    spec = FrameSpec(width=320, height=176, num_frames=21)
    frames = smooth_frames(spec)
    report = encode_file(views(frames), spec, fps, tmp_path / "fox.mp4")
    assert (report.codec, report.width, report.height, report.num_frames) == ("h264", 320, 176, 21)
    assert report.fps == pytest.approx(30000 / 1001 if fps == 29.97 else fps, abs=1e-9)
    assert report.bytes == os.path.getsize(report.path)
    assert os.listdir(tmp_path) == ["fox.mp4"]
    difference = decode(report.path, spec).astype(int) - frames
    assert np.abs(difference).mean() < 2.5
    assert np.abs(difference.mean((0, 1, 2))).max() < 2.5  # a wrong matrix or range shifts whole channels by 5 to 20


def test_file_says_bt709_limited_range(tmp_path):
    encode_file(views(smooth_frames(SPEC)), SPEC, 16, tmp_path / "fox.mp4")
    assert "h264 (High)" in described(tmp_path / "fox.mp4")
    assert "yuv420p(tv, bt709, progressive)" in described(tmp_path / "fox.mp4")


def test_pure_colours_survive_the_conversion(tmp_path):
    """Luma of each primary must be bt709's: bt601's differs by up to 20 steps."""
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 128, 128]], np.uint8)
    frame = np.repeat(np.repeat(colours[None], 64, 0), 64, 1)
    spec = FrameSpec(width=frame.shape[1], height=64, num_frames=1)
    report = encode_file(views([frame]), spec, 16, tmp_path / "fox.mp4")
    done = subprocess.run(
        [find_ffmpeg().path, "-v", "error", "-i", report.path, "-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:1"],
        capture_output=True,
        check=True,
    )
    luma = np.frombuffer(done.stdout, np.uint8)[: frame.shape[1] * 64].reshape(64, -1)[32, 32::64]
    expected = 16 + 219 / 255 * (colours @ np.array([0.2126, 0.7152, 0.0722]))
    assert np.abs(luma - expected).max() <= 1


def test_index_stands_before_the_pictures(tmp_path):
    encode_file(views(smooth_frames(SPEC)), SPEC, 16, tmp_path / "fox.mp4")
    data = (tmp_path / "fox.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_one_frame_is_a_video(tmp_path):
    spec = FrameSpec(width=64, height=48, num_frames=1)
    report = encode_file(views(smooth_frames(spec)), spec, 16, tmp_path / "fox.mp4")
    assert (report.num_frames, report.fps) == (1, 16)
    assert len(decode(report.path, spec)) == 1


@pytest.mark.parametrize(("width", "height"), [(65, 48), (64, 47), (17, 15), (1, 1), (2, 2), (1, 4)])
def test_odd_and_tiny_sizes_are_kept_to_the_pixel(tmp_path, width, height):
    spec = FrameSpec(width=width, height=height, num_frames=3)
    frames = smooth_frames(spec)
    report = encode_file(views(frames), spec, 16, tmp_path / "fox.mp4")
    assert (report.width, report.height) == (width, height)
    assert decode(report.path, spec).shape == frames.shape


def test_same_frames_make_the_same_file(tmp_path):
    frames = smooth_frames(SPEC)
    first = encode_file(views(frames), SPEC, 16, tmp_path / "a.mp4")
    assert encode_file(views(frames), SPEC, 16, tmp_path / "b.mp4").sha256 == first.sha256


@pytest.mark.parametrize("name", ["-y.mp4", "a:b.mp4", "100%d.mp4", "a b'\"$(x).mp4", "ä\u202e.mp4", "file:x.mp4"])
def test_strange_names_are_just_names(tmp_path, name):
    encode_file(views(smooth_frames(SPEC)), SPEC, 16, tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_existing_output_is_refused_before_ffmpeg_starts(tmp_path, monkeypatch):
    (tmp_path / "fox.mp4").write_text("mine")
    monkeypatch.setattr(encoder_module, "EncoderProcess", None)
    with pytest.raises(OutputExists):
        encode_file(views(smooth_frames(SPEC)), SPEC, 16, tmp_path / "fox.mp4")


def test_ffmpeg_without_the_encoder_is_refused(tmp_path):
    lacking = Ffmpeg(path=find_ffmpeg().path, version="1.0", encoders=frozenset({"mpeg4"}))
    with prepare_output(tmp_path / "fox.mp4") as target, pytest.raises(EnvironmentLacks, match="libx264"):
        spawn_encoder(plan_encoding(64, 48, 16, ".mp4"), 5, target.part_path, ffmpeg=lacking)


def test_twenty_videos_leave_no_process_and_no_descriptor(tmp_path):
    frames = smooth_frames(SPEC)
    encode_file(views(frames), SPEC, 16, tmp_path / "fox.mp4")
    before, others = descriptors(), children()
    for _ in range(20):
        encode_file(views(frames), SPEC, 16, tmp_path / "fox.mp4", overwrite=True)
        assert descriptors() == before
        assert children() == others
    assert os.listdir(tmp_path) == ["fox.mp4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_source_that_fails_midway_leaves_nothing(tmp_path, error):
    def failing():
        yield from views(smooth_frames(SPEC)[:2])
        raise error

    with pytest.raises(error):
        encode_file(failing(), SPEC, 16, tmp_path / "fox.mp4")
    assert os.listdir(tmp_path) == []


def test_real_interrupt_while_feeding_leaves_nothing(tmp_path):
    spec = FrameSpec(width=640, height=360, num_frames=4000)
    frame = smooth_frames(FrameSpec(width=640, height=360, num_frames=1))[0]
    timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            encode_file(views([frame] * 4000), spec, 16, tmp_path / "fox.mp4")
    finally:
        timer.join()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("given", [0, 1, 4])
def test_too_few_frames_are_an_error_although_ffmpeg_would_be_content(tmp_path, given):
    with pytest.raises(EncodingFailed, match=f"{given} of 5 frames"):
        encode_file(views(smooth_frames(SPEC)[:given]), SPEC, 16, tmp_path / "fox.mp4")
    assert os.listdir(tmp_path) == []


def test_too_many_bytes_are_refused(tmp_path):
    frames = np.concatenate([smooth_frames(SPEC)] * 2)
    with pytest.raises(ValueError, match="more than"):
        encode_file(views(frames), SPEC, 16, tmp_path / "fox.mp4")
    assert os.listdir(tmp_path) == []


def test_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match=r"\.avi"):
        encode_file(views(smooth_frames(SPEC)), SPEC, 16, tmp_path / "fox.avi")


def test_ffmpeg_killed_midway_is_reported_and_leaves_no_part(tmp_path):
    spec = FrameSpec(width=320, height=176, num_frames=400)
    frame = smooth_frames(FrameSpec(width=320, height=176, num_frames=1))[0]
    config = plan_encoding(320, 176, 16, ".mp4")
    with prepare_output(tmp_path / "fox.mp4") as target, spawn_encoder(config, 400, target.part_path) as encoder:
        feed(encoder, frame)
        os.kill(encoder.pid, signal.SIGKILL)
        with pytest.raises(EncodingFailed, match="SIGKILL"):
            for _ in range(spec.num_frames - 1):
                feed(encoder, frame)
        assert encoder.poll() == -signal.SIGKILL
    assert os.listdir(tmp_path) == []


def test_ffmpeg_killed_after_the_last_frame_is_reported(tmp_path):
    config = plan_encoding(64, 48, 16, ".mp4")
    with prepare_output(tmp_path / "fox.mp4") as target, spawn_encoder(config, 5, target.part_path) as encoder:
        feed(encoder, smooth_frames(SPEC))
        os.kill(encoder.pid, signal.SIGKILL)
        with pytest.raises(EncodingFailed, match="SIGKILL"):
            encoder.finish(10)


def test_death_is_seen_on_the_pidfd(tmp_path):
    config = plan_encoding(64, 48, 16, ".mp4")
    with prepare_output(tmp_path / "fox.mp4") as target, spawn_encoder(config, 5, target.part_path) as encoder:
        assert select.select([encoder.pidfd], [], [], 0)[0] == []
        os.kill(encoder.pid, signal.SIGKILL)
        assert select.select([encoder.pidfd], [], [], 10)[0] == [encoder.pidfd]


def test_hung_encoder_never_blocks_the_loop():
    spec = FrameSpec(width=1280, height=720, num_frames=2)
    data = memoryview(bytes(spec.frame_bytes))
    with start("encoder_hung.py", spec=spec) as encoder:
        taken = 0
        slowest_s = 0.0
        for _ in range(200):
            began = time.monotonic()
            taken += encoder.write_some(data[taken:])
            slowest_s = max(slowest_s, time.monotonic() - began)
        assert 0 < taken <= 1 << 20
        assert encoder.write_some(data[taken:]) == 0
        assert slowest_s < 5  # it hangs for ever
        pid = encoder.pid
    assert not os.path.exists(f"/proc/{pid}")


def test_hung_encoder_is_killed_at_the_end_of_its_time():
    with start("encoder_hung.py") as encoder:
        feed(encoder, smooth_frames(SPEC))
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
            encoder.finish(0.3)
        assert time.monotonic() - began < 5
        assert encoder.poll() == -signal.SIGKILL


def test_hung_encoder_ends_encode_file_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(
        encoder_module, "confined_argv", lambda *a, **k: [sys.executable, str(PROGRAMS / "encoder_hung.py")]
    )
    spec = FrameSpec(width=1280, height=720, num_frames=2)
    with pytest.raises(DeadlineExceeded):
        encode_file(views(np.zeros((2, 720, 1280, 3), np.uint8)), spec, 16, tmp_path / "fox.mp4", timeout_s=0.5)
    assert os.listdir(tmp_path) == []


def test_encoder_is_killed_with_its_children():
    with start("encoder_forks.py") as encoder:
        deadline = time.monotonic() + 20
        while not (said := re.search(r"child (\d+)", encoder.log_tail())):
            assert time.monotonic() < deadline
            select.select([encoder.log_fileno()], [], [], 1)
            encoder.drain_log()
    assert_killed(int(said[1]))


def assert_killed(orphan):
    """Whoever adopted it may take a moment to reap it. Under pytest that is us (tests/conftest.py)."""
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{orphan}"):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(orphan, os.WNOHANG)
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("status", [0, 3])
def test_encoder_with_much_to_say_is_heard_in_bounded_memory(status):
    with start("encoder_chatty.py", status) as encoder:
        feed(encoder, smooth_frames(SPEC))
        if status:
            with pytest.raises(EncodingFailed, match="complaint 19999") as caught:
                encoder.finish(60)
            assert "status 3" in caught.value.message
            assert "\x1b" not in caught.value.message
            assert len(caught.value.message) < 10_000
        else:
            encoder.finish(60)
        assert len(encoder._log) <= 16 << 10


def test_encoder_that_quits_is_quoted():
    with start("encoder_quits.py", 1000, "x264 broke", 7) as encoder:
        with pytest.raises(EncodingFailed, match="status 7: x264 broke"):
            feed(encoder, smooth_frames(SPEC))
            encoder.finish(20)


def test_encoder_that_died_is_blamed_rather_than_the_missing_frames():
    with start("encoder_quits.py", 0, "x264 broke", 7) as encoder:
        assert select.select([encoder.pidfd], [], [], 20)[0]
        with pytest.raises(EncodingFailed, match="status 7: x264 broke"):
            encoder.finish(20)


@pytest.mark.parametrize("words", ["No space left on device", "Disk quota exceeded", "File too large"])
def test_words_of_a_full_disk_become_disk_exceeded(words):
    with start("encoder_quits.py", SPEC.frame_bytes * 5, f"Error writing trailer: {words}", 228) as encoder:
        feed(encoder, smooth_frames(SPEC))
        with pytest.raises(DiskExceeded, match="disk space"):
            encoder.finish(20)


@pytest.mark.parametrize("words", ["Cannot allocate memory", "x264 [error]: malloc of size 220198464 failed"])
def test_words_of_an_encoder_without_memory_become_memory_exceeded(words):
    with start("encoder_quits.py", SPEC.frame_bytes * 5, words, 187) as encoder:
        feed(encoder, smooth_frames(SPEC))
        with pytest.raises(MemoryExceeded, match="no memory"):
            encoder.finish(20)


def noise_video(path, frames=60):
    spec = FrameSpec(width=256, height=256, num_frames=frames)
    generator = np.random.default_rng(0)
    return encode_file((memoryview(generator.bytes(spec.frame_bytes)) for _ in range(frames)), spec, 16, path)


def test_file_size_limit_is_a_disk_error_and_leaves_no_part(tmp_path, monkeypatch):
    original = encoder_module.encoder_limits

    class Small:
        def __init__(self, limits):
            self.memory_bytes, self.cpu_seconds, self.file_size_bytes = limits.memory_bytes, limits.cpu_seconds, 100_000

    monkeypatch.setattr(encoder_module, "encoder_limits", lambda *arguments: Small(original(*arguments)))
    with pytest.raises(DiskExceeded) as caught:
        noise_video(tmp_path / "fox.mp4")
    assert caught.value.details["kept"] == str(tmp_path / "fox.mp4.frames")
    assert sorted(os.listdir(tmp_path)) == ["fox.mp4.frames", "fox.mp4.frames.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_full_disk_is_reported_leaves_no_part_and_keeps_the_frames(tmp_path, monkeypatch, tmp_path_factory):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setattr("wan_compat.supervisor.outputs.prepare_output.__kwdefaults__", {"min_free_bytes": 0})
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with pytest.raises(DiskExceeded, match="No space left") as caught:
            noise_video(tmp_path / "fox.mp4")
        assert os.listdir(tmp_path) == []
        assert np.load(caught.value.details["kept"]).shape == (60, 256, 256, 3)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_program_that_cannot_start_is_reported():
    with pytest.raises(EncodingFailed, match="could not be started"):
        EncoderProcess(["/nonexistent/ffmpeg"], SPEC)


def test_descriptors_run_out_while_starting_leaves_nothing():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest)]  # no gaps below the limit
    try:
        for room in range(1, 9):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers) + room, hard))
            try:
                EncoderProcess([sys.executable, "-c", "import os; os.read(0, 1)"], SPEC).kill()
            except EncodingFailed:
                continue
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            gc.collect()
    finally:
        for filler in fillers:
            os.close(filler)


def test_encoder_has_its_own_session_and_an_empty_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    with start("encoder_hung.py") as encoder:
        assert os.getsid(encoder.pid) == encoder.pid != os.getsid(0)
        assert b"HF_TOKEN" not in Path(f"/proc/{encoder.pid}/environ").read_bytes()


def test_ffmpeg_runs_confined(tmp_path):
    config = plan_encoding(64, 48, 16, ".mp4")
    with prepare_output(tmp_path / "fox.mp4") as target, spawn_encoder(config, 5, target.part_path) as encoder:
        deadline = time.monotonic() + 20
        # Its name and not its link, which is closed to an ordinary user while the launcher confines itself.
        while not Path(f"/proc/{encoder.pid}/comm").read_text().startswith("ffmpeg"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        status = dict(re.findall(r"^(\w+):\s+(.*)$", Path(f"/proc/{encoder.pid}/status").read_text(), re.MULTILINE))
        assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)) == ("1", "2", 0)
        limits = Path(f"/proc/{encoder.pid}/limits").read_text()
        assert not re.search(r"^Max (cpu time|file size|data size) +unlimited", limits, re.MULTILINE)


def test_ffmpeg_that_cannot_be_confined_does_not_run_unconfined(tmp_path):
    script = tmp_path / "ffmpeg"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    script.chmod(0o755)
    fake = Ffmpeg(path=str(script), version="1.0", encoders=frozenset({"libx264"}))
    config = plan_encoding(64, 48, 16, ".mp4")
    with prepare_output(tmp_path / "fox.mp4") as target:
        with spawn_encoder(config, 5, target.part_path, ffmpeg=fake) as encoder:
            with pytest.raises(SandboxEntryFailed, match="ELF"):
                feed(encoder, smooth_frames(SPEC))
                encoder.finish(20)
        with pytest.raises(SandboxEntryFailed, match="ELF"):
            verify_video(target.part_path, config, 5, ffmpeg=fake)
    assert os.listdir(tmp_path) == ["ffmpeg"]


def test_ffmpeg_dies_with_the_thread_that_started_it(tmp_path):
    found = []
    config = plan_encoding(64, 48, 16, ".mp4")
    with prepare_output(tmp_path / "fox.mp4") as target:

        def spawn():
            encoder = spawn_encoder(config, 5, target.part_path)
            found.append(encoder)
            feed(encoder, smooth_frames(SPEC)[:1])
            while not Path(f"/proc/{encoder.pid}/comm").read_text().startswith("ffmpeg"):
                time.sleep(0.01)

        thread = threading.Thread(target=spawn)
        thread.start()
        thread.join(30)
        with found[0] as encoder:
            assert select.select([encoder.pidfd], [], [], 20)[0]
            assert encoder.poll() == -signal.SIGKILL


def test_killed_encoder_may_be_killed_again():
    encoder = start("encoder_hung.py")
    encoder.kill()
    encoder.kill()
    with pytest.raises(ValueError):
        encoder.fileno()


class TestVerify:
    @pytest.fixture
    def video(self, tmp_path):
        return encode_file(views(smooth_frames(SPEC)), SPEC, 29.97, tmp_path / "fox.mp4").path

    def test_good_video_passes_and_tells_its_facts(self, video):
        facts = verify_video(video, plan_encoding(64, 48, 29.97, ".mp4"), 5)
        assert (facts.codec, facts.pixel_format, facts.color) == ("h264", "yuv420p", ("tv", "bt709"))
        assert facts.fps == pytest.approx(30000 / 1001, abs=1e-9)

    @pytest.mark.parametrize(
        ("arguments", "num_frames", "word"),
        [
            ((64, 48, 29.97), 6, "frames is 5, not 6"),
            ((64, 46, 29.97), 5, "size"),
            ((64, 48, 30), 5, "duration"),
            ((63, 48, 29.97), 5, "pixel format"),
        ],
    )
    def test_other_video_than_asked_for_is_refused(self, video, arguments, num_frames, word):
        with pytest.raises(EncodingFailed, match=word):
            verify_video(video, plan_encoding(*arguments, ".mp4"), num_frames)

    def test_video_without_colour_tags_is_refused(self, tmp_path):
        path = str(tmp_path / "plain.mp4")
        raw = smooth_frames(SPEC).tobytes()
        source = [
            "-f",
            "rawvideo",
            "-pixel_format",
            "rgb24",
            "-video_size",
            "64x48",
            "-framerate",
            "16",
            "-i",
            "pipe:0",
        ]
        sink = ["-pix_fmt", "yuv420p", "-c:v", "libx264", path]
        subprocess.run([find_ffmpeg().path, "-v", "error", *source, *sink], input=raw, check=True)
        with pytest.raises(EncodingFailed, match="colour"):
            verify_video(path, plan_encoding(64, 48, 16, ".mp4"), 5)

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
    def test_truncated_file_is_refused(self, video, share):
        os.truncate(video, int(os.path.getsize(video) * share))
        with pytest.raises(EncodingFailed):
            verify_video(video, plan_encoding(64, 48, 29.97, ".mp4"), 5)

    def test_playlist_that_points_elsewhere_is_not_followed(self, tmp_path):
        path = tmp_path / "list.mp4"
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
        with pytest.raises(EncodingFailed):
            verify_video(str(path), plan_encoding(64, 48, 16, ".mp4"), 5)

    def test_slow_reading_is_bounded(self, video, monkeypatch):
        argv = [sys.executable, str(PROGRAMS / "encoder_hung.py")]
        monkeypatch.setattr(read_back_module, "confined_argv", lambda *a, **k: argv)
        with pytest.raises(DeadlineExceeded):
            verify_video(video, plan_encoding(64, 48, 29.97, ".mp4"), 5, timeout_s=0.3)


@pytest.mark.parametrize("packets", ["", "#tb 0: 1/0\n0, 0, 0, 1, 1, 0x0", "#tb 0: 1/16\n"])
@pytest.mark.parametrize("said", ["", "  Stream #0:0: Audio: aac, 48000 Hz", "Video: h264, yuv420p"])
def test_words_without_a_video_give_no_facts(packets, said):
    assert read_facts(packets, said) is None
