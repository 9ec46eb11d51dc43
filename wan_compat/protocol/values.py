"""Plain values that several rooms speak about: what a user asks for, and what a worker is told.

All are frozen pydantic models with explicit bounds: `GenerationRequest` comes from users, batch files and sockets,
the others cross to a worker. Names follow diffusers (`num_frames`, `guidance_scale`).
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from wan_compat.protocol.base import Count as Count
from wan_compat.protocol.base import Name as Name
from wan_compat.protocol.base import Seconds as Seconds
from wan_compat.protocol.base import Value as Value
from wan_compat.protocol.media import MAX_MEDIA, MediaSpec
from wan_compat.protocol.plan import Cache, LayerwiseCasting, Offload, PlanSpec
from wan_compat.protocol.sources import LoraSpec, Quantization, SourceSpec
from wan_compat.protocol.video import VideoOptions

MAX_PROMPT_CHARS = 20_000
MAX_FRAMES = 4001
MAX_SIDE = 4096
MAX_STEPS = 1000
MAX_SEED = 2**63 - 1
MAX_VIDEOS = 64  # of one job
MAX_AT_ONCE = 16  # of them, denoised together

Prompt = Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARS)]
ModuleFile = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}\.py$")]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

# The phases of a job that have a timeout of their own; "close" is what a worker gets to stop in before it is killed,
# "stall" how long it may do nothing at all in any of them (policies/stillness.py).
TimedPhase = Literal["start_worker", "load", "text_encode", "denoise", "decode", "encode", "close", "stall"]
ConversionPhase = Literal["start_worker", "open", "convert", "stall"]


QuantizeName = Annotated[str, StringConstraints(pattern=r"^((bitsandbytes|torchao|quanto):)?(int8|int4|nf4|fp8)$")]


def seed_after(seed: int, number: int) -> int:
    """Return the seed of video `number`, from 0, of a job whose first video has `seed`."""
    return (seed + number) % (MAX_SEED + 1)


class Mode(enum.StrEnum):
    """`safe`: repository Python does not exist for the worker. `trust`: approved files run, in the same sandbox."""

    SAFE = "safe"
    TRUST = "trust"


class Task(enum.StrEnum):
    """What is made from what. `t2i` is one frame of `t2v`; `edit` changes a given picture or video by its prompt."""

    T2V = "t2v"
    I2V = "i2v"
    FLF2V = "flf2v"
    V2V = "v2v"
    VACE = "vace"
    TI2V = "ti2v"
    ANIMATE = "animate"
    EDIT = "edit"
    T2I = "t2i"


TaskName = Literal["t2v", "i2v", "flf2v", "v2v", "vace", "ti2v", "animate", "edit", "t2i"]  # as it crosses to a worker


class Isolation(enum.StrEnum):
    """`model`: a worker serves many jobs of one model. `job`: every job gets a fresh worker."""

    MODEL = "model"
    JOB = "job"


# Where a job computes: of several GPUs the one with the most room, or that of a number.
DeviceName = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")]


class LoraRequest(BaseModel):
    """One LoRA file. With two experts, `expert` says which it is for; None asks the file, or takes both."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    path: str = Field(min_length=1, max_length=4096)
    weight: float = Field(default=1.0, ge=-10, le=10)
    expert: Literal["high", "low"] | None = None


_PATHS = (
    *("model", "output", "worker_log", "audio", "preview", "image", "last_image", "video", "mask"),
    *("pose_video", "face_video", "background_video"),
    *("components", "transformer", "transformer_2", "vae", "text_encoder", "image_encoder"),
)


