"""The encoder: one ffmpeg process per video, confined, fed with raw frames, and never waited for without a bound.

    supervisor                                     ffmpeg (own session, empty environment, one writable file)
        |  spawn_encoder, as early as the job starts   |  starts while the worker is still busy
        |  write_some  -- 1 MiB pipe, rgb24 ---------> |  encodes while the worker decodes
        |  drain_log   <-- its complaints ------------ |
        |  finish: end of input, wait ---------------> |  writes the index, exits

Everything that a supervisor's loop calls between spawn and finish returns at once: the pipe is non-blocking on our
side, so that a hung ffmpeg costs its own job and nobody else's. Poll `fileno()` for room, `log_fileno()` for text and
`pidfd` for its death. What it wrote is checked by `read_back.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from wan_compat.policies.encoding import CODECS, EncodingConfig, encoder_limits, ffmpeg_arguments
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
from wan_compat.protocol.values import FrameSpec
from wan_compat.sandbox.confined_exec import EXIT_NOT_CONFINED, confined_argv
from wan_compat.supervisor.ffmpeg import Ffmpeg, find_ffmpeg

PIPE_BYTES = 1 << 20
LOG_TAIL_BYTES = 16 << 10
# Beyond 16 threads x264 takes memory and loses quality, and gains nothing at the sizes of Wan.
MAX_THREADS = 16

# How long a process whose end of the pipe is already closed gets to say why and exit.
_LAST_WORDS_S = 0.25
_STOP_POLL_S = 0.2
_REAP_TIMEOUT_S = 10.0
_SIGNAL_NAMES = {number.value: number.name for number in signal.Signals}
_NO_SPACE = ("No space left on device", "Disk quota exceeded", "File too large")
_NO_MEMORY = ("Cannot allocate memory", "malloc of size")  # the second is x264's own


def spawn_encoder(
    config: EncodingConfig, num_frames: int, part_path: str, *, ffmpeg: Ffmpeg | None = None
) -> EncoderProcess:
    """Start the confined ffmpeg that writes `part_path`, which exists. Takes a few milliseconds, once ffmpeg was found.

    Call it from a thread that lives as long as the encoder: the kernel ends a confined process with the thread that
    started it.

    Raises:
        FfmpegMissing: There is no ffmpeg.
        EnvironmentLacks: This ffmpeg was built without the codec's encoder.
        EncodingFailed: It could not be started.
    """
    ffmpeg = ffmpeg or find_ffmpeg()
    require_encoder(config, ffmpeg)
    width, height = config.source_size
    threads = encoder_threads()
    arguments = ffmpeg_arguments(config, part_path, threads=threads, num_frames=num_frames)
    limits = encoder_limits(config, num_frames, threads)
    sound = config.additional_params.get("audio")
    argv = confined_argv(
        [ffmpeg.path, *arguments],
        read_paths=[*library_paths(ffmpeg.path), *([sound] if sound else [])],
        write_files=[part_path],
        memory_bytes=limits.memory_bytes,
        cpu_seconds=limits.cpu_seconds,
        file_size_bytes=limits.file_size_bytes,
    )
    return EncoderProcess(argv, FrameSpec(width=width, height=height, num_frames=num_frames))


def require_encoder(config: EncodingConfig, ffmpeg: Ffmpeg) -> None:
    """Raise EnvironmentLacks unless this ffmpeg was built with what the codec needs."""
    encoder = CODECS[config.codec].encoder
    if encoder not in ffmpeg.encoders:
        raise EnvironmentLacks(
            f"{ffmpeg.path!r} ({ffmpeg.version}) has no encoder {encoder}",
            hint="unset IMAGEIO_FFMPEG_EXE to use the bundled ffmpeg, or install one that has it",
        )


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
        self.check_stop: Callable[[], None] = lambda: None  # asked while its end is waited for; raises what ends that
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
            self.check_stop()
            for descriptor, event in poller.poll(min(left_s, _STOP_POLL_S) * 1000 + 1):
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
        return understand(status, self._log.decode("utf-8", "replace"), self._quote())

    def _quote(self) -> str:
        tail = self.log_tail()
        return f": {tail}" if tail else " and said nothing"


def encoder_threads() -> int:
    """Return x264's own default of three threads for two cores, over the cores that this process may use."""
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) * 3 // 2))


def understand(status: int | None, said: str, quote: str) -> WanCompatError:
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


def library_paths(program: str) -> list[str]:
    """Return where a program outside the system's folders keeps its libraries (conda: PREFIX/bin, PREFIX/lib)."""
    libraries = os.path.join(os.path.dirname(os.path.dirname(program)), "lib")
    return [libraries] if os.path.isdir(libraries) else []
