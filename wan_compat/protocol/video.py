"""How a video is to be written, as a user asks for it: part of a GenerationRequest, and of a conversion of frames."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

ShortName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")]
PathText = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class Quality(enum.StrEnum):
    """`draft`: small and quick. `standard`: no visible loss. `high`: for further work. `lossless`: every byte."""

    DRAFT = "draft"
    STANDARD = "standard"
    HIGH = "high"
    LOSSLESS = "lossless"


class MetadataLevel(enum.StrEnum):
    """What the video file itself says of its making. `minimal` names the program, model, seed and numbers, no prompt;
    `full` adds prompts and everything that the sidecar has about how it was made."""

    NONE = "none"
    MINIMAL = "minimal"
    FULL = "full"


class VideoOptions(BaseModel):
    """What can be said about a video file beyond its name.

    Args:
        format: Kind of file, like "mp4"; None takes it from the output's name.
        codec: How it is compressed, like "h265"; None takes the format's default.
        quality: Preset over each codec's own scale.
        metadata: What goes into the file itself. The sidecar beside it always has everything.
        crop_odd: Permit to cut one row or column where a codec cannot hold an odd size; else that is an error.
        fragmented: mp4 that plays while it is still being written.
        audio: Sound file to put in, trimmed or padded with silence to the length of the video.
        preview: Folder in which pictures of the frames so far appear while a job runs.
        poster: Write the first frame beside the video, as NAME.poster.png.
        contact_sheet: Write an overview of the frames beside the video, as NAME.sheet.png.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    format: ShortName | None = None
    codec: ShortName | None = None
    quality: Quality = Quality.STANDARD
    metadata: MetadataLevel = MetadataLevel.MINIMAL
    crop_odd: bool = False
    fragmented: bool = False
    audio: PathText | None = None
    preview: PathText | None = None
    poster: bool = False
    contact_sheet: bool = False
