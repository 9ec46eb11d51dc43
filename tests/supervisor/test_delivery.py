"""What happens to frames when their encoder fails: injected faults, and the rate at which the frames survive them."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shlex
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.supervisor.test_formats import decode, gradient, spec_of
from wan_compat.protocol.errors import (
    DiskExceeded,
    EncodingFailed,
    EnvironmentLacks,
    FfmpegMissing,
    JobCancelled,
    SandboxEntryFailed,
    WanCompatError,
)
from wan_compat.protocol.video import VideoOptions
from wan_compat.supervisor import (
    FormatConverter,
    delivery,
    encoder,
    frame_files,
    frame_rescue,
    read_back,
    rescue,
    sidecar,
)
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.delivery import prepare_delivery
from wan_compat.supervisor.encode_file import deliver, encode_file
from wan_compat.supervisor.ffmpeg import Ffmpeg, find_ffmpeg

PROGRAMS = Path(__file__).parents[1] / "programs"
FRAMES = gradient(64, 48, 6)
FRAME_BYTES = 64 * 48 * 3


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def views() -> Iterator[memoryview]:
    return (memoryview(frame) for frame in FRAMES)


def program(name: str, *arguments: object) -> Callable[..., list[str]]:
    return lambda *_, **__: [sys.executable, str(PROGRAMS / name), *map(str, arguments)]


class Faults:
    """Each makes the encoder fail in its way; `times` bounds how often, None is always."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def argv(self, replacement: Callable[..., list[str]], times: int | None = None) -> None:
        original, left = encoder.confined_argv, [times]

        def confined(*args, **kwargs):
            if left[0] is not None and left[0] <= 0:
                return original(*args, **kwargs)
            left[0] = None if left[0] is None else left[0] - 1
            return replacement(*args, **kwargs)

        self.patch.setattr(encoder, "confined_argv", confined)

    def quits(self, after_frames: float, words: str, status: int, times: int | None = None) -> None:
        self.argv(program("encoder_quits.py", int(after_frames * FRAME_BYTES), words, status), times)

    def codec_quits(self, *names: str) -> None:
        """Only these of ffmpeg's encoders are broken."""
        original, broken = encoder.confined_argv, program("encoder_quits.py", FRAME_BYTES, "broken", 1)
        self.patch.setattr(
            encoder,
            "confined_argv",
            lambda argv, **options: broken() if {*names} & {*argv} else original(argv, **options),
        )

    def hangs(self) -> None:
        self.patch.setattr(delivery, "STALL_S", 0.2)
        self.patch.setattr(frame_rescue, "RETRY_TIMEOUT_S", 0.3)
        self.argv(program("encoder_hung.py"))

    def missing(self) -> None:
        ready = find_ffmpeg()
        self.patch.setattr(encoder, "find_ffmpeg", lambda: Ffmpeg(f"{ready.path}-gone", "1", ready.encoders))
        self.patch.setattr(encoder, "confined_argv", lambda argv, **_: argv)

    def goes_missing(self, module: types.ModuleType) -> None:
        def find() -> Ffmpeg:
            raise FfmpegMissing("it was there a moment ago")

        self.patch.setattr(module, "find_ffmpeg", find)

    def lacks_codec(self) -> None:
        self.patch.setattr(delivery, "with_encoder", lambda config, _plan: config)
        self.patch.setattr(encoder, "find_ffmpeg", lambda: Ffmpeg(find_ffmpeg().path, "1", frozenset({"mpeg4"})))

    def unreadable(self, times: int | None = None) -> None:
        original, left = read_back.video_mismatches, [times]

        def mismatches(*args):
            if left[0] is None or left[0] > 0:
                left[0] = None if left[0] is None else left[0] - 1
                return ("the index is lost",)
            return original(*args)

        self.patch.setattr(read_back, "video_mismatches", mismatches)

    def small_files(self, size: int) -> None:
        original = encoder.encoder_limits

        def limits(*args):
            found = original(*args)
            return type(found)(found.memory_bytes, found.cpu_seconds, size)

        self.patch.setattr(encoder, "encoder_limits", limits)

    def slow_end(self) -> None:
        self.patch.setattr(frame_rescue, "RETRY_TIMEOUT_S", 0.3)
        self.patch.setattr(encoder.EncoderProcess, "_wait", lambda self, timeout_s: False)


