"""Reading a written file back: is it what was asked for? Packets only, nothing is decoded, in a confined ffmpeg."""

from __future__ import annotations

import re
from fractions import Fraction

from wan_compat.policies.encoding import EncodingConfig, VideoFacts, verify_arguments, video_mismatches
from wan_compat.protocol.errors import DeadlineExceeded, EncodingFailed, clean_text
from wan_compat.protocol.results import OutputReport
from wan_compat.sandbox.confined_exec import confined_argv
from wan_compat.supervisor.encoder import library_paths, understand
from wan_compat.supervisor.ffmpeg import Ffmpeg, Finished, find_ffmpeg, run_bounded
from wan_compat.supervisor.outputs import CommittedOutput
from wan_compat.supervisor.webp_container import read_webp

VERIFY_TIMEOUT_S = 60.0
MAX_VERIFY_BYTES = 4 << 20
VERIFY_MEMORY_BYTES = 1 << 30


def verify_video(
    path: str,
    config: EncodingConfig,
    num_frames: int,
    *,
    timeout_s: float = VERIFY_TIMEOUT_S,
    ffmpeg: Ffmpeg | None = None,
) -> VideoFacts:
    """Read a written file back and compare it with what was asked for. Blocks for some 50 ms.

    The container is read, packet by packet; nothing is decoded. That finds a lost index, lost frames, a wrong size,
    rate or colour tag. It does not find a picture that is wrong.

    Raises:
        EncodingFailed: The file cannot be read, or is something else.
        SandboxEntryFailed: ffmpeg could not be confined.
        DeadlineExceeded: Reading it took longer than `timeout_s`.
    """
    facts = read_webp(path) if config.format.name == "webp" else _facts_of(path, config, timeout_s, ffmpeg)
    wrong = ("it has no readable video stream",) if facts is None else video_mismatches(config, num_frames, facts)
    if facts is None or wrong:
        raise EncodingFailed(f"{path!r} is not the video that was asked for: {'; '.join(wrong)}")
    return facts


def _facts_of(path: str, config: EncodingConfig, timeout_s: float, ffmpeg: Ffmpeg | None) -> VideoFacts | None:
    finished = run_confined(verify_arguments(config, path), path, timeout_s=timeout_s, ffmpeg=ffmpeg)
    said = finished.stderr.decode("utf-8", "replace")
    if finished.returncode:
        raise understand(finished.returncode, said, f" while reading {path!r} back: {clean_text(said[-2000:])}")
    return read_facts(finished.stdout.decode("ascii", "replace"), said)


def run_confined(
    arguments: list[str],
    path: str,
    *,
    timeout_s: float = VERIFY_TIMEOUT_S,
    max_bytes: int = MAX_VERIFY_BYTES,
    ffmpeg: Ffmpeg | None = None,
) -> Finished:
    """Let a confined ffmpeg read one file and write to its standard output.

    Raises:
        EncodingFailed: It could not be started.
        DeadlineExceeded: It took longer than `timeout_s`.
    """
    ffmpeg = ffmpeg or find_ffmpeg()
    argv = confined_argv(
        [ffmpeg.path, *arguments],
        read_paths=[path, *library_paths(ffmpeg.path)],
        write_files=[],
        memory_bytes=VERIFY_MEMORY_BYTES,
        cpu_seconds=int(timeout_s) + 1,
        file_size_bytes=0,
    )
    try:
        return run_bounded(argv, timeout_s=timeout_s, max_bytes=max_bytes)
    except TimeoutError as error:
        raise DeadlineExceeded(f"reading {path!r} back: {error}") from error
    except OSError as error:
        raise EncodingFailed(f"{argv[0]!r} could not be started: {error.strerror}") from error


def read_facts(packets: str, said: str) -> VideoFacts | None:
    """Understand ffmpeg's framecrc output and its description of the input; None if there is no video in it.

        #tb 0: 1/30000                                                        the unit of the times below
        0,      -2002,          0,     1001,    56089, 0xb82bb246             stream, dts, pts, duration, bytes, crc
        Stream #0:0[0x1](und): Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709, progressive), 1280x720, ...

    The rate comes from the durations, since the description rounds it to two decimals.
    """
    tick = re.search(r"^#tb 0: (\d{1,12})/(\d{1,12})$", packets, re.MULTILINE)
    stream = re.search(
        r"^ *Stream #0:\d+\b.*?: Video: (?P<codec>\w+)\b.*?, (?P<pixels>[a-z]\w+)(?:\((?P<color>[^)]*)\))?, "
        r"(?P<width>\d{1,6})x(?P<height>\d{1,6})\b",
        said,
        re.MULTILINE,
    )
    if tick is None or stream is None or int(tick[2]) == 0:
        return None
    unit = Fraction(int(tick[1]), int(tick[2]))
    found = _packets(packets, 0)
    color = tuple(word for word in (stream["color"] or "").split(", ") if word not in ("", "progressive"))
    sound = re.search(r"^ *Stream #0:\d+\b.*?: Audio: (\w+)", said, re.MULTILINE)
    sound_tick = re.search(r"^#tb 1: (\d{1,12})/([1-9]\d{0,11})$", packets, re.MULTILINE)
    return VideoFacts(
        codec=stream["codec"],
        pixel_format=stream["pixels"],
        color=color,
        width=int(stream["width"]),
        height=int(stream["height"]),
        num_frames=len(found),
        duration=_span(found) * unit,
        tick=unit,
        audio=sound[1] if sound else "",
        audio_duration=_span(_packets(packets, 1)) * Fraction(int(sound_tick[1]), int(sound_tick[2]))
        if sound_tick
        else Fraction(0),
        packet_bytes=tuple(size for _, _, size in found),
    )


def _packets(text: str, stream: int) -> list[tuple[int, int, int]]:
    """Return (pts, duration, bytes) of each packet of one stream."""
    line = rf"^{stream}, *-?\d+, *(-?\d{{1,18}}), *(\d{{1,15}}), *(\d{{1,12}}),"
    return [(int(pts), int(length), int(size)) for pts, length, size in re.findall(line, text, re.MULTILINE)]


def _span(packets: list[tuple[int, int, int]]) -> int:
    """Return the ticks from the first frame's begin to the last one's end. Not the sum of the durations, which some
    containers round for each frame."""
    if not packets:
        return 0
    ordered = sorted(packets)
    return ordered[-1][0] + ordered[-1][1] - ordered[0][0]


def output_report(path: str, config: EncodingConfig, facts: VideoFacts, committed: CommittedOutput) -> OutputReport:
    """Put together what was read back from a file and what was committed. The rate is the planned one, with which what
    was read agrees as far as the container can tell."""
    return OutputReport(
        path=path,
        codec=facts.codec,
        width=facts.width,
        height=facts.height,
        fps=float(config.frame_rate),
        num_frames=facts.num_frames,
        sha256=committed.sha256,
        bytes=committed.bytes,
    )
