"""Encoders in hardware, tried as a video's ffmpeg would run them: in its confinement, which has no devices.

None is offered for videos, and this says what each one answers, so that nobody has to believe it.
"""

from __future__ import annotations

import functools

from wan_compat.policies.encoding import HARDWARE_ENCODERS, trial_arguments
from wan_compat.protocol.errors import WanCompatError, clean_text
from wan_compat.supervisor.ffmpeg import Ffmpeg
from wan_compat.supervisor.read_back import run_confined

TRIAL_TIMEOUT_S = 20.0


def try_hardware_encoders(ffmpeg: Ffmpeg) -> dict[str, str]:
    """Return what each encoder in hardware that is compiled in says when it is to encode one frame; "" if it did.

    One of each kind of hardware is tried, some 60 ms each: what one lacks, all of its kind lack.
    """
    there = [name for name in HARDWARE_ENCODERS if name in ffmpeg.encoders]
    tried = {name.partition("_")[2]: name for name in reversed(there)}
    said = {means: try_encoder(ffmpeg, name) for means, name in tried.items()}
    return {name: said[name.partition("_")[2]] for name in there}


@functools.lru_cache(maxsize=16)
def try_encoder(ffmpeg: Ffmpeg, encoder: str) -> str:
    """Let a confined ffmpeg encode one frame; return the reason why it did not, "" if it did."""
    try:
        finished = run_confined(trial_arguments(encoder), ffmpeg.path, timeout_s=TRIAL_TIMEOUT_S, ffmpeg=ffmpeg)
    except WanCompatError as error:
        return error.message
    if finished.returncode == 0:
        return ""
    # The first line is the encoder's own, what follows are ffmpeg's consequences: "[h264_nvenc @ 0x5591] Cannot ...".
    first = finished.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
    return clean_text(first.partition("] ")[2] or first)[:200] or f"ended with status {finished.returncode}"
