"""The spill: a copy of the frames on disk for as long as the encoder may still fail.

A generation may take hours and an encoder can die in its last second. So every frame that goes to ffmpeg also goes into
an array file, whose room is claimed before the first one: a full disk then shows before anything was computed. It is
removed when the video was read back and has its name. Memory stays flat, since the pages are the kernel's cache.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Generator, Sequence

import platformdirs

from wan_compat.protocol.errors import WanCompatError
from wan_compat.protocol.values import FrameSpec
from wan_compat.supervisor.frame_files import NpyWriter, npy_frames, read_npy_header

# What must be left for the video itself, and for everybody else.
SPARE_BYTES = 256 << 20
MAX_SPILL_BYTES = 64 << 30


class Spill:
    """One job's copy. Made by `reserve_spill`; closed and removed unless `keep` was called."""

    def __init__(self, path: str, writer: NpyWriter) -> None:
        self.path = path
        self._writer = writer
        self._kept = False

    def write_all(self, view: memoryview) -> None:
        """Append. Raises DiskExceeded or OutputNotWritable."""
        while view:
            view = view[self._writer.write_some(view) :]

    @property
    def complete(self) -> bool:
        frames = self._writer.frames
        return self._writer.bytes_written == frames.frame_bytes * frames.num_frames

    def frames(self) -> Generator[memoryview, None, None]:
        """Yield all frames again, one at a time."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            frames, offset = read_npy_header(descriptor, self.path)
            yield from npy_frames(descriptor, frames, offset)
        finally:
            os.close(descriptor)

    def keep(self, wanted: str) -> str:
        """Let the file stay, under `wanted` if that is free and on the same disk; return where it is."""
        self._writer.close()
        self._kept = True
        folder, name = os.path.split(self.path)
        for path in (wanted, os.path.join(folder, name.lstrip("."))):
            try:
                os.link(self.path, path)  # unlike a rename, never over another file
            except OSError:
                continue
            os.unlink(self.path)
            self.path = path
            break
        return self.path

    def close(self) -> None:
        self._writer.close()
        if not self._kept:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


def reserve_spill(beside: str, frames: FrameSpec) -> Spill | None:
    """Claim room for a copy of all frames: beside the output, else in the user's cache; None where there is none."""
    size = frames.frame_bytes * frames.num_frames
    folder, name = os.path.split(beside)
    for place in _places(folder):
        path = os.path.join(place, f".{name[:150]}.{secrets.token_hex(6)}.frames.npy")
        with contextlib.suppress(OSError, WanCompatError):
            free = os.statvfs(place)
            if size > MAX_SPILL_BYTES or free.f_bavail * free.f_frsize < size + SPARE_BYTES:
                continue
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            try:
                return Spill(path, NpyWriter(path, frames, reserve=True))
            except BaseException:
                os.unlink(path)
                raise
    return None


def _places(folder: str) -> Sequence[str]:
    cache = platformdirs.user_cache_dir("wan-compat", appauthor=False)
    with contextlib.suppress(OSError):
        os.makedirs(cache, 0o700, exist_ok=True)
    return (folder, cache)
