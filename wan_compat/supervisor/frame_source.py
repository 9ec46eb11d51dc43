"""Reading frames back from what we write: videos, animations, folders of pictures, arrays. One frame at a time.

A file may be anybody's. Arrays are read here by their size; everything else is decoded by a confined ffmpeg that is
told which format to expect, may read this file alone, and whose output is counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import select
import subprocess
import threading
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from wan_compat.policies.encoding import Format, VideoFacts, exact_frame_rate, format_for
from wan_compat.protocol.errors import DeadlineExceeded, InvalidRequest, clean_text
from wan_compat.protocol.values import MAX_FRAMES, MAX_SIDE, FrameSpec
from wan_compat.sandbox.confined_exec import confined_argv
from wan_compat.supervisor import sidecar
from wan_compat.supervisor.encoder import library_paths
from wan_compat.supervisor.ffmpeg import find_ffmpeg
from wan_compat.supervisor.frame_files import npy_frames, read_npy_header
from wan_compat.supervisor.read_back import read_facts, run_confined
from wan_compat.supervisor.webp_container import read_webp

DECODER_MEMORY_BYTES = 4 << 30
SILENCE_S = 60.0
_READ_BYTES = 1 << 20
_DECODERS = {".png": "png", ".jpg": "mjpeg", ".jpeg": "mjpeg"}


@dataclasses.dataclass(frozen=True)
class FrameSource:
    """Frames that can be read. `fps` is None where neither the file nor its sidecar says it.

    `document` is the sidecar beside it; `stale` says that this is about a file that lay there before, and counts for
    nothing.
    """

    path: str
    format: Format
    frames: FrameSpec
    fps: float | None
    document: Mapping[str, Any] | None  # the sidecar
    pictures: tuple[str, ...] = ()
    stale: bool = False

    def read(self) -> Generator[memoryview]:
        """Yield each frame, valid until the next.

        Raises:
            InvalidRequest: The file cannot be decoded, or has other frames than it said.
            DeadlineExceeded: The decoder is silent.
        """
        if self.format.name == "npy":
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                frames, offset = read_npy_header(descriptor, self.path)
                yield from npy_frames(descriptor, frames, offset)
            finally:
                os.close(descriptor)
        else:
            yield from self._decoded()

    def _decoded(self) -> Generator[memoryview]:
        ffmpeg = find_ffmpeg()
        rate: tuple[str, ...] = ("-fps_mode", "passthrough")
        if self.format.name == "webp" and self.fps and self.frames.num_frames > 1:
            # Repeated frames were merged into one that stays; the rate brings them back.
            exact = exact_frame_rate(self.fps)
            rate = ("-fps_mode", "cfr", "-r", f"{exact.numerator}/{exact.denominator}")
        arguments = [
            *("-hide_banner", "-nostats", "-loglevel", "error", "-xerror", "-protocol_whitelist", "file,pipe"),
            *_input(self.format, self.path, self.pictures, self.frames.num_frames),
            *("-map", "0:v:0", "-vf", "scale=flags=accurate_rnd+full_chroma_int+bicubic,format=rgb24", *rate),
            *("-f", "rawvideo", "pipe:1"),
        ]
        argv = confined_argv(
            [ffmpeg.path, *arguments],
            read_paths=[*([] if self.pictures else [self.path]), *library_paths(ffmpeg.path)],
            write_files=[],
            memory_bytes=DECODER_MEMORY_BYTES,
            cpu_seconds=60 + self.frames.num_frames * self.frames.height * self.frames.width // 100_000,
            file_size_bytes=0,
        )
        with _decoder(argv, self.pictures) as process:
            yield from self._frames_of(process)

    def _frames_of(self, process: subprocess.Popen[bytes]) -> Iterator[memoryview]:
        assert process.stdout is not None
        buffer = bytearray(self.frames.frame_bytes)
        for index in range(self.frames.num_frames):
            done = 0
            while done < len(buffer):
                if not select.select([process.stdout], [], [], SILENCE_S)[0]:
                    raise DeadlineExceeded(f"reading {self.path!r}: ffmpeg was silent for {SILENCE_S:g} s")
                with memoryview(buffer)[done:] as rest:
                    count = os.readv(process.stdout.fileno(), [rest[:_READ_BYTES]])
                if not count:
                    raise self._too_short(process, index)
                done += count
            yield memoryview(buffer)

    def _too_short(self, process: subprocess.Popen[bytes], index: int) -> InvalidRequest:
        assert process.stderr is not None
        said = clean_text(process.stderr.read(4000).decode("utf-8", "replace").strip())
        if "Unknown input format" in said:
            return InvalidRequest(
                f"this ffmpeg cannot read {self.path!r}: animated WebP needs version 8 or newer",
                hint="unset IMAGEIO_FFMPEG_EXE to use the bundled ffmpeg, or upgrade imageio-ffmpeg",
            )
        return InvalidRequest(
            f"{self.path!r} could be decoded up to frame {index} of {self.frames.num_frames} only"
            + (f": {said}" if said else "")
        )


def open_source(path: str | os.PathLike[str]) -> FrameSource:
    """Find out what a file or folder of ours holds. Reads headers and the sidecar, decodes nothing.

    Raises:
        InvalidRequest: It is not there, not one of our formats, or beyond the limits.
    """
    path = os.path.abspath(os.fspath(path))
    document = sidecar.find(path)
    if os.path.isdir(path):
        return _folder(path, document)
    if not os.path.isfile(path):
        raise InvalidRequest(f"{path!r} is not there", hint="check the path")
    form = format_for(os.path.splitext(path)[1])
    stale = document is not None and not sidecar.may_be_about(document, os.path.getsize(path))
    fps = None if stale else _fps(document)
    if form.name == "npy":
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            frames, _ = read_npy_header(descriptor, path)
        finally:
            os.close(descriptor)
        return FrameSource(path, form, frames, fps, document, stale=stale)
    facts = file_facts(path, form)
    num_frames = facts.num_frames
    if form.name == "webp" and document is not None and not stale:
        num_frames = _frames_asked(document) or num_frames
    if fps is None and facts.num_frames > 1 and not form.plain_time:
        fps = float(exact_frame_rate(round(facts.fps, 2)))
    spec = _spec(facts.width, facts.height, num_frames, path)
    return FrameSource(path, form, spec, fps, document, stale=stale)


def file_facts(path: str, form: Format) -> VideoFacts:
    """Read what a file says of itself. Raises InvalidRequest where it is not of that format."""
    if form.name == "webp":
        webp = read_webp(path)
        if webp is None:
            raise InvalidRequest(f"{path!r} is no WebP")
        return webp
    said = ""
    for demuxer in filter(None, (form.demuxer, form.still_demuxer)):
        finished = run_confined(
            [
                *("-hide_banner", "-nostdin", "-nostats", "-loglevel", "info", "-protocol_whitelist", "file,pipe"),
                *("-f", demuxer, "-i", f"file:{path}", "-map", "0:v:0", "-c", "copy", "-f", "framecrc", "pipe:1"),
            ],
            path,
        )
        said = finished.stderr.decode("utf-8", "replace")
        facts = None if finished.returncode else read_facts(finished.stdout.decode("ascii", "replace"), said)
        if facts is not None:
            return facts
    raise InvalidRequest(f"{path!r} is no {form.label}: {clean_text(said.strip()[-300:])}")


def _folder(path: str, document: Mapping[str, Any] | None) -> FrameSource:
    names = sorted(name for name in os.listdir(path) if re.fullmatch(r"frame_\d{6}\.(png|jpg|jpeg)", name))
    suffixes = {os.path.splitext(name)[1] for name in names}
    if len(suffixes) != 1:
        raise InvalidRequest(f"{path!r} holds no pictures named frame_000001.png and so on", hint="name such a folder")
    if len(names) > MAX_FRAMES:
        raise InvalidRequest(f"{path!r} holds {len(names)} pictures, more than {MAX_FRAMES}")
    form = format_for(suffixes.pop())
    paths = tuple(os.path.join(path, name) for name in names)
    facts = file_facts(paths[0], form)
    return FrameSource(path, form, _spec(facts.width, facts.height, len(names), path), _fps(document), document, paths)


def _spec(width: int, height: int, num_frames: int, path: str) -> FrameSpec:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and 1 <= num_frames <= MAX_FRAMES):
        raise InvalidRequest(f"{path!r} has {num_frames} frames of {width}x{height}, beyond the limits")
    return FrameSpec(width=width, height=height, num_frames=num_frames)


def _fps(document: Mapping[str, Any] | None) -> float | None:
    for part in ("video", "frames"):
        inner = document.get(part) if document else None
        fps = inner.get("fps") if isinstance(inner, Mapping) else None
        if isinstance(fps, int | float) and not isinstance(fps, bool) and 0 < fps <= 240:
            return float(fps)
    return None


def _frames_asked(document: Mapping[str, Any]) -> int | None:
    """Return how many frames were made, where a file has fewer because it merged some."""
    request = document.get("request")
    value = request.get("num_frames") if isinstance(request, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_FRAMES else None


def _input(form: Format, path: str, pictures: tuple[str, ...], num_frames: int) -> list[str]:
    if pictures:
        decoder = _DECODERS[os.path.splitext(pictures[0])[1]]
        return ["-f", "image2pipe", "-c:v", decoder, "-i", "pipe:0"]
    demuxer = form.still_demuxer if num_frames == 1 and form.still_demuxer else form.demuxer
    return ["-nostdin", "-f", demuxer, "-i", f"file:{path}"]


@contextlib.contextmanager
def _decoder(argv: list[str], pictures: tuple[str, ...]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a decoder, fed with pictures by a thread where it needs that; killed and reaped at the end."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE if pictures else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
        cwd="/",
        start_new_session=True,
        bufsize=0,
    )
    feeder = threading.Thread(target=_feed, args=(process, pictures), daemon=True) if pictures else None
    if feeder is not None:
        feeder.start()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if feeder is not None:
            feeder.join(10)
        for stream in (process.stdout, process.stderr, process.stdin):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _feed(process: subprocess.Popen[bytes], pictures: tuple[str, ...]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # the decoder ended; it says why
        for path in pictures:
            with open(path, "rb") as file:
                while chunk := file.read(_READ_BYTES):
                    view = memoryview(chunk)
                    while view:
                        view = view[process.stdin.write(view) or 0 :]
        process.stdin.close()