FAULTS: dict[str, Callable[[Faults], None]] = {
    "missing": lambda f: f.missing(),
    "uninstalled before the first frame": lambda f: f.goes_missing(encoder),
    "uninstalled before it is read back": lambda f: f.goes_missing(read_back),
    "codec not built in": lambda f: f.lacks_codec(),
    "not confined": lambda f: f.quits(0, "wan-compat: no Landlock (try doctor)", 126),
    "dies at once": lambda f: f.quits(0, "broken", 1),
    "dies in the first frame": lambda f: f.quits(0.5, "broken", 1),
    "dies mid-way": lambda f: f.quits(3, "broken", 1),
    "dies in the last frame": lambda f: f.quits(5.5, "broken", 1),
    "dies after the last frame": lambda f: f.quits(6, "broken", 1),
    "dies once, mid-way": lambda f: f.quits(3, "broken", 1, times=1),
    "dies once, at the end": lambda f: f.quits(6, "broken", 1, times=1),
    "killed for memory": lambda f: f.quits(2, "Cannot allocate memory", 1),
    "disk full mid-way": lambda f: f.quits(2, "No space left on device", 228),
    "disk full at the end": lambda f: f.quits(6, "Error writing trailer: No space left on device", 228),
    "quota": lambda f: f.quits(6, "Disk quota exceeded", 228),
    "file size limit": lambda f: f.small_files(200),
    "hangs": lambda f: f.hangs(),
    "never ends": lambda f: f.slow_end(),
    "writes nonsense": lambda f: f.unreadable(),
    "writes nonsense once": lambda f: f.unreadable(times=1),
    "ends well but writes nothing": lambda f: f.quits(6, "", 0),
}
SURVIVED = {"dies once, mid-way", "dies once, at the end", "writes nonsense once"}


@contextlib.contextmanager
def injected(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[name](Faults(patch))
        yield


def outcome(name: str, folder: Path, suffix: str) -> tuple[str, Path | None]:
    """Return "video", "kept" or "lost", and where; under an injected fault."""
    try:
        with injected(name):
            timeout_s = 0.5 if name == "hangs" else 60.0
            report = encode_file(views(), spec_of(FRAMES), 16, folder / f"fox{suffix}", timeout_s=timeout_s)
    except WanCompatError as error:
        kept = error.details.get("kept")
        return ("kept", Path(kept)) if kept else ("lost", None)
    return "video", Path(report.path)


@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_of_the_encoder_costs_a_frame(name, tmp_path):
    kind, path = outcome(name, tmp_path, ".mkv")
    assert kind == ("video" if name in SURVIVED else "kept")
    assert (decode(path, FRAMES.shape) == FRAMES).all()
    assert not [left for left in os.listdir(tmp_path) if left.endswith(".part") or left.startswith(".")]


def test_success_with_fallback_over_injected_faults_is_at_least_95_percent(tmp_path, capsys):
    """Frames that can be had again, byte for byte, whatever the encoder does. The rate is printed."""
    cases = list(zip(FAULTS, itertools.cycle((".mp4", ".gif", ".webm", ".mp4"))))
    good = 0
    for index, (name, suffix) in enumerate(cases):
        folder = tmp_path / str(index)
        folder.mkdir()
        kind, path = outcome(name, folder, suffix)
        good += kind == "video" or (kind == "kept" and (decode(path, FRAMES.shape) == FRAMES).all())
    with capsys.disabled():
        print(f"\nencoding success with fallback: {good} of {len(cases)} injected faults ({good / len(cases):.0%})")
    assert good / len(cases) >= 0.95


def test_the_error_says_where_the_frames_are_and_its_command_finishes_the_video(tmp_path):
    with injected("dies mid-way"), pytest.raises(EncodingFailed, match="all 6 frames are kept") as caught:
        encode_file(views(), spec_of(FRAMES), 29.97, tmp_path / "fox.mkv")
    assert caught.value.exit_code == 8
    command = caught.value.details["finish"]
    assert command == f"wan-compat encode {tmp_path}/fox.mkv.frames --output {tmp_path}/fox.mkv"
    assert command in caught.value.fixes[0]
    assert [step["action"] for step in caught.value.details["recovery"]] == [
        "encoded again from the kept frames",
        "kept the frames",
    ]
    result = FormatConverter().convert(tmp_path / "fox.mkv.frames", tmp_path / "fox.mkv")
    assert result.report.fps == pytest.approx(30000 / 1001)
    assert (decode(tmp_path / "fox.mkv", FRAMES.shape) == FRAMES).all()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("disk full mid-way", DiskExceeded),
        ("not confined", SandboxEntryFailed),
        ("codec not built in", EnvironmentLacks),
    ],
)
def test_the_error_keeps_its_kind(name, error, tmp_path):
    with injected(name), pytest.raises(error):
        encode_file(views(), spec_of(FRAMES), 16, tmp_path / "fox.mp4")


