"""What a finished job gives back. Field names are those of the contract and of the JSON documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

RESULT_SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ProcessedFrames:
    """Frames in memory: (num_frames, height, width, 3) uint8 RGB, owned by the caller; `duration` in seconds."""

    frames: np.ndarray
    fps: float
    duration: float
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class GenerationMetadata:
    """With what a video was made. `generation_params` has the resolved values, the seed included; `repository` and
    `revision` are known where the model lies in a Hugging Face cache; `plan` is how the model was made to fit."""

    model_path: str
    pipeline_class: str
    optimizations_applied: list[str]
    generation_params: dict[str, Any]
    system_info: dict[str, Any]
    repository: str | None = None
    revision: str | None = None
    plan: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds per phase, on the supervisor's monotonic clock unless said otherwise.

    `first_frame_s` runs from Generate to the first frame handed to the encoder; `encode_s` from that moment to the
    finished, verified file; `text_encode_s`, `denoise_s`, `decode_s` are the worker's own words.
    """

    worker_start_s: float = 0.0
    load_s: float = 0.0
    text_encode_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    first_frame_s: float = 0.0
    encode_s: float = 0.0
    total_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class SandboxReport:
    """The confinement that was in force: entered, self-tested in the worker, compared by the supervisor."""

    tier: str
    layers: list[str]
    memory_limit_bytes: int
    self_test: dict[str, bool]  # probe -> denied
    outer: str | None = None  # the program that made namespaces and view around the worker; None: the worker itself did


@dataclasses.dataclass(frozen=True)
class CodeReport:
    """Whose code made the video. Trust mode: the repository, the hash of its tree, when it was approved, and the files
    that name the classes which ran. Safe mode: nobody's but the libraries', or with `restricted` the repository's
    `files` too, each with its SHA-256."""

    mode: str
    source: str | None = None
    revision: str | None = None
    tree_hash: str | None = None
    approved_at: str | None = None
    modules: list[str] = dataclasses.field(default_factory=list)
    restricted: bool = False
    files: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LoraReport:
    """One LoRA on one transformer: layers of it that were adapted, and tensors of the file that belong to none."""

    path: str
    component: str
    weight: float
    matched: int
    unmatched: int
    unmatched_names: list[str]


@dataclasses.dataclass(frozen=True)
class OutputReport:
    """The written file, as read back from it."""

    path: str
    codec: str
    width: int
    height: int
    fps: float
    num_frames: int
    sha256: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class ConvertedFile:
    """One file of a converted model, relative to its folder. `sha256` is None where it was planned only; `tensors` is 0
    for a document."""

    path: str
    bytes: int
    sha256: str | None
    tensors: int


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """One finished conversion. `pipeline_class` is None for a single component.

    `dropped` names tensors without a place in the new model, by source file; `unused` weight files in which no part was
    found. `warnings` say why `generate` would not run the result here, if it would not.
    """

    model: str
    output: str
    dry_run: bool
    pipeline_class: str | None
    architecture_type: str
    variant: str | None
    files: list[ConvertedFile]
    dropped: dict[str, list[str]]
    unused: list[str]
    reasons: list[str]
    warnings: list[str]
    source_bytes: int
    written_bytes: int
    total_s: float
    sandbox: SandboxReport
    peak: dict[str, int | None]

    def to_json(self) -> dict[str, Any]:
        """Return the `convert` document."""
        return {"schema_version": RESULT_SCHEMA_VERSION, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class VideoGenerationResult:
    """One finished video. `memory_used`: the worker's peak in bytes, seen from outside; `generation_time`: seconds.

    A job's result is that of its first video; `others` has those of the further ones. Their times begin where the
    video before ended; of videos that were made at once, each has the times of all of them.
    """

    success: bool
    output_path: str | None
    frames: ProcessedFrames | None
    generation_time: float
    memory_used: int
    metadata: GenerationMetadata
    errors: list[str]
    warnings: list[str]
    timings: Timings
    sandbox: SandboxReport
    peak: dict[str, int | None]
    recovery: list[dict[str, str]]
    output: OutputReport | None
    code: CodeReport = CodeReport("safe")
    loras: list[LoraReport] = dataclasses.field(default_factory=list)
    others: list[VideoGenerationResult] = dataclasses.field(default_factory=list)

    @property
    def videos(self) -> list[VideoGenerationResult]:
        """The results of all videos, this one first."""
        return [self, *self.others]

    @classmethod
    def of_videos(cls, videos: Sequence[VideoGenerationResult]) -> VideoGenerationResult:
        """Return the result of a job that made these, of which there is one at least."""
        first, *others = videos
        return dataclasses.replace(first, others=others)

    def to_json(self) -> dict[str, Any]:
        """Return the `generate` document: plain data, without the pixels."""
        document: dict[str, Any] = {"schema_version": RESULT_SCHEMA_VERSION}
        for field in dataclasses.fields(self):
            if field.name == "others":
                continue
            value = getattr(self, field.name)
            if field.name == "frames":
                document["frames"] = None if value is None else {"shape": list(value.frames.shape), "fps": value.fps}
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                document[field.name] = dataclasses.asdict(value)
            elif field.name == "loras":
                document["loras"] = [dataclasses.asdict(report) for report in self.loras]
            else:
                document[field.name] = value
        document["videos"] = [result._entry(number) for number, result in enumerate(self.videos)]
        return document

    def _entry(self, number: int) -> dict[str, Any]:
        """Return what is one video's own."""
        frames = self.frames
        return {
            "video": number,
            "seed": self.metadata.generation_params.get("seed"),
            "output_path": self.output_path,
            "output": None if self.output is None else dataclasses.asdict(self.output),
            "frames": None if frames is None else {"shape": list(frames.frames.shape), "fps": frames.fps},
            "generation_time": self.generation_time,
            "timings": dataclasses.asdict(self.timings),
            "warnings": self.warnings,
            "recovery": self.recovery,
        }
