"""How frames become a file: from a size, a rate and a wish to ffmpeg's arguments, and from a written file to a verdict.

    codecs    the table of what compresses, and what a reader says of it afterwards
    formats   the table of files, and which one a name or a `--format` means
    plan      size, rate and wish -> EncodingConfig, or why not
    command   EncodingConfig -> ffmpeg's command lines and limits
    verdict   what was read back -> what is wrong with it
    labels    what a file says about its making, at each level of detail

A new codec or format is an entry in a table. Sizes are exact: nothing here scales or pads, and only who asks for it by
name gets an odd row or column cut.
"""

from wan_compat.policies.encoding.codecs import CODECS, HARDWARE_ENCODERS, Codec, Colour
from wan_compat.policies.encoding.command import (
    EncoderLimits,
    encoder_limits,
    ffmpeg_arguments,
    trial_arguments,
    verify_arguments,
)
from wan_compat.policies.encoding.formats import FORMATS, Format, Writer, format_for, suffix_of
from wan_compat.policies.encoding.plan import EncodingConfig, exact_frame_rate, plan_encoding
from wan_compat.policies.encoding.verdict import VideoFacts, video_mismatches

__all__ = [
    "CODECS",
    "FORMATS",
    "HARDWARE_ENCODERS",
    "Codec",
    "Colour",
    "EncoderLimits",
    "EncodingConfig",
    "Format",
    "VideoFacts",
    "Writer",
    "encoder_limits",
    "exact_frame_rate",
    "ffmpeg_arguments",
    "format_for",
    "plan_encoding",
    "suffix_of",
    "trial_arguments",
    "verify_arguments",
    "video_mismatches",
]
