"""The messages between a supervisor and other programs of the same user. `docs/protocol.md` is their authority.

    client                                       supervisor
        |     Greet ->       first, and within GREETING_S
        |  <- Greeting       who it is; or a Refusal, and the end
        |     GetStatus ->
        |  <- StatusReply
        |     CancelJob, KillWorker, Pause, Resume, Drain ->
        |  <- Done
        |     Submit ->      to one that serves
        |  <- Submitted      the job's id, which outlives this connection
        |     FollowJob ->   from any event on
        |  <- Done
        |  <- JobEvent*      under the number of the FollowJob, until the job's last one
        |     UnfollowJob, GetJob, GetResult ->
        |  <- Done, JobReply, JobResult (with a descriptor, where there are frames)

Every request has a number of the client's choice and gets exactly one answer with that number, or a Refusal that
carries the error; what cannot be decoded is refused under the number NO_REQUEST, and ends the connection. Clients are
other programs of the user who runs the supervisor, so they may ask for whatever that user may. Still they may be wrong,
slow or gone, and are bounded: see the limits below.

On the wire a message is its length, four bytes, big-endian, and then the envelope of `codec.py`, with a version of its
own.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from wan_compat.protocol.base import Count, Name, Seconds, Value
from wan_compat.protocol.codec import Codec, Limits
from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.protocol.results import (
    CodeReport,
    ConversionReport,
    GenerationMetadata,
    LoraReport,
    OutputReport,
    SandboxReport,
    Timings,
    VideoGenerationResult,
)
from wan_compat.protocol.status import Id, JobStatus, SupervisorStatus, Text
from wan_compat.protocol.values import MAX_FRAMES, MAX_SIDE, MAX_VIDEOS, GenerationRequest

CONTROL_VERSION = 2

NO_REQUEST = 2**53 - 1  # number of a Refusal that is about the connection, which then ends
LENGTH = struct.Struct(">I")
REQUEST_LIMITS = Limits(message_bytes=512 << 10)
# A status of all its lists has some 30,000 values; a conversion's report may name each tensor that found no place.
REPLY_LIMITS = Limits(message_bytes=8 << 20, depth=12, items=65_536, nodes=200_000)

MAX_CLIENTS = 32
MAX_FOLLOWED = 2000  # jobs that one client follows at once
MAX_KEPT_JOBS = 200  # submitted by clients and over; the oldest is forgotten first
MAX_KEPT_FRAMES = 32  # results without a file, each of which is an open descriptor
MAX_KEPT_FRAME_BYTES = 4 << 30  # of them all together; those of the oldest job go first
MAX_UNSENT_BYTES = 1 << 20  # beyond these a client gets no more events, and no further request of it is read
REQUESTS_PER_S = 100.0
REQUEST_BURST = 200.0
GREETING_S = 5.0
MAX_LABEL_CHARS = 200

JobKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Priority = Annotated[int, Field(ge=-100, le=100)]
ShortName = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]
ModeName = Literal["safe", "trust"]


class Greet(Value):
    """`program`: what the client is. Its jobs are labelled with it where they have no label of their own."""

    type: Literal["greet"] = "greet"
    program: Text


class GetStatus(Value):
    type: Literal["get_status"] = "get_status"


class CancelJob(Value):
    type: Literal["cancel_job"] = "cancel_job"
    job: Id


class KillWorker(Value):
    type: Literal["kill_worker"] = "kill_worker"
    worker: Id


class Pause(Value):
    type: Literal["pause"] = "pause"


class Resume(Value):
    type: Literal["resume"] = "resume"


class Drain(Value):
    """Take no more jobs. Answered at once; a status tells when the last one is over."""

    type: Literal["drain"] = "drain"


class Submit(Value):
    """Queue one job; exactly one of `generation` and `conversion` is there, and every path in it is absolute.

    Args:
        key: Drawn by the client. A second Submit with the same key is answered with the first one's job, so that a
            client whose connection broke in between can ask again.
        cancel_on_disconnect: Cancel the job when this connection ends before it does.
    """

    type: Literal["submit"] = "submit"
    key: JobKey
    generation: GenerationRequest | None = None
    conversion: ConversionRequest | None = None
    priority: Priority = 0
    group: ShortName = ""
    label: ShortName = ""
    cancel_on_disconnect: bool = False


class FollowJob(Value):
    """Send the job's events from number `after` on: 0 is the first."""

    type: Literal["follow_job"] = "follow_job"
    job: Id
    after: Count = 0


class UnfollowJob(Value):
    type: Literal["unfollow_job"] = "unfollow_job"
    job: Id


class GetJob(Value):
    type: Literal["get_job"] = "get_job"
    job: Id


class GetResult(Value):
    """Of a job that is over; a Refusal carries the error where it failed."""

    type: Literal["get_result"] = "get_result"
    job: Id


