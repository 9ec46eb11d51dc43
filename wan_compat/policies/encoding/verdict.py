"""From what was read back of a written file to what is wrong with it."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

from wan_compat.policies.encoding.codecs import CODECS, Codec, Colour
from wan_compat.policies.encoding.plan import EncodingConfig

_TAGS = {
    Colour.BT709: ("tv", "bt709"),
    Colour.RGB: ("pc", "gbr/bt709/iec61966-2-1"),
    Colour.JPEG: ("pc", "bt470bg/unknown/unknown"),  # not read from a tag: what JFIF always is
}


@dataclasses.dataclass(frozen=True)
class VideoFacts:
    """What a written file says of itself, as its container was read back."""

    codec: str
    pixel_format: str
    color: tuple[str, ...]  # ("tv", "bt709"): range, then matrix, primaries and transfer, once if all the same
    width: int
    height: int
    num_frames: int
    duration: Fraction  # seconds
    tick: Fraction  # seconds; the container's unit of time
    audio: str = ""  # codec of the sound track
    audio_duration: Fraction = Fraction(0)
    packet_bytes: tuple[int, ...] = ()  # of each frame, as stored

    @property
    def fps(self) -> float:
        return float(self.num_frames / self.duration) if self.duration else 0.0


def video_mismatches(config: EncodingConfig, num_frames: int, facts: VideoFacts) -> tuple[str, ...]:
    """Return what is wrong with a written file; empty means that it is what was asked for."""
    rate, codec, form = config.frame_rate, CODECS[config.codec], config.format
    still = bool(config.additional_params.get("still"))
    expected = {
        "size": ((facts.width, facts.height), config.resolution),
        "frames": (facts.num_frames, num_frames if not codec.merges else min(num_frames, max(1, facts.num_frames))),
        "colour": (_range_said(codec, facts.color), _TAGS.get(codec.colour, facts.color)),
    }
    expected["codec"] = (facts.codec, codec.stream)
    if codec.stream != "webp":  # whose container does not say
        expected["pixel format"] = (facts.pixel_format, codec.read_pixels or config.additional_params["pixel_format"])
    wrong = [f"{name} is {found}, not {wanted}" for name, (found, wanted) in expected.items() if found != wanted]
    wanted_s = num_frames / rate
    # Where a container counts, say, milliseconds, begin and end may each be off by one; in mp4 they are exact.
    coarse = facts.tick != 0 and (1 / rate) % facts.tick != 0
    tolerance = 2 * facts.tick if coarse else facts.tick / 2
    merged_to_one = codec.merges and facts.num_frames == 1  # a picture, which has no duration
    if not (form.plain_time or still or merged_to_one) and abs(facts.duration - wanted_s) > tolerance:
        wrong.append(f"duration is {float(facts.duration):.6f} s, not {float(wanted_s):.6f} s")
    if config.additional_params.get("audio"):
        if not facts.audio:
            wrong.append("it has no sound")
        # Codecs work in blocks of some 20 ms, and start with one or two of them.
        elif abs(facts.audio_duration - wanted_s) > Fraction(1, 10):
            wrong.append(f"its sound lasts {float(facts.audio_duration):.3f} s, not {float(wanted_s):.3f} s")
    return tuple(wrong)


def _range_said(codec: Codec, color: tuple[str, ...]) -> tuple[str, ...]:
    """ProRes has no place for the range and is limited by definition; ffmpeg says so since version 8 only."""
    return ("tv", *color) if codec.stream == "prores" and color == ("bt709",) else color
