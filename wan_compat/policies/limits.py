"""How much a job may use and how long each of its phases may take. A job can narrow these, never widen them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from wan_compat.policies.facts import HostFacts
from wan_compat.protocol.errors import MemoryExceeded
from wan_compat.protocol.values import FrameSpec

# Left to the rest of the machine: the supervisor, ffmpeg, the page cache that loading needs.
HOST_SHARE = 0.85
MIN_MEMORY_BYTES = 768 << 20  # the libraries alone need about 400 MB
_SHARED_BYTES = 400 << 20  # of what a worker seems to use: the libraries' pages, which it shares with its zygote

# A worker reads weights at no less than this from the slowest disk we plan for.
SLOWEST_DISK_BYTES_PER_S = 20e6
# A VAE makes or reads a pixel of a frame at no less than this: some 5 MFLOP each, on a core of 5 GFLOP/s.
SLOWEST_PIXELS_PER_S = 1000.0
# The slowest settings of an encoder that hold many frames back: AV1 and x265 at their best quality.
SLOWEST_ENCODED_PIXELS_PER_S = 200_000.0

# Nobody can say how long a step of denoising takes on a machine that has not taken one: of a large model, hours.
LONGEST_PHASE_S = 7 * 86400.0

# What each phase may take at least, whatever the model and the video; a file in a working folder can set no more.
LEAST_PHASE_S: Mapping[str, float] = {
    "start_worker": 60.0,
    "load": 120.0,
    # 512 tokens through 5.7 billion parameters, twice: 12 TFLOP, an hour at the slowest.
    "text_encode": 3600.0,
    "denoise": 3600.0,
    "decode": 1800.0,
    "encode": 300.0,
    "close": 5.0,
    # A deadlock is no less one after five minutes; whatever works shows it within seconds.
    "stall": 300.0,
    # Of a conversion.
    "open": 120.0,
    "convert": 120.0,
}


@dataclasses.dataclass(frozen=True)
class Deadlines:
    """Seconds, from the start of each phase; `total_s` from submit.

    silence_s: Longest gap between answers.
    stall_s: How long a worker that should compute may do nothing.
    asked: By phase, what the request or the settings say; they are taken as they are, and go before the rest.
    """

    zygote_s: float = 180.0
    start_worker_s: float = LEAST_PHASE_S["start_worker"]  # a light zygote's worker imports torch in it: 5 to 15 s
    load_s: float = 600.0
    convert_s: float = 600.0
    text_encode_s: float = LONGEST_PHASE_S
    denoise_s: float = LONGEST_PHASE_S
    decode_s: float = LONGEST_PHASE_S
    encode_tail_s: float = LEAST_PHASE_S["encode"]
    cancel_grace_s: float = LEAST_PHASE_S["close"]
    stop_grace_s: float = 2.0
    silence_s: float = 60.0
    stall_s: float = LEAST_PHASE_S["stall"]
    total_s: float | None = None
    asked: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def by_phase(self) -> dict[str, float]:
        """Return the limits of the phases in which a worker is at work for the job.

        Starting one and the end of an encoder have finer ones of their own, within.
        """
        return {
            "load": self.load_s,
            "open": self.load_s,
            "convert": self.convert_s,
            "text_encode": self.text_encode_s,
            "denoise": self.denoise_s,
            "decode": self.decode_s,
        }


def share(host: HostFacts, *, workers: int, ours: Iterable[int] = ()) -> HostFacts:
    """Return what one of several workers may count on: an equal part of the memory and of the cores.

    Args:
        workers: How many run at once.
        ours: Bytes that each living worker of this supervisor is seen to use. What they use is not lost: together with
            what is free, it is what is shared.
    """
    used = sum(max(0, number - _SHARED_BYTES) for number in ours)
    return dataclasses.replace(
        host,
        memory_available_bytes=min(host.memory_total_bytes, host.memory_available_bytes + used) // workers,
        cpu_count=max(1, host.cpu_count // workers),
    )


def memory_limit(requested: int | None, host: HostFacts) -> int:
    """Return the worker's memory cap in bytes.

    Raises:
        MemoryExceeded: What was asked is not there, or too little to import the libraries.
    """
    ceiling = int(host.memory_available_bytes * HOST_SHARE)
    if requested is None:
        limit = ceiling
    elif requested > host.memory_total_bytes:
        raise MemoryExceeded(
            f"--memory-limit asks for {requested / 1e9:.1f} GB, the machine has {host.memory_total_bytes / 1e9:.1f} GB",
            hint="leave --memory-limit out to use what is free",
        )
    else:
        limit = requested
    if limit < MIN_MEMORY_BYTES:
        raise MemoryExceeded(
            f"a worker needs at least {MIN_MEMORY_BYTES / 1e6:.0f} MB, {limit / 1e6:.0f} MB are allowed",
            hint=f"raise --memory-limit to {MIN_MEMORY_BYTES >> 20}MiB or more, free memory, or use fewer workers",
        )
    return limit


def deadlines(
    *,
    weight_bytes: int,
    timeout_s: float | None,
    frames: FrameSpec | None = None,
    num_media: int = 0,
    at_once: int = 1,
    asked: Mapping[str, float] | None = None,
) -> Deadlines:
    """Return the deadlines of a job: each phase gets time for its bytes and pixels, the whole what the user allows.

    Args:
        frames: What is made; None where nothing is.
        at_once: How many videos of these frames are decoded by one order.
        num_media: Pictures and videos to work from; the VAE reads each as a video as long as what is made.
        asked: Phase -> seconds, where the user says.
    """
    asked = dict(asked or {})
    reading_s = weight_bytes / SLOWEST_DISK_BYTES_PER_S
    pixels = frames.height * frames.width * frames.num_frames if frames is not None else 0
    coding_s = pixels / SLOWEST_PIXELS_PER_S
    # Weights that stay in their files are read for each of two prompts; the VAE's for each video.
    text_encode_s = LEAST_PHASE_S["text_encode"] + 2 * reading_s + num_media * (coding_s + reading_s)
    return Deadlines(
        # What is asked for starting or encoding is watched as a whole; the finer limits must not be in its way.
        zygote_s=max(Deadlines.zygote_s, asked.get("start_worker", 0.0)),
        start_worker_s=max(Deadlines.start_worker_s, asked.get("start_worker", 0.0)),
        load_s=LEAST_PHASE_S["load"] + reading_s,
        convert_s=min(LONGEST_PHASE_S, LEAST_PHASE_S["convert"] + 2 * reading_s),  # read and written
        text_encode_s=min(LONGEST_PHASE_S, text_encode_s),
        decode_s=min(LONGEST_PHASE_S, LEAST_PHASE_S["decode"] + reading_s + at_once * coding_s),
        encode_tail_s=max(LEAST_PHASE_S["encode"] + pixels / SLOWEST_ENCODED_PIXELS_PER_S, asked.get("encode", 0.0)),
        cancel_grace_s=asked.get("close", LEAST_PHASE_S["close"]),
        stall_s=asked.get("stall", LEAST_PHASE_S["stall"]),
        total_s=timeout_s,
        asked=asked,
    )
