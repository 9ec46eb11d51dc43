"""What else can be done with the copy of the frames when an encoder failed with them: another codec, another disk.

    dies, hangs, writes nonsense     again; then the container's other codecs, if none was asked for by name
    disk full                        onto a disk that has room, then the copy goes, and the video comes to its place

The frames are kept until there is a video that was read back; what is done with them then, delivery.py says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator

import platformdirs

from wan_compat.policies.encoding import CODECS, EncodingConfig
from wan_compat.protocol.errors import DiskExceeded, EnvironmentLacks, FfmpegMissing, InvalidRequest, OutputNotWritable
from wan_compat.supervisor.encoder import require_encoder
from wan_compat.supervisor.ffmpeg import find_ffmpeg
from wan_compat.supervisor.frame_files import disk_error
from wan_compat.supervisor.spill import Spill

# What a disk must have to be tried; a video of Wan's sizes takes tens of megabytes.
MIN_FREE_BYTES = 32 << 20
_COPY_BYTES = 16 << 20
PlanCodec = Callable[[str], EncodingConfig]  # codec -> how the same frames would be encoded with it

_KEPT = ("comment", "audio")  # of a plan, what has nothing to do with the codec


def with_encoder(config: EncodingConfig, plan: PlanCodec | None) -> EncodingConfig:
    """Return the plan if this ffmpeg has what it needs, else that of another codec, where none was asked for by name.

    Raises:
        FfmpegMissing: There is no ffmpeg.
        EnvironmentLacks: It has no encoder for the codec, nor for another one of the container.
    """
    try:
        require_encoder(config, find_ffmpeg())
    except FfmpegMissing:
        raise
    except EnvironmentLacks as error:
        other = next(other_codecs(config, plan), None) if plan is not None else None
        if other is None:
            raise
        wanted, made = CODECS[config.codec].label, CODECS[other.codec].label
        reason = f"the video is {made}, because {error.message}, which {wanted} needs"
        return dataclasses.replace(other, reasons=(*other.reasons, reason))
    return config


def other_codecs(config: EncodingConfig, plan: PlanCodec) -> Iterator[EncodingConfig]:
    """Yield the plans for the other codecs of the container that have the same quality and an encoder here."""
    for name in config.format.codecs:
        if name == config.codec or CODECS[name].lossless != CODECS[config.codec].lossless:
            continue
        try:
            found = plan(name)
            require_encoder(found, find_ffmpeg())
        except (InvalidRequest, EnvironmentLacks):  # and without any ffmpeg, too
            continue
        kept = {key: value for key, value in config.additional_params.items() if key in _KEPT}
        found.additional_params.update(kept)
        yield found


@contextlib.contextmanager
def room_elsewhere(beside: str) -> Iterator[str | None]:
    """Give an empty file on another disk than that of `beside`, where there is room; None where there is none.

    It is removed afterwards: what was good in it has been moved.
    """
    device = os.stat(os.path.dirname(beside)).st_dev
    places = (platformdirs.user_cache_dir("wan-compat", appauthor=False), tempfile.gettempdir(), "/dev/shm")  # noqa: S108 - mkstemp makes it ours
    for place in places:
        with contextlib.suppress(OSError):
            free = os.statvfs(place)
            if os.stat(place).st_dev == device or free.f_bavail * free.f_frsize < MIN_FREE_BYTES:
                continue
            # The suffix tells ffmpeg nothing: the container is named to it.
            descriptor, path = tempfile.mkstemp(prefix=".wan-compat-", suffix=".part", dir=place)
            os.close(descriptor)
            break
    else:
        yield None
        return
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def make_room(path: str, place: str, spill: Spill) -> None:
    """Copy a finished video into its reserved file. Where that has no room, the copy of the frames goes, if it is on
    the same disk: its frames are in the video.

    Raises:
        DiskExceeded, OutputNotWritable: There is no room for it. The copy is still there, or `details["kept"]` says
            where the video is.
    """
    with open(place, "r+b") as unfinished:
        unfinished.truncate(0)
    try:
        _move(path, place)
        return
    except (DiskExceeded, OutputNotWritable):
        folder = os.statvfs(os.path.dirname(place))
        room = folder.f_bavail * folder.f_frsize + os.stat(spill.path).st_size
        if os.stat(spill.path).st_dev != os.stat(place).st_dev or room < os.stat(path).st_size:
            raise
    spill.close()
    try:
        _move(path, place)
    except (DiskExceeded, OutputNotWritable) as error:
        kept = os.path.join(os.path.dirname(path), os.path.basename(path).lstrip("."))
        os.rename(path, kept)
        message = f"{error.message}; the video is kept in {kept!r}"
        raise type(error)(message, fixes=error.fixes, details={"kept": kept}) from error


def _move(path: str, place: str) -> None:
    try:
        with open(path, "rb") as source, open(place, "r+b") as target:
            target.truncate(0)
            while chunk := source.read(_COPY_BYTES):
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
    except OSError as error:
        raise disk_error(error, place) from error
