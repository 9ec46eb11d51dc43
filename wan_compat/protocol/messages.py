"""The messages between supervisor and worker. `docs/protocol.md` is their authority; this file is its typed form.

    supervisor                                   worker
        |  <- Hello        versions, entry report, self-test, right after entering the sandbox
        |     Welcome ->   the worker closes the narrower system-call filter
        |  <- Ready        from here on it may touch a model
        |     LoadModel ->
        |  <- Progress*, ModelLoaded | Failed
        |     Generate ->  frames go through the ring and the doorbell (protocol/ring.py)
        |  <- Progress*, Generated | Failed | Cancelled
        |     DecodeAgain ->   after a Failed or Generated: the same latents, decoded in another way
        |  <- Progress*, Generated | Failed | Cancelled
        |     LoadPart ->      instead of LoadModel: one component, tried and given up again
        |  <- PartLoaded | Failed
        |     OpenWeights ->   instead of LoadModel: a conversion (protocol/conversion.py)
        |  <- TensorsListed*, WeightsOpened | Failed
        |     SendTensors ->   bytes go through the ring as frames do
        |  <- TensorsSent | Failed | Cancelled
        |     Cancel ->    while loading, generating, opening or sending
        |     Ping ->      at any time after Ready
        |  <- Pong
        |     Shutdown ->

Which message is permitted in which state stands in `protocol/states.py`. Only plain data crosses; every length, count
and range is bounded here, and the codec bounds size and depth before pydantic sees anything.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from wan_compat.protocol.conversion import MAX_FILES, MAX_LISTED, FileNumber, ListedTensor, TensorPiece, WeightSource
from wan_compat.protocol.errors import clean_text
from wan_compat.protocol.plan import DecodeSpec
from wan_compat.protocol.values import (
    MAX_AT_ONCE,
    Count,
    FrameSpec,
    GenerationParams,
    Name,
    PipelineSpec,
    Seconds,
    Value,
)

PROTOCOL_VERSION = 5
MAX_PICTURE_SIDE = 256
MAX_PICTURE_BYTES = 48 << 10  # 128x128, or 160x90 latents of a 1280x720 video

# Text is cleaned where it enters, so that no later sink has to remember that a worker wrote it.
ShortText = Annotated[str, StringConstraints(max_length=200), AfterValidator(lambda text: clean_text(text, 200))]
LongText = Annotated[str, StringConstraints(max_length=4000), AfterValidator(clean_text)]
FixText = Annotated[str, StringConstraints(max_length=500), AfterValidator(lambda text: clean_text(text, 500))]
JobSerial = Annotated[int, Field(ge=1, le=2**31 - 1)]

Phase = Literal["load", "text_encode", "denoise", "decode"]


class Probe(Value):
    """One thing the worker tried and was expected not to be able to do."""

    name: Name
    denied: bool
    detail: ShortText


class Hello(Value):
    type: Literal["hello"] = "hello"
    protocol_version: int = Field(ge=1, le=1000)
    layers: tuple[Name, ...] = Field(max_length=32)
    probes: tuple[Probe, ...] = Field(max_length=64)
    versions: dict[ShortText, ShortText] = Field(max_length=32)
    entry_s: Seconds


class Ready(Value):
    type: Literal["ready"] = "ready"
    probes: tuple[Probe, ...] = Field(max_length=16)


class Picture(Value):
    """A small picture: (height, width, 3) uint8 RGB as base64, since nothing binary crosses. For the eye only."""

    width: Annotated[int, Field(ge=1, le=MAX_PICTURE_SIDE)]
    height: Annotated[int, Field(ge=1, le=MAX_PICTURE_SIDE)]
    pixels: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=MAX_PICTURE_BYTES * 4 // 3)]

    @model_validator(mode="after")
    def _has_all_its_pixels(self) -> Picture:
        size = self.width * self.height * 3
        if size > MAX_PICTURE_BYTES or len(self.pixels) != -(-size // 3) * 4:
            raise PydanticCustomError("pixels", "are not those of the size")
        return self


class Progress(Value):
    """A step was finished. `step` counts from 1 and never exceeds `total`. `picture`: what the video is becoming;
    `timestep`: the scheduler's, of a step of denoising."""

    type: Literal["progress"] = "progress"
    job: Annotated[int, Field(ge=0, le=2**31 - 1)]  # 0 while loading
    phase: Phase
    step: Count
    total: Count
    picture: Picture | None = None
    timestep: float | None = None


class ModelLoaded(Value):
    type: Literal["model_loaded"] = "model_loaded"
    pipeline_class: Name
    parameters: dict[Name, Count] = Field(max_length=16)
    streaming: bool
    streaming_reason: ShortText  # why whole decode is used, or what proved streaming equal
    applied: tuple[ShortText, ...] = Field(default=(), max_length=16)  # of the plan, in words
    load_s: Seconds


