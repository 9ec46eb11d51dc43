"""The options about the video file itself, which `generate` and `encode` share, and what they amount to.

All default to None, so that what was left out can be told from what was said: a sidecar fills in the rest.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any

import typer


# The values of protocol.video, written again for the reason that options.py gives; tests hold them in step.
class Quality(enum.StrEnum):
    DRAFT = "draft"
    STANDARD = "standard"
    HIGH = "high"
    LOSSLESS = "lossless"


class Metadata(enum.StrEnum):
    NONE = "none"
    MINIMAL = "minimal"
    FULL = "full"


FormatName = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="NAME", help="mp4, webm, mov, mkv, gif, webp, png, jpeg, npy. Default: by --output."
    ),
]
Codec = Annotated[
    str | None, typer.Option("--codec", metavar="NAME", help="h264, h265, av1, vp9, prores, ... Default: the format's.")
]
QualityOption = Annotated[
    Quality | None, typer.Option("--quality", help="lossless keeps every byte. Default: standard.")
]
MetadataOption = Annotated[
    Metadata | None,
    typer.Option("--metadata", help="What the file itself says of its making; full adds prompts. Default: minimal."),
]
CropOdd = Annotated[
    bool, typer.Option("--crop-odd", help="Permit to cut one row or column where a codec needs even sides.")
]
Fragmented = Annotated[bool, typer.Option("--fragmented", help="An mp4 that plays while it is written.")]
Audio = Annotated[
    str | None, typer.Option("--audio", metavar="FILE", help="Sound to put in, cut or padded to the video's length.")
]
Poster = Annotated[bool, typer.Option("--poster", help="Write the first frame beside the video, as a PNG.")]
ContactSheet = Annotated[
    bool, typer.Option("--contact-sheet", help="Write an overview of the frames beside the video, as a PNG.")
]


def given(**values: Any) -> dict[str, Any]:
    """Return the options that were said: not None, not False. Enums become their values."""
    return {
        name: value.value if isinstance(value, enum.Enum) else value
        for name, value in values.items()
        if value is not None and value is not False
    }


def default_suffix(format_name: str | None, like: str | None = None) -> str:
    """Return how a made-up output name ends: as the format says, else as a video's name does, else .mp4."""
    from wan_compat.policies.encoding import FORMATS, format_for, suffix_of

    if format_name is not None:
        form = format_for("", format_name) if format_name in ("png", "jpeg") else format_for(f".{format_name}")
        return "" if form.pictures else form.suffix
    suffix = suffix_of(like or "")
    return suffix if any(suffix in form.suffixes and not form.pictures for form in FORMATS.values()) else ".mp4"
