"""The encoder: one ffmpeg process per video, confined, fed with raw frames, and never waited for without a bound.

    supervisor                                     ffmpeg (own session, empty environment, one writable file)
        |  spawn_encoder, as early as the job starts   |  starts while the worker is still busy
        |  write_some  -- 1 MiB pipe, rgb24 ---------> |  encodes while the worker decodes
        |  drain_log   <-- its complaints ------------ |
        |  finish: end of input, wait ---------------> |  writes the index, exits
        |  verify_video: read the container back       |

Everything that a supervisor's loop calls between spawn and finish returns at once: the pipe is non-blocking on our
side, so that a hung ffmpeg costs its own job and nobody else's. Poll `fileno()` for room, `log_fileno()` for text and
`pidfd` for its death. `encode_file` is all of it in one blocking call, for benchmarks and tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from fractions import Fraction
from types import TracebackType

from wan_compat.policies.encoding import (
    EncodingConfig,
    VideoFacts,
    encoder_limits,
    ffmpeg_arguments,
    plan_encoding,
    verify_arguments,
    video_mismatches,
)
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    DiskExceeded,
    EncodingFailed,
    EnvironmentLacks,
    MemoryExceeded,
    SandboxEntryFailed,
    WanCompatError,
    clean_text,
)
from wan_compat.protocol.results import OutputReport
from wan_compat.protocol.values import FrameSpec
from wan_compat.sandbox.confined_exec import EXIT_NOT_CONFINED, confined_argv
from wan_compat.supervisor.ffmpeg import Ffmpeg, find_ffmpeg, run_bounded
from wan_compat.supervisor.outputs import CommittedOutput, OutputTarget, prepare_output

PIPE_BYTES = 1 << 20
LOG_TAIL_BYTES = 16 << 10
# Beyond 16 threads x264 takes memory and loses quality, and gains nothing at the sizes of Wan.
MAX_THREADS = 16
VERIFY_TIMEOUT_S = 60.0
MAX_VERIFY_BYTES = 4 << 20
VERIFY_MEMORY_BYTES = 1 << 30

# How long a process whose end of the pipe is already closed gets to say why and exit.
_LAST_WORDS_S = 0.25
_REAP_TIMEOUT_S = 10.0
_SIGNAL_NAMES = {number.value: number.name for number in signal.Signals}
_NO_SPACE = ("No space left on device", "Disk quota exceeded", "File too large")
_NO_MEMORY = ("Cannot allocate memory", "malloc of size")  # the second is x264's own


def spawn_encoder(
    config: EncodingConfig, num_frames: int, target: OutputTarget, *, ffmpeg: Ffmpeg | None = None
) -> EncoderProcess:
    """Start the confined ffmpeg that writes `target.part_path`. Takes a few milliseconds, once ffmpeg was found.

    Call it from a thread that lives as long as the encoder: the kernel ends a confined process with the thread that
    started it.

    Raises:
        FfmpegMissing: There is no ffmpeg.
        EnvironmentLacks: This ffmpeg was built without the codec's encoder.
        EncodingFailed: It could not be started.
    """
    ffmpeg = ffmpeg or find_ffmpeg()
    width, height = config.resolution
    threads = encoder_threads()
    arguments = ffmpeg_arguments(config, target.part_path, threads=threads)
    encoder = arguments[arguments.index("-c:v") + 1]
    if encoder not in ffmpeg.encoders:
        raise EnvironmentLacks(
            f"{ffmpeg.path!r} ({ffmpeg.version}) has no encoder {encoder}",
            hint="unset IMAGEIO_FFMPEG_EXE to use the bundled ffmpeg, or install one that has it",
        )
    limits = encoder_limits(config, num_frames, threads)
    argv = confined_argv(
        [ffmpeg.path, *arguments],
        read_paths=_library_paths(ffmpeg.path),
        write_files=[target.part_path],
        memory_bytes=limits.memory_bytes,
        cpu_seconds=limits.cpu_seconds,
        file_size_bytes=limits.file_size_bytes,
    )
    return EncoderProcess(argv, FrameSpec(width=width, height=height, num_frames=num_frames))


class EncoderProcess:
    """A process that eats the frames of one video. Use it as a context manager: leaving kills what still runs.

    Args:
        argv: The command line, confinement included. It gets frames on standard input and complains on its error
            output; everything else is closed or empty.
        frames: What it will be given, to the byte.

    Attributes:
        pid: Its process id, which is also its session's.
        pidfd: Becomes readable when it dies.
        bytes_written: Of the frames, so far.
    """

    def __init__(self, argv: Sequence[str], frames: FrameSpec) -> None:
        self.frames = frames
        self.bytes_expected = frames.frame_bytes * frames.num_frames
        self.bytes_written = 0
        self._log = bytearray()
        self._input_fd: int | None = None
        self._log_fd: int | None = None
        self._pidfd: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            input_end, self._input_fd = os.pipe2(os.O_CLOEXEC)
            try:
                self._log_fd, log_end = os.pipe2(os.O_CLOEXEC)
                try:
                    self._process = subprocess.Popen(
                        argv,
                        stdin=input_end,
                        stdout=subprocess.DEVNULL,
                        stderr=log_end,
                        env={},
                        cwd="/",
                        start_new_session=True,
                    )
                finally:
                    os.close(log_end)
            finally:
                os.close(input_end)
            self._pidfd = os.pidfd_open(self._process.pid)
            # Not an error where refused (a user's pipe memory is bounded too): a smaller pipe is only slower.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._input_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            # O_NONBLOCK belongs to our end alone, the encoder keeps reading a blocking pipe.
            os.set_blocking(self._input_fd, False)
            os.set_blocking(self._log_fd, False)
        except BaseException as error:
            self.kill()
            if isinstance(error, OSError):
                raise EncodingFailed(f"{argv[0]!r} could not be started: {error.strerror}") from error
            raise

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ValueError("the encoder was never started")
        return self._process.pid

    @property
    def pidfd(self) -> int:
        if self._pidfd is None:
            raise ValueError("the encoder is gone")
        return self._pidfd

    def fileno(self) -> int:
        """Return the descriptor to poll for writability. Gone after close_input."""
        if self._input_fd is None:
            raise ValueError("the encoder's input is closed")
        return self._input_fd

    def log_fileno(self) -> int:
        """Return the descriptor to poll for text; then call drain_log."""
        if self._log_fd is None:
            raise ValueError("the encoder is gone")
        return self._log_fd

    def write_some(self, view: memoryview) -> int:
        """Give the encoder as much of `view` as fits, and return how many bytes that was; 0 when the pipe is full.

        Never blocks while the encoder lives.

        Args:
            view: The next bytes of the video, one-dimensional and of format "B". May end anywhere in a frame.

        Raises:
            EncodingFailed, DiskExceeded, MemoryExceeded: The encoder died; it is reaped, and the message quotes it.
            SandboxEntryFailed: It could not be confined, and so was never started.
        """
        if self.bytes_written + len(view) > self.bytes_expected:
            raise ValueError(f"more than the {self.bytes_expected} bytes of {self.frames.num_frames} frames")
        self.drain_log()
        try:
            count = os.write(self.fileno(), view)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise self._death() from None
        self.bytes_written += count
        return count

    def drain_log(self) -> None:
        """Take in what the encoder has said. Without this, one with much to say would stop at a full pipe."""
        while self._log_fd is not None:
            try:
                chunk = os.read(self._log_fd, 1 << 16)
            except BlockingIOError:
                return
            if not chunk:
                return
            self._log += chunk
            del self._log[:-LOG_TAIL_BYTES]

    def log_tail(self) -> str:
        """Return the last things that the encoder said, safe to show."""
        return clean_text(self._log.decode("utf-8", "replace").strip()[-2000:])

    def poll(self) -> int | None:
        """Return the exit status if the encoder has ended (negative: a signal), else None."""
        return None if self._process is None else self._process.poll()

    def raise_if_ended(self) -> None:
        """Raise what ended the encoder before its time; for long waits in which nothing is written."""
        if self.poll() is not None:
            raise self._death()

    def close_input(self) -> None:
        """Tell the encoder that this was the last frame. It ends soon; `pidfd` says when."""
        if self._input_fd is not None:
            descriptor, self._input_fd = self._input_fd, None
            os.close(descriptor)

    def finish(self, timeout_s: float) -> None:
        """End the input and wait until the encoder has ended well. Returns at once if `pidfd` was readable before.

        Args:
            timeout_s: For the frames that are still inside the encoder, and for the index.

        Raises:
            DeadlineExceeded: It did not end in time; it was killed.
            EncodingFailed, DiskExceeded, MemoryExceeded, SandboxEntryFailed: It failed, or was not given all frames.
        """
        if self.bytes_written != self.bytes_expected:
            if self.poll():
                raise self._death()
            # ffmpeg exits with 0 after a truncated input, and even after an empty one. Counting is up to us.
            self.kill()
            raise EncodingFailed(
                f"the encoder was given {self.bytes_written} of {self.bytes_expected} bytes "
                f"({self.bytes_written // self.frames.frame_bytes} of {self.frames.num_frames} frames)"
            )
        self.close_input()
        if not self._wait(timeout_s):
            self.kill()
            raise DeadlineExceeded(f"the encoder did not end within {timeout_s:g} s{self._quote()}")
        if self.poll() != 0:
            raise self._death()
        self.kill()  # nothing is left to kill: this gives back the descriptors

    def kill(self) -> None:
        """End the encoder and everything in its session, reap it, close all descriptors. Any number of times."""
        process = self._process
        try:
            if process is not None and process.returncode is None:
                # Safe until reaped: the id cannot belong to anybody else before.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                # Bounded, since a process that waits for a dead disk takes no signal. It is then left to the kernel.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_REAP_TIMEOUT_S)
            self.drain_log()
        finally:
            self.close_input()
            for name in ("_log_fd", "_pidfd"):
                descriptor = getattr(self, name)
                setattr(self, name, None)
                if descriptor is not None:
                    os.close(descriptor)

    def __enter__(self) -> EncoderProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _wait(self, timeout_s: float) -> bool:
        """Wait for the end, listening to what the encoder says. Returns whether it came."""
        deadline_s = time.monotonic() + timeout_s
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        poller.register(self.log_fileno(), select.POLLIN)
        while self.poll() is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            for descriptor, event in poller.poll(left_s * 1000 + 1):
                if descriptor == self._log_fd:
                    self.drain_log()
                    if event & select.POLLHUP and not event & select.POLLIN:
                        poller.unregister(descriptor)  # closed its error output but lives on: do not spin
        return True

    def _death(self) -> WanCompatError:
        """Reap an encoder that died or stopped reading, and say what happened."""
        if self._log_fd is not None and self._pidfd is not None:
            self._wait(_LAST_WORDS_S)
        status = self.poll()
        self.kill()
        return _understand(status, self._log.decode("utf-8", "replace"), self._quote())

    def _quote(self) -> str:
        tail = self.log_tail()
        return f": {tail}" if tail else " and said nothing"


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
    ffmpeg = ffmpeg or find_ffmpeg()
    argv = confined_argv(
        [ffmpeg.path, *verify_arguments(config, path)],
        read_paths=[path, *_library_paths(ffmpeg.path)],
        write_files=[],
        memory_bytes=VERIFY_MEMORY_BYTES,
        cpu_seconds=int(timeout_s) + 1,
        file_size_bytes=0,
    )
    try:
        finished = run_bounded(argv, timeout_s=timeout_s, max_bytes=MAX_VERIFY_BYTES)
    except TimeoutError as error:
        raise DeadlineExceeded(f"reading {path!r} back: {error}") from error
    except OSError as error:
        raise EncodingFailed(f"{argv[0]!r} could not be started: {error.strerror}") from error
    said = finished.stderr.decode("utf-8", "replace")
    if finished.returncode:
        raise _understand(finished.returncode, said, f" while reading {path!r} back: {clean_text(said[-2000:])}")
    facts = read_facts(finished.stdout.decode("ascii", "replace"), said)
    wrong = ("it has no readable video stream",) if facts is None else video_mismatches(config, num_frames, facts)
    if facts is None or wrong:
        raise EncodingFailed(f"{path!r} is not the video that was asked for: {'; '.join(wrong)}")
    return facts


def read_facts(packets: str, said: str) -> VideoFacts | None:
    """Understand ffmpeg's framecrc output and its description of the input; None if there is no video in it.

        #tb 0: 1/30000                                                        the unit of the times below
        0,      -2002,          0,     1001,    56089, 0xb82bb246             stream, dts, pts, duration, bytes, crc
        Stream #0:0[0x1](und): Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709, progressive), 1280x720, ...

    The rate comes from the durations, since the description rounds it to two decimals.
    """
    tick = re.search(r"^#tb 0: (\d{1,12})/(\d{1,12})$", packets, re.MULTILINE)
    stream = re.search(
        r"^ *Stream #0:0\b.*?: Video: (?P<codec>\w+)\b.*?, (?P<pixels>[a-z]\w+)(?:\((?P<color>[^)]*)\))?, "
        r"(?P<width>\d{1,6})x(?P<height>\d{1,6})\b",
        said,
        re.MULTILINE,
    )
    durations = [int(found) for found in re.findall(r"^0, *-?\d+, *-?\d+, *(\d{1,15}),", packets, re.MULTILINE)]
    if tick is None or stream is None or int(tick[2]) == 0:
        return None
    unit = Fraction(int(tick[1]), int(tick[2]))
    color = tuple(word for word in (stream["color"] or "").split(", ") if word not in ("", "progressive"))
    return VideoFacts(
        codec=stream["codec"],
        pixel_format=stream["pixels"],
        color=color,
        width=int(stream["width"]),
        height=int(stream["height"]),
        num_frames=len(durations),
        duration=sum(durations) * unit,
        tick=unit,
    )


def output_report(path: str, facts: VideoFacts, committed: CommittedOutput) -> OutputReport:
    """Put together what was read back from a file and what was committed."""
    return OutputReport(
        path=path,
        codec=facts.codec,
        width=facts.width,
        height=facts.height,
        fps=facts.fps,
        num_frames=facts.num_frames,
        sha256=committed.sha256,
        bytes=committed.bytes,
    )


def encode_file(
    frames: Iterable[memoryview],
    spec: FrameSpec,
    fps: float,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    timeout_s: float = 600.0,
) -> OutputReport:
    """Encode frames to a file: prepare, feed, finish, verify, commit. Blocks; for benchmarks and tests.

    Args:
        frames: `spec.num_frames` buffers of (height, width, 3) uint8 RGB, contiguous.
        timeout_s: For all of it.
    """
    deadline_s = time.monotonic() + timeout_s
    with prepare_output(output, overwrite) as target:
        config = plan_encoding(spec.width, spec.height, fps, target.suffix)
        with spawn_encoder(config, spec.num_frames, target) as encoder:
            poller = select.poll()
            poller.register(encoder.fileno(), select.POLLOUT)
            for frame in frames:
                view = memoryview(frame).cast("B")
                while view:
                    written = encoder.write_some(view)
                    view = view[written:]
                    left_s = deadline_s - time.monotonic()
                    if view and not written and not (left_s > 0 and poller.poll(left_s * 1000 + 1)):
                        raise DeadlineExceeded(f"the encoder took no frame within {timeout_s:g} s")
            encoder.finish(max(0.0, deadline_s - time.monotonic()))
        facts = verify_video(target.part_path, config, spec.num_frames)
        return output_report(target.path, facts, target.commit())


def encoder_threads() -> int:
    """Return x264's own default of three threads for two cores, over the cores that this process may use."""
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) * 3 // 2))


