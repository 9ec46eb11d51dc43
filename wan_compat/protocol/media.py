"""Pictures and videos that a job works from: which there are, how large they may be, and how they reach a worker.

The supervisor never decodes one. It copies each file into sealed memory (memfd) and sends the descriptors through the
doorbell in the order of `GenerationParams.media`, just before Generate; the worker decodes them inside its sandbox
(workers/media.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wan_compat.protocol.base import Value

MAX_MEDIA = 16
MAX_MEDIA_BYTES = 512 << 20  # of one file
MAX_ALL_MEDIA_BYTES = 1 << 30
MAX_MEDIA_SIDE = 16384  # pixels, before it is resized to the job's size
MAX_MEDIA_PIXELS = 100_000_000  # of one picture

MediaRole = Literal["image", "last_image", "video", "mask", "reference", "pose_video", "face_video", "background_video"]
# Roles that a picture may fill; the others take a video, or a picture as a video of one frame.
PICTURE_ROLES: tuple[MediaRole, ...] = ("image", "last_image", "reference")


FrameCount = Annotated[int, Field(ge=1, le=1024)]


class MediaSpec(Value):
    """One file of a job. Several references keep their order.

    Frames are taken from a video's beginning, one for each frame of the job, in the job's size. With `context`, they
    are what goes before the job's: as many of the last ones as there are, between its two numbers. With `square`, they
    are fitted into a square of that many pixels.
    """

    role: MediaRole
    bytes: Annotated[int, Field(ge=1, le=MAX_MEDIA_BYTES)]
    context: tuple[FrameCount, FrameCount] | None = None
    square: Annotated[int, Field(ge=4, le=4096)] | None = None
