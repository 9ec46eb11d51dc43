"""What happens to a job, in the order in which it happens; each is over when it is told.

`video`: which video of the job it is about, from 0; of several that are denoised at once, the one that is
being written.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from wan_compat.protocol.errors import WanCompatError
from wan_compat.protocol.results import ConversionReport, VideoGenerationResult
from wan_compat.supervisor import incidents

PhaseName = Literal["start_worker", "load", "text_encode", "denoise", "decode", "encode", "open", "convert"]


@dataclasses.dataclass(frozen=True)
class PhaseStarted:
    phase: PhaseName
    video: int = 0


@dataclasses.dataclass(frozen=True)
class Started:
    """The worker is confined and its self-test was accepted; nothing of the model was read yet."""

    tier: str
    layers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Progress:
    """`step` of `total` of a phase is done. For "load" a step is a component, for "decode" a latent frame, for
    "convert" a mebibyte. `rate_s`: seconds that a step takes lately; `eta_s`: seconds until this phase will be over.
    `timestep`: of "denoise", what the scheduler calls the step."""

    phase: PhaseName
    step: int
    total: int
    rate_s: float | None = None
    eta_s: float | None = None
    timestep: float | None = None
    video: int = 0


@dataclasses.dataclass(frozen=True)
class FirstFrame:
    """The first frame reached the encoder, `seconds` after the generation started."""

    seconds: float
    video: int = 0


@dataclasses.dataclass(frozen=True)
class Preview:
    """A picture of a frame, made small, stands in the preview folder."""

    path: str
    index: int
    video: int = 0


@dataclasses.dataclass(frozen=True)
class LatentPreview:
    """What the video is becoming after a step of denoising, roughly and small: (height, width, 3) uint8 RGB. `path`: of
    the picture in the preview folder, None where none was asked for."""

    step: int
    width: int
    height: int
    pixels: bytes
    path: str | None = None
    video: int = 0


@dataclasses.dataclass(frozen=True)
class Warned:
    message: str


@dataclasses.dataclass(frozen=True)
class Unusual:
    """The worker uses the machine in an unusual way (policies/consumption.py). Nothing was done about it."""

    worker: str
    what: str


@dataclasses.dataclass(frozen=True)
class Incident:
    """The worker did what only an attacker or a grave bug does, and was ended for it. `Ended` follows."""

    incident: incidents.Incident


@dataclasses.dataclass(frozen=True)
class Recovering:
    """An attempt failed, and something else is tried."""

    error: str
    action: str
    video: int = 0


@dataclasses.dataclass(frozen=True)
class Recovered:
    """How a step of recovery went: "succeeded", or "failed: " with the next error."""

    error: str
    action: str
    outcome: str
    video: int = 0


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The file stands, whole and verified."""

    path: str
    video: int = 0


@dataclasses.dataclass(frozen=True)
class Finished:
    result: VideoGenerationResult | ConversionReport


@dataclasses.dataclass(frozen=True)
class Ended:
    """The job failed or was cancelled."""

    error: WanCompatError


Event = (
    PhaseStarted
    | Started
    | Progress
    | FirstFrame
    | Preview
    | LatentPreview
    | Warned
    | Unusual
    | Recovering
    | Recovered
    | Incident
    | Encoded
    | Finished
    | Ended
)