def test_where_pictures_have_no_room_the_copy_itself_stays(tmp_path, monkeypatch):
    def full(*_, **__):
        raise DiskExceeded("no room")

    with injected("dies mid-way"), pytest.raises(EncodingFailed) as caught:
        with prepare_delivery(tmp_path / "fox.mkv", spec_of(FRAMES), 16) as output:
            monkeypatch.setattr(frame_rescue, "prepare_folder", full)
            deliver(output, views(), timeout_s=60)
    assert caught.value.details["kept"] == str(tmp_path / "fox.mkv.frames.npy")
    assert (np.load(tmp_path / "fox.mkv.frames.npy") == FRAMES).all()
    assert FormatConverter().convert(tmp_path / "fox.mkv.frames.npy", tmp_path / "fox.mkv").report.fps == 16


@pytest.mark.parametrize("name", ["frames", "one.png"])
def test_pictures_that_fill_the_disk_cost_no_frame(name, tmp_path, monkeypatch):
    frames = FRAMES if name == "frames" else FRAMES[:1]
    options = VideoOptions(format="png" if name == "frames" else None)
    written = []

    def full(*args, **_):
        written.append(args)
        if len(written) >= len(frames):
            raise frame_files.disk_error(OSError(errno.ENOSPC, "No space left on device"), "frame")

    with pytest.raises(DiskExceeded, match="are kept") as caught:
        with prepare_delivery(tmp_path / name, spec_of(frames), 16, options) as output:
            with monkeypatch.context() as patch:
                patch.setattr(frame_files.PngWriter, "_write_picture", full)
                output.start()
                patch.setattr(frame_rescue, "prepare_folder", full)
                patch.setattr(output, "start", lambda _: None)
                deliver(output, [memoryview(frame) for frame in frames], timeout_s=60)
    assert (np.load(caught.value.details["kept"]) == frames).all()
    command = shlex.split(caught.value.details["finish"])
    assert command[:2] == ["wan-compat", "encode"]
    assert command[3:] == ["--output", str(tmp_path / name), *(["--format", "png"] if name == "frames" else [])]
    assert FormatConverter(options).convert(command[2], command[4]).report.num_frames == len(frames)