class GenerationRequest(VideoOptions):
    """One prompt, as a user asks for it: a video, or several. Fields left None take the model family's defaults.

    Args:
        model: Folder or file of a Wan model.
        prompt: What to show.
        output: Path of the video to write; None returns the frames instead. Of several, `fox-1.mp4`, ...
        seed: Seed of the initial noise; None draws one, which the result names. Of several videos, each has the seed
            after the one before.
        num_videos: How many, one after the other: each is byte for byte what a job of its own with its seed makes.
        videos_at_once: How many of them are denoised together. Takes as much more memory; sums are added up in
            another order, so that some pixels differ by one.
        height, width: Pixels; must divide by the VAE's and the transformer's factors. Never resized in silence.
        num_frames: 4k + 1 for Wan's causal VAE.
        fps: Frames per second of the file; None takes the family's rate.
        task: What to make; None follows from the model and from what is given with the prompt.
        image, last_image: First and last frame, or the picture to work from.
        video, mask: What to change or be led by, and where (white is made new).
        references: Pictures of what shall appear.
        pose_video, face_video, background_video: What moves a character, for Animate; a background replaces it.
        strength: How much of `video` is made new, 0 to 1.
        conditioning_scale: How strongly control signals lead.
        loras: Applied in this order.
        components: Folder in diffusers layout that gives every part which the model itself does not have.
        transformer, transformer_2, vae, text_encoder, image_encoder: Single files, each for one part.
        quantize: Part -> `int8`, `int4`, `nf4` or `fp8`, with a backend before it or not (`quanto:int8`).
        device: `auto` (a usable GPU, else the processor), `cpu`, `cuda`, or `cuda:1` for the driver's second GPU.
        precision: Of transformer and text encoder; "auto" follows the plan.
        offload: None follows the plan.
        vae_tiling: Decode in tiles; None follows the plan.
        cache: One of diffusers' caches; changes pixels, and is named in the result.
        attention_backend: One of diffusers' names.
        layerwise_casting: Store the transformers' layers in 8 bits, by diffusers' name of them; changes pixels, and is
            named in the result.
        recover: Try other ways when an attempt fails (docs/recovery.md); off, the first error ends the job.
        preview_latents: Small pictures of what the video is becoming, as LatentPreview events and, with `preview`, in
            that folder.
        load_only: Load the model and generate nothing; the worker stays for the next job.
        count_memory: On a CPU, count the tensors of each phase; what is counted takes a little longer.
        timeout_s: Whole job, from submit to finished file.
        phase_timeouts: Phase -> seconds, instead of what each would be given (docs/supervision.md).
        memory_limit_bytes: Cap for the worker; None takes the policy's.
        gpu_memory_limit_bytes: Soft cap for the worker on all GPUs together; None takes the policy's.
        worker_log: File that receives what the worker printed, cleaned.
        format, codec, quality, ...: How the video is written (protocol/video.py).
        restricted: Run what the repository brings for its pipeline if it keeps to an audited subset of Python, in safe
            mode (docs/restricted.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    model: str = Field(min_length=1, max_length=4096)
    prompt: Prompt
    negative_prompt: Prompt | None = None
    output: str | None = Field(default=None, max_length=4096)
    seed: Seed | None = None
    num_videos: int = Field(default=1, ge=1, le=MAX_VIDEOS)
    videos_at_once: int = Field(default=1, ge=1, le=MAX_AT_ONCE)
    height: int | None = Field(default=None, ge=16, le=MAX_SIDE)
    width: int | None = Field(default=None, ge=16, le=MAX_SIDE)
    num_frames: int | None = Field(default=None, ge=1, le=MAX_FRAMES)
    num_inference_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    guidance_scale_2: float | None = Field(default=None, ge=0, le=100)
    max_sequence_length: int | None = Field(default=None, ge=1, le=4096)
    fps: float | None = Field(default=None, gt=0, le=240)
    task: Task | None = None
    image: str | None = Field(default=None, max_length=4096)
    last_image: str | None = Field(default=None, max_length=4096)
    video: str | None = Field(default=None, max_length=4096)
    mask: str | None = Field(default=None, max_length=4096)
    references: tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...] = Field(default=(), max_length=8)
    pose_video: str | None = Field(default=None, max_length=4096)
    face_video: str | None = Field(default=None, max_length=4096)
    background_video: str | None = Field(default=None, max_length=4096)
    strength: float | None = Field(default=None, gt=0, le=1)
    conditioning_scale: float | None = Field(default=None, ge=0, le=10)
    loras: tuple[LoraRequest, ...] = Field(default=(), max_length=8)
    components: str | None = Field(default=None, min_length=1, max_length=4096)
    transformer: str | None = Field(default=None, min_length=1, max_length=4096)
    transformer_2: str | None = Field(default=None, min_length=1, max_length=4096)
    vae: str | None = Field(default=None, min_length=1, max_length=4096)
    text_encoder: str | None = Field(default=None, min_length=1, max_length=4096)
    image_encoder: str | None = Field(default=None, min_length=1, max_length=4096)
    quantize: dict[Name, QuantizeName] = Field(default_factory=dict, max_length=8)
    device: DeviceName = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    offload: Offload | None = None
    vae_tiling: bool | None = None
    cache: Cache | None = None
    attention_backend: Name | None = None
    layerwise_casting: LayerwiseCasting | None = None
    recover: bool = True
    preview_latents: bool = False
    load_only: bool = False
    count_memory: bool = False
    overwrite: bool = False
    mode: Mode = Mode.SAFE
    restricted: bool = False
    isolation: Isolation = Isolation.MODEL
    timeout_s: float | None = Field(default=None, gt=0, le=7 * 86400)
    phase_timeouts: dict[TimedPhase, Annotated[float, Field(gt=0, le=7 * 86400)]] = Field(
        default_factory=dict, max_length=8
    )
    memory_limit_bytes: int | None = Field(default=None, ge=256 << 20, le=1 << 50)
    gpu_memory_limit_bytes: int | None = Field(default=None, ge=256 << 20, le=1 << 50)
    worker_log: str | None = Field(default=None, max_length=4096)

    def __init__(self, **data: Any) -> None:
        # Path objects are what people have at hand; the fields stay plain strings.
        import os

        for name in _PATHS:
            if isinstance(data.get(name), os.PathLike):
                data[name] = os.fspath(data[name])
        super().__init__(**data)

    @field_validator("restricted")
    @classmethod
    def _restricted_code_is_of_safe_mode(cls, restricted: bool, others: ValidationInfo) -> bool:
        if restricted and others.data.get("mode") is Mode.TRUST:
            raise PydanticCustomError("mode", "is of safe mode; trust mode runs approved code as it is")
        return restricted


class FrameSpec(Value):
    """What every frame of a job looks like: agreed at Generate, so that nothing is read from the worker."""

    height: int = Field(ge=1, le=MAX_SIDE)
    width: int = Field(ge=1, le=MAX_SIDE)
    num_frames: int = Field(ge=1, le=MAX_FRAMES)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame: (height, width, 3) uint8 RGB, no padding."""
        return self.height * self.width * 3


