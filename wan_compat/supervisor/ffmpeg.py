"""Find ffmpeg and ask it what it can do. Runs at most three short processes, once per supervisor."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence

from wan_compat.protocol.errors import FfmpegMissing, clean_text

PROBE_TIMEOUT_S = 20.0
MAX_PROBE_BYTES = 1 << 20

_REMEDY = "reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to the path of an ffmpeg with libx264"


@dataclasses.dataclass(frozen=True)
class Ffmpeg:
    """A usable ffmpeg. `encoders` are those compiled in; one for hardware says nothing about a usable GPU."""

    path: str
    version: str
    encoders: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that ended by itself: exit status (negative: a signal) and what it wrote, cut at the bound."""

    returncode: int
    stdout: bytes
    stderr: bytes


def find_ffmpeg() -> Ffmpeg:
    """Return the ffmpeg to use: IMAGEIO_FFMPEG_EXE if set, else imageio-ffmpeg's own, else the system's.

    The first call takes about 100 ms, later ones microseconds as long as the file stays the same.

    Raises:
        FfmpegMissing: There is none, or it does not run.
    """
    try:
        import imageio_ffmpeg  # here and not above: most of what a supervisor does needs no video

        found = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise FfmpegMissing(f"no ffmpeg was found: {error}", hint=_REMEDY) from error
    path = shutil.which(found)
    if path is None:
        raise FfmpegMissing(f"{found!r} is not an executable file", hint=_REMEDY)
    path = os.path.realpath(path)
    status = os.stat(path)
    return _probe_once(path, status.st_ino, status.st_size, status.st_mtime_ns)


def probe(path: str) -> Ffmpeg:
    """Run one ffmpeg binary and read its version and encoders.

    Raises:
        FfmpegMissing: It does not start, does not end in time, or does not talk like ffmpeg.
    """
    try:
        # One run tells both: without -hide_banner the version stands on stderr.
        finished = run_bounded([path, "-nostdin", "-encoders"], timeout_s=PROBE_TIMEOUT_S, max_bytes=MAX_PROBE_BYTES)
    except (OSError, TimeoutError) as error:
        raise FfmpegMissing(f"{path!r} cannot be run: {error}", hint=_REMEDY) from error
    text = finished.stdout.decode("utf-8", "replace")
    banner = finished.stderr.decode("utf-8", "replace")
    version = re.search(r"^ffmpeg version (\S{1,100})", banner, re.MULTILINE)
    encoders = re.findall(r"^ [VAS][A-Z.]{5} ([^\s=]+)", text, re.MULTILINE)
    if finished.returncode or version is None or not encoders:
        said = clean_text(banner.strip()[-500:]) or "nothing"
        raise FfmpegMissing(
            f"{path!r} does not behave like ffmpeg (exit status {finished.returncode}): {said}", hint=_REMEDY
        )
    return Ffmpeg(path=path, version=clean_text(version[1]), encoders=frozenset(encoders))


def run_bounded(argv: Sequence[str], *, timeout_s: float, max_bytes: int) -> Finished:
    """Run a short program to its end and return what it wrote. Blocks.

    It has an empty environment, its own session and no standard input. What it writes beyond `max_bytes` per stream
    is read and thrown away. No process is left behind, whatever is raised.

    Raises:
        TimeoutError: It did not end within `timeout_s`; it was killed.
        OSError: It could not be started.
    """
    deadline = time.monotonic() + timeout_s
    with (
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
            bufsize=0,
        ) as process,
        selectors.DefaultSelector() as selector,
    ):
        try:
            assert process.stdout is not None and process.stderr is not None
            written = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
            for descriptor in written:
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise TimeoutError(f"no end after {timeout_s:g} s")
                for key, _ in ready:
                    chunk = os.read(key.fd, 1 << 16)
                    if not chunk:
                        selector.unregister(key.fd)
                    written[key.fd] += chunk[: max(0, max_bytes - len(written[key.fd]))]
            try:
                returncode = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"no end after {timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                # The whole session: the program may have started others. Safe, since its id is ours until reaped.
                os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = written.values()
        return Finished(returncode, bytes(stdout), bytes(stderr))


@functools.lru_cache(maxsize=8)
def _probe_once(path: str, inode: int, size: int, mtime_ns: int) -> Ffmpeg:
    """Probe, remembered until the file is another one."""
    return probe(path)