def test_an_array_has_its_room_before_the_first_frame(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(frame_files.os, "posix_fallocate", full)
    with prepare_delivery(tmp_path / "fox.npy", spec_of(FRAMES), 16) as output:
        with pytest.raises(DiskExceeded, match="No space left"):
            output.start()
    assert os.listdir(tmp_path) == []


def test_a_survived_failure_is_told(tmp_path):
    with injected("dies once, mid-way"), prepare_delivery(tmp_path / "fox.mp4", spec_of(FRAMES), 16) as output:
        deliver(output, views(), timeout_s=60)
        output.commit()
    assert [(step["action"], step["outcome"]) for step in output.recovery] == [
        ("encoded again from the kept frames", "succeeded")
    ]


def test_a_codec_that_nobody_asked_for_by_name_gives_way_to_the_next_one(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        Faults(patch).codec_quits("libx264")
        with prepare_delivery(tmp_path / "fox.mp4", spec_of(FRAMES), 16) as output:
            deliver(output, views(), timeout_s=60)
            report = output.commit()
        assert (report.codec, report.num_frames) == ("hevc", len(FRAMES))
        assert [step["outcome"][:6] for step in output.recovery] == ["failed", "succee"]
        assert any("H.265" in warning and "H.264 failed" in warning for warning in output.warnings)
        named = VideoOptions(codec="h264")
        with prepare_delivery(tmp_path / "named.mp4", spec_of(FRAMES), 16, named) as output:
            with pytest.raises(EncodingFailed):
                deliver(output, views(), timeout_s=60)


def test_each_codec_of_the_container_is_tried(tmp_path):
    # Of those of an MP4, in their order, that this ffmpeg has: some builds have no libsvtav1.
    known = {"libx264": "h264", "libx265": "hevc", "libsvtav1": "av1"}
    *broken, last = (name for name in known if name in find_ffmpeg().encoders)
    with pytest.MonkeyPatch.context() as patch:
        Faults(patch).codec_quits(*broken)
        with prepare_delivery(tmp_path / "fox.mp4", spec_of(FRAMES), 16) as output:
            deliver(output, views(), timeout_s=60)
            report = output.commit()
    assert (report.codec, report.num_frames) == (known[last], len(FRAMES))
    assert [step["outcome"][:6] for step in output.recovery] == ["failed"] * len(broken) + ["succee"]


def test_an_ffmpeg_without_the_usual_encoder_uses_another_and_says_so(tmp_path, monkeypatch):
    ready = find_ffmpeg()
    lacking = Ffmpeg(ready.path, ready.version, ready.encoders - {"libx264"})
    monkeypatch.setattr(rescue, "find_ffmpeg", lambda: lacking)
    with prepare_delivery(tmp_path / "fox.mp4", spec_of(FRAMES), 16) as output:
        assert output.config.codec == "h265" and any("libx264" in warning for warning in output.warnings)
    with pytest.raises(EnvironmentLacks):
        prepare_delivery(tmp_path / "fox.mp4", spec_of(FRAMES), 16, VideoOptions(codec="h264"))
    monkeypatch.setattr(rescue, "find_ffmpeg", lambda: Ffmpeg(ready.path, ready.version, frozenset()))
    with pytest.raises(EnvironmentLacks):
        prepare_delivery(tmp_path / "fox.mp4", spec_of(FRAMES), 16)


def elsewhere(folder: Path) -> Callable[[str], Any]:
    """Another disk, as far as anybody can see."""

    @contextlib.contextmanager
    def room(_beside: str) -> Iterator[str]:
        place = folder / "video.part"
        place.touch()
        yield str(place)
        place.unlink(missing_ok=True)

    return room


def test_a_full_disk_gets_its_video_from_another_one(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(frame_rescue, "room_elsewhere", elsewhere(tmp_path_factory.mktemp("other")))
    with pytest.MonkeyPatch.context() as patch:
        Faults(patch).quits(2, "No space left on device", 228, times=1)
        with prepare_delivery(tmp_path / "fox.mkv", spec_of(FRAMES), 16) as output:
            deliver(output, views(), timeout_s=60)
            output.commit()
    assert (decode(tmp_path / "fox.mkv", FRAMES.shape) == FRAMES).all()
    assert [step["outcome"] for step in output.recovery] == ["succeeded"]
    assert os.listdir(tmp_path) == ["fox.mkv"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_copy_of_frames_that_fills_the_disk_goes_for_the_video_that_is_made_of_it(
    tmp_path, tmp_path_factory, monkeypatch, times
):
    """And should even that not be enough, the video stays where it is whole."""
    moved, original = [], rescue._move

    def move(path: str, place: str) -> None:
        moved.append(sorted(name.rpartition(".")[2] for name in os.listdir(tmp_path)))
        if len(moved) <= times:
            raise DiskExceeded("no room")
        original(path, place)

    other = tmp_path_factory.mktemp("other")
    monkeypatch.setattr(frame_rescue, "room_elsewhere", elsewhere(other))
    monkeypatch.setattr(rescue, "_move", move)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        Faults(patch).quits(2, "No space left on device", 228, times=1)
        caught = stack.enter_context(pytest.raises(DiskExceeded)) if times == 2 else None
        with prepare_delivery(tmp_path / "fox.mkv", spec_of(FRAMES), 16) as output:
            deliver(output, views(), timeout_s=60)
            output.commit()
    assert moved == [["npy", "part"], ["part"]]  # the copy, the reserved file
    whole = tmp_path / "fox.mkv" if caught is None else Path(caught.value.details["kept"])
    assert (decode(whole, FRAMES.shape) == FRAMES).all()


def test_without_room_for_a_copy_the_risk_is_told_and_the_encoders_error_is_the_jobs(tmp_path, monkeypatch):
    monkeypatch.setattr(delivery, "reserve_spill", lambda *_: None)
    with injected("dies mid-way"), prepare_delivery(tmp_path / "fox.mp4", spec_of(FRAMES), 16) as output:
        with pytest.raises(EncodingFailed, match="broken"):
            deliver(output, views(), timeout_s=60)
        assert any("no room for a copy" in warning for warning in output.warnings)
    assert os.listdir(tmp_path) == []


def test_a_copy_is_not_claimed_where_the_disk_has_no_room(tmp_path, monkeypatch):
    from wan_compat.supervisor import spill

    monkeypatch.setattr(spill, "SPARE_BYTES", 1 << 62)
    assert spill.reserve_spill(str(tmp_path / "fox.mp4"), spec_of(FRAMES)) is None
    assert os.listdir(tmp_path) == []


def test_a_sidecar_that_cannot_be_written_is_a_warning(tmp_path):
    with prepare_delivery(tmp_path / "fox.mp4", spec_of(FRAMES), 16) as output:
        deliver(output, views(), timeout_s=60)
        report = output.commit()
        (tmp_path / "fox.mp4.json").mkdir()
        output.write_sidecar({}, report)
    assert any("sidecar" in warning for warning in output.warnings)
    assert (tmp_path / "fox.mp4").is_file()


def test_a_document_of_somebody_else_is_not_replaced_and_an_old_sidecar_is(tmp_path):
    from wan_compat.protocol.errors import OutputExists

    (tmp_path / "fox.mp4.json").write_text('{"mine": true}')
    with pytest.raises(OutputExists, match="no sidecar"):
        prepare_delivery(tmp_path / "fox.mp4", spec_of(FRAMES), 16)
    assert os.listdir(tmp_path) == ["fox.mp4.json"]
    (tmp_path / "fox.mp4.json").write_text(json.dumps({"schema_version": 1, "kind": sidecar.KIND}))
    encode_file(views(), spec_of(FRAMES), 16, tmp_path / "fox.mp4", document={})
    assert json.loads((tmp_path / "fox.mp4.json").read_text())["video"]["num_frames"] == 6


@pytest.mark.parametrize("preview", ["file", "file/below", "\0"])
def test_a_preview_folder_that_cannot_be_is_refused_before_anything_starts(preview, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((WanCompatError, ValueError)):
        prepare_delivery(tmp_path / "f.mp4", spec_of(FRAMES), 16, VideoOptions(preview=str(tmp_path / preview)))
    assert os.listdir(tmp_path) == ["file"]


def peak_kib_of(work: Callable[[], object]) -> int:
    """Return the most memory that this process had resident during `work`."""
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_a_thousand_frames_of_a_job_come_through_ring_and_encoder_exactly_and_memory_stays_flat(
    misbehaving, request_for, tmp_path
):
    """A confined worker, the ring, the confined encoder, the copy on disk; frame after frame of another grey."""
    supervisor = misbehaving("well")

    def generate(count: int) -> None:
        name = str(tmp_path / f"{count}.mkv")
        result = supervisor.generate(request_for(num_frames=count, height=96, width=160, output=name, overwrite=True))
        assert (result.output.num_frames, result.recovery) == (count, [])

    generate(49)  # what is needed once: imports, the zygote, the worker
    few = peak_kib_of(lambda: generate(49))
    grown_kib = peak_kib_of(lambda: generate(1001)) - few
    assert grown_kib < 4096  # all 1001 frames are 46 MB
    frames = decode(tmp_path / "1001.mkv", (0, 96, 160, 3))
    assert frames.shape[0] == 1001
    assert (frames == (np.arange(1001) % 256).astype(np.uint8)[:, None, None, None]).all()


def test_a_job_whose_encoder_dies_keeps_its_frames_and_its_worker(misbehaving, request_for, tmp_path):
    supervisor = misbehaving("well")
    with injected("dies mid-way"), pytest.raises(EncodingFailed, match="all 9 frames are kept") as caught:
        supervisor.generate(request_for())
    assert len(os.listdir(caught.value.details["kept"])) == 9
    result = supervisor.generate(request_for(output=str(tmp_path / "again.webm"), quality="draft"))
    assert result.output.codec == "vp9" and result.recovery == []
    document = json.loads((tmp_path / "again.webm.json").read_text())
    assert document["request"]["quality"] == "draft" and document["video"]["sha256"] == result.output.sha256


@pytest.mark.parametrize("frames", [9, 97], ids=["while its end is waited for", "while it takes no frame"])
def test_a_cancel_ends_a_second_encoding_that_hangs(frames, misbehaving, request_for, tmp_path):
    """The first encoder dies, the second takes nothing; 9 frames fit into its pipe, 97 do not."""
    supervisor, second, stuck = misbehaving("well"), threading.Event(), threading.Event()
    write, wait = encoder.EncoderProcess.write_some, encoder.EncoderProcess._wait

    def hung(*arguments, **options):
        second.set()
        return program("encoder_hung.py")()

    def write_some(self, view):
        count = write(self, view)
        if second.is_set() and not count:
            stuck.set()
        return count

    def wait_for_end(self, timeout_s):
        if second.is_set():
            stuck.set()
        return wait(self, timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        faults.argv(hung)
        faults.quits(3, "broken", 1, times=1)
        patch.setattr(encoder.EncoderProcess, "write_some", write_some)
        patch.setattr(encoder.EncoderProcess, "_wait", wait_for_end)
        job = supervisor.submit(request_for(num_frames=frames, height=96, width=160))
        assert stuck.wait(30)
        asked = time.monotonic()
        job.cancel()
        with pytest.raises(JobCancelled):
            job.result(timeout=20)
        assert time.monotonic() - asked < 10  # of the half hour that a second encoding may take
    assert os.listdir(tmp_path) == []


def test_without_ffmpeg_a_job_is_refused_before_it_costs_anything_and_the_way_that_it_names_works(
    misbehaving, request_for, tmp_path, monkeypatch
):
    supervisor = misbehaving("well")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    with pytest.raises(FfmpegMissing) as caught:
        supervisor.generate(request_for())
    folder = tmp_path / "video"
    assert "--format png; `wan-compat encode` makes the video" in caught.value.fixes[-1]
    assert os.listdir(tmp_path) == [] and supervisor.status().workers == ()
    assert supervisor.generate(request_for(output=str(folder), format="png")).output.num_frames == 9
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    report = FormatConverter().convert(folder, f"{folder}.mp4").report
    assert (report.num_frames, report.fps) == (9, 16)


def test_previews_stand_in_their_folder_while_the_job_still_runs(misbehaving, request_for, tmp_path):
    job = misbehaving("well").submit(request_for(preview=str(tmp_path / "frames")))
    seen = []
    for event in job.events():
        seen.append(type(event))
        if isinstance(event, ev.Preview):
            assert decode(Path(event.path), (1, 64, 96, 3)).max() == event.index
    assert seen.count(ev.Preview) == 9
    assert max(index for index, kind in enumerate(seen) if kind is ev.Preview) < seen.index(ev.Encoded)


def test_a_job_survives_an_encoder_that_dies_once(misbehaving, request_for, tmp_path):
    with injected("dies once, at the end"):
        result = misbehaving("well").generate(request_for())
    assert [step["outcome"] for step in result.recovery] == ["succeeded"]
    assert json.loads((tmp_path / "video.mp4.json").read_text())["result"]["recovery"] == result.recovery