class CodeSpec(Value):
    """A class in an approved file of the model's repository. Trust mode only; the supervisor names it, from the files.

    `module` is the file's path in the model's folder. Every folder on its way can be a Python package, and no more of
    them are named than a repository needs.
    """

    module: Annotated[
        str, StringConstraints(pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,63}/){0,4}[A-Za-z_][A-Za-z0-9_]{0,63}\.py$")
    ]
    class_name: Name


class RestrictedSpec(Value):
    """A function in a file at the top of the model's folder, for `--restricted`; named by the supervisor.

    `files` are all that it and its modules consist of, each with the SHA-256 of what the supervisor read.
    """

    module: ModuleFile
    function: Name
    files: dict[ModuleFile, Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]] = Field(
        min_length=1, max_length=16
    )


class ComponentSpec(Value):
    """One part of a pipeline, with the class that must load it. A worker imports nothing that is not named here.

    With `code`, the class is the repository's own, and `library` says by whose rules it is loaded. With `source`, its
    tensors and its configuration do not come from `subfolder`.
    """

    name: Name
    library: Literal["diffusers", "transformers"]
    class_name: Name
    subfolder: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{0,128}$")]
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: not a torch module
    code: CodeSpec | None = None
    source: SourceSpec | None = None
    quantization: Quantization | None = None


# A value of model_index.json that a repository's own pipeline takes as an argument.
Setting = bool | Annotated[int, Field(ge=-(2**53), le=2**53)] | float | Annotated[str, Field(max_length=200)] | None


class GpuSpec(Value):
    """Which NVIDIA GPU a worker computes on: the only one whose device node it has.

    `library_folder` is where the driver's libraries lie, if that is no folder of the system's.
    """

    uuid: Annotated[str, StringConstraints(pattern=r"^GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    minor: int = Field(ge=0, le=255)
    address: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")]
    library_folder: Annotated[str, StringConstraints(pattern=r"^/", max_length=4096)] | None = None


class PipelineSpec(Value):
    """How to build the pipeline: explicit classes for every part, decided by the supervisor from the files.

    With `code`, what runs is the repository's own: the class of a pipeline, or that of modular blocks; `settings` are
    then arguments for it, of which it gets those that it takes. A pipeline of diffusers gets all of them.

    With `restricted`, the pipeline is the library's and what calls it is the repository's, in the audited subset.
    """

    pipeline_class: Name
    code: CodeSpec | None = None
    code_kind: Literal["pipeline", "blocks"] = "pipeline"
    settings: dict[Name, Setting] = Field(default_factory=dict, max_length=32)
    restricted: RestrictedSpec | None = None
    components: tuple[ComponentSpec, ...] = Field(min_length=1, max_length=16)
    loras: tuple[LoraSpec, ...] = Field(default=(), max_length=16)
    boundary_ratio: float | None = Field(default=None, ge=0, le=1)
    expand_timesteps: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    gpu: GpuSpec | None = None  # with device "cuda"; None, for programs of one's own, is what CUDA shows first
    gpu_memory_limit_bytes: int | None = Field(default=None, ge=1)
    # "onednn" sends fp32 Conv3d on CPU to oneDNN: 3x faster decode, differs from the default path by about 3e-6.
    conv3d: Literal["onednn", "default"] = "onednn"
    streaming: Literal["auto", "never"] = "auto"
    # Where frames are taken: as they leave the VAE, or as the pipeline returns them, for those that decode in segments.
    frames: Literal["vae", "pipeline"] = "vae"
    plan: PlanSpec = PlanSpec()
    threads: int = Field(ge=1, le=1024)


class GenerationParams(Value):
    """One generation, resolved: every value is final, nothing is left for the worker to choose.

    `videos_at_once` are made in one call of the pipeline; `seed` is that of the first (`seed_after`).
    """

    prompt: Prompt
    negative_prompt: Prompt | None = None
    seed: Seed
    videos_at_once: int = Field(default=1, ge=1, le=MAX_AT_ONCE)
    num_inference_steps: int = Field(ge=1, le=MAX_STEPS)
    guidance_scale: float = Field(ge=0, le=100)
    guidance_scale_2: float | None = Field(default=None, ge=0, le=100)
    max_sequence_length: int = Field(default=512, ge=1, le=4096)
    task: TaskName = "t2v"
    media: tuple[MediaSpec, ...] = Field(default=(), max_length=MAX_MEDIA)
    strength: float | None = Field(default=None, gt=0, le=1)
    conditioning_scale: float | None = Field(default=None, ge=0, le=10)
    frames: FrameSpec