class PartLoaded(Value):
    """One component was loaded by itself and given up again. `not_finite` names tensors with NaN or infinite values."""

    type: Literal["part_loaded"] = "part_loaded"
    component: Name
    parameters: Count
    tensor_bytes: Count
    not_finite: tuple[ShortText, ...] = Field(default=(), max_length=8)
    load_s: Seconds


class Generated(Value):
    """All frames were published. Timings are the worker's own; the supervisor counts frames itself."""

    type: Literal["generated"] = "generated"
    job: JobSerial
    text_encode_s: Seconds
    denoise_s: Seconds
    decode_s: Seconds
    notes: tuple[ShortText, ...] = Field(default=(), max_length=16)  # what was done to fit pictures, videos and prompts
    applied: tuple[ShortText, ...] = Field(default=(), max_length=16)  # to this generation, in words
    fitted: tuple[ShortText, ...] = Field(default=(), max_length=16)  # of the call, to what the pipeline takes
    peak_vram_bytes: Count | None = None
    # Of tensors, by phase: text_encode, denoise_high, denoise_low (a second expert), decode. Always on a GPU.
    peak_allocated_bytes: dict[Name, Count] = Field(default_factory=dict, max_length=8)


class Cancelled(Value):
    type: Literal["cancelled"] = "cancelled"
    job: JobSerial


class TensorsListed(Value):
    """Some of the tensors of file number `file`; none is listed twice."""

    type: Literal["tensors_listed"] = "tensors_listed"
    file: FileNumber
    tensors: tuple[ListedTensor, ...] = Field(max_length=MAX_LISTED)


class WeightsOpened(Value):
    """All tensors of all files were listed."""

    type: Literal["weights_opened"] = "weights_opened"


class TensorsSent(Value):
    """All chunks were published."""

    type: Literal["tensors_sent"] = "tensors_sent"
    job: JobSerial


class Failed(Value):
    """Loading or a generation failed; the worker goes on. `code` must be one that a worker may report (errors.py)."""

    type: Literal["failed"] = "failed"
    job: Annotated[int, Field(ge=0, le=2**31 - 1)]  # 0: loading failed
    code: Name
    message: LongText
    fixes: tuple[FixText, ...] = Field(default=(), max_length=8)
    component: Name | None = None  # whose weights are no numbers, where that is the cause


class Pong(Value):
    type: Literal["pong"] = "pong"
    nonce: Count


class Welcome(Value):
    type: Literal["welcome"] = "welcome"


class LoadModel(Value):
    type: Literal["load_model"] = "load_model"
    pipeline: PipelineSpec


class Generate(Value):
    type: Literal["generate"] = "generate"
    job: JobSerial
    params: GenerationParams
    preview_latents: bool = False  # with pictures in the Progress of denoising
    count_memory: bool = False  # on a CPU, where counting costs some microseconds an operation


class DecodeAgain(Value):
    """Decode the latents that the job before left, in another way. A worker keeps them until its next Generate.

    Of latents of several videos, `videos` are decoded from number `first` on: those before them are finished.
    """

    type: Literal["decode_again"] = "decode_again"
    job: JobSerial
    frames: FrameSpec
    first: int = Field(default=0, ge=0, lt=MAX_AT_ONCE)
    videos: int = Field(default=1, ge=1, le=MAX_AT_ONCE)
    decoding: DecodeSpec


class LoadPart(Value):
    type: Literal["load_part"] = "load_part"
    pipeline: PipelineSpec
    component: Name


class OpenWeights(Value):
    type: Literal["open_weights"] = "open_weights"
    files: tuple[WeightSource, ...] = Field(min_length=1, max_length=MAX_FILES)


class SendTensors(Value):
    type: Literal["send_tensors"] = "send_tensors"
    job: JobSerial
    pieces: tuple[TensorPiece, ...] = Field(min_length=1, max_length=MAX_LISTED)


class Cancel(Value):
    type: Literal["cancel"] = "cancel"
    job: Annotated[int, Field(ge=0, le=2**31 - 1)]


class Ping(Value):
    type: Literal["ping"] = "ping"
    nonce: Count


class Shutdown(Value):
    type: Literal["shutdown"] = "shutdown"


FromWorker = Annotated[
    Hello
    | Ready
    | Progress
    | ModelLoaded
    | PartLoaded
    | Generated
    | TensorsListed
    | WeightsOpened
    | TensorsSent
    | Cancelled
    | Failed
    | Pong,
    Field(discriminator="type"),
]
ToWorker = Annotated[
    Welcome | LoadModel | LoadPart | Generate | DecodeAgain | OpenWeights | SendTensors | Cancel | Ping | Shutdown,
    Field(discriminator="type"),
]
