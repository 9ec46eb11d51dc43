"""A sound track of the user's: looked at before anything else is done, by the same confined ffmpeg that mixes it in."""

from __future__ import annotations

import os
import re
import stat

from wan_compat.policies.encoding.command import AUDIO_DEMUXERS
from wan_compat.protocol.errors import InvalidRequest, clean_text
from wan_compat.supervisor.read_back import run_confined

MAX_SOUND_BYTES = 4 << 30
_TIMEOUT_S = 30.0


def check_sound(path: str) -> str:
    """Return the absolute path of a file that holds sound, links resolved.

    Raises:
        InvalidRequest: There is none, or it is not sound that can be read.
    """
    try:
        real = os.path.realpath(path, strict=True)
        info = os.stat(real)
    except OSError as error:
        raise InvalidRequest(f"the sound {path!r} cannot be read: {error.strerror}", hint="check the path") from error
    if not stat.S_ISREG(info.st_mode) or not os.access(real, os.R_OK):
        raise InvalidRequest(f"the sound {path!r} is not a file that can be read", hint="name a wav, mp3, flac or ogg")
    if info.st_size > MAX_SOUND_BYTES:
        raise InvalidRequest(f"the sound {path!r} has {info.st_size} bytes, more than {MAX_SOUND_BYTES}")
    finished = run_confined(
        [
            *("-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-xerror"),
            *("-protocol_whitelist", "file,pipe", "-format_whitelist", AUDIO_DEMUXERS, "-vn", "-i", f"file:{real}"),
            *("-map", "0:a:0", "-t", "0.1", "-f", "null", "pipe:1"),
        ],
        real,
        timeout_s=_TIMEOUT_S,
    )
    if finished.returncode:
        lines = finished.stderr.decode("utf-8", "replace").strip().splitlines()
        # The first line is the cause, after the place in ffmpeg's memory that says it.
        said = clean_text(re.sub(r"^(\[[^\]]*\] )+", "", lines[0])[:300] if lines else f"exit {finished.returncode}")
        raise InvalidRequest(
            f"the sound {path!r} holds none that ffmpeg can read: {said}", hint="convert it to wav, mp3, flac or ogg"
        )
    return real