class Greeting(Value):
    """`supervisor` names one run of one process: a job id means nothing at another one."""

    type: Literal["greeting"] = "greeting"
    supervisor: Id
    pid: Count
    version: Annotated[str, Field(max_length=64)]
    mode: ModeName
    serves: bool
    read_only: bool


class StatusReply(Value):
    type: Literal["status"] = "status"
    status: SupervisorStatus


class Done(Value):
    """`done`: whether there was something to do, such as a job of that id."""

    type: Literal["done"] = "done"
    done: bool


class Submitted(Value):
    type: Literal["submitted"] = "submitted"
    job: Id


class JobReply(Value):
    type: Literal["job"] = "job"
    status: JobStatus


class JobEvent(Value):
    """One event. `kind` and `fields` are those of a class in `supervisor/events.py`; pixels are base64, an error is
    what a Refusal carries, and a result is left out: GetResult gives it."""

    type: Literal["job_event"] = "job_event"
    job: Id
    index: Count
    kind: Name
    fields: dict[Name, Any] = Field(default_factory=dict, max_length=32)


class FramesDocument(Value):
    """What the descriptor that comes with a JobResult holds: `shape` (num_frames, height, width, 3) uint8 RGB."""

    shape: tuple[
        Annotated[int, Field(ge=1, le=MAX_FRAMES)],
        Annotated[int, Field(ge=1, le=MAX_SIDE)],
        Annotated[int, Field(ge=1, le=MAX_SIDE)],
        Literal[3],
    ]
    fps: Annotated[float, Field(gt=0, lt=float("inf"))]
    duration: Seconds
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def frames_bytes(self) -> int:
        num_frames, height, width, channels = self.shape
        return num_frames * height * width * channels


class ResultDocument(Value):
    """The fields of VideoGenerationResult. Lists cross as arrays, which come back as tuples: hence not strict."""

    model_config = ConfigDict(strict=False)

    success: bool
    output_path: str | None
    frames: FramesDocument | None
    generation_time: Seconds
    memory_used: Count
    metadata: GenerationMetadata
    errors: list[str]
    warnings: list[str]
    timings: Timings
    sandbox: SandboxReport
    peak: dict[str, int | None]
    recovery: list[dict[str, str]]
    output: OutputReport | None
    code: CodeReport
    loras: list[LoraReport]
    others: Annotated[list[ResultDocument], Field(max_length=MAX_VIDEOS - 1)] = Field(default_factory=list)

    @property
    def pixels(self) -> list[FramesDocument]:
        """What the descriptor holds: the frames of each video that has some, one after the other."""
        return [one.frames for one in (self, *self.others) if one.frames is not None]


class Refusal(Value):
    """An error with its code: of the request itself, or of the job that was asked for."""

    type: Literal["refusal"] = "refusal"
    code: Name
    message: Annotated[str, Field(max_length=4000)]
    fixes: tuple[Annotated[str, Field(max_length=500)], ...] = Field(default=(), max_length=64)
    diagnostic: Annotated[str, Field(max_length=4096)] | None = None
    details: dict[str, Any] = Field(default_factory=dict)


class JobResult(Value):
    """Exactly one of `generation` and `conversion` is there. With frames, one descriptor holds those of all videos.

    `error`: what ended the job after the videos of `generation`, which stand.
    """

    model_config = ConfigDict(strict=False)

    type: Literal["job_result"] = "job_result"
    generation: ResultDocument | None = None
    conversion: ConversionReport | None = None
    error: Refusal | None = None


ToSupervisor = Annotated[
    Greet
    | GetStatus
    | CancelJob
    | KillWorker
    | Pause
    | Resume
    | Drain
    | Submit
    | FollowJob
    | UnfollowJob
    | GetJob
    | GetResult,
    Field(discriminator="type"),
]
FromSupervisor = Annotated[
    Greeting | StatusReply | Done | Submitted | JobReply | JobEvent | JobResult | Refusal,
    Field(discriminator="type"),
]


def to_supervisor_codec() -> Codec[Any]:
    return Codec(ToSupervisor, version=CONTROL_VERSION, limits=REQUEST_LIMITS)


def from_supervisor_codec() -> Codec[Any]:
    return Codec(FromSupervisor, version=CONTROL_VERSION, limits=REPLY_LIMITS)


def pack(message: bytes) -> bytes:
    """Return a message as it goes over the stream."""
    return LENGTH.pack(len(message)) + message


def result_document(result: VideoGenerationResult) -> ResultDocument:
    """Return a result in the form that crosses; its frames go beside it."""
    frames = result.frames
    fields = {name: getattr(result, name) for name in ResultDocument.model_fields if name not in ("frames", "others")}
    fields["others"] = [result_document(other) for other in result.others]
    document = None
    if frames is not None:
        document = FramesDocument(
            shape=frames.frames.shape, fps=frames.fps, duration=frames.duration, metadata=frames.metadata
        )
    return ResultDocument(**fields, frames=document)