def _understand(status: int | None, said: str, quote: str) -> WanCompatError:
    """Turn an encoder's exit status and words into the error that helps a person."""
    if status == EXIT_NOT_CONFINED and said.startswith("wan-compat: "):
        return SandboxEntryFailed(
            f"ffmpeg does not run unconfined, and could not be confined{quote}",
            hint="wan-compat doctor says what is missing",
            details={"layer": "confined_exec"},
        )
    if any(phrase in said for phrase in _NO_SPACE) or status == -signal.SIGXFSZ:
        return DiskExceeded(
            f"the encoder ran out of disk space{quote}",
            hint="free some space or choose another folder for the output",
            details={"exit_status": status},
        )
    if any(phrase in said for phrase in _NO_MEMORY):
        return MemoryExceeded(f"the encoder got no memory{quote}", details={"exit_status": status})
    if status is None:
        how = "stopped reading frames"
    elif status < 0:
        how = f"was killed by {_SIGNAL_NAMES.get(-status, f'signal {-status}')}"
    else:
        how = f"ended with status {status}"
    hint = None
    if status == -signal.SIGKILL:
        hint = "look into the kernel's log: it kills what needs more memory than there is"
    return EncodingFailed(f"the encoder {how}{quote}", hint=hint, details={"exit_status": status})


def _library_paths(program: str) -> list[str]:
    """Return where a program outside the system's folders keeps its libraries (conda: PREFIX/bin, PREFIX/lib)."""
    libraries = os.path.join(os.path.dirname(os.path.dirname(program)), "lib")
    return [libraries] if os.path.isdir(libraries) else []
