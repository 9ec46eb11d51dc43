"""The values of recovery: what failed, where the job stands, and what comes next."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from wan_compat.protocol.plan import DecodeSpec
from wan_compat.protocol.values import FrameSpec, PipelineSpec

# decode: the same worker decodes the latents that it kept. generate: everything anew, in another way. restart: the
# same once more, in a new worker.
Kind = Literal["decode", "generate", "restart"]
Category = Literal[
    "memory", "frames", "decoding", "computing", "loading", "death", "encoding", "overdue", "device", "none"
]

MAX_STEPS_PER_ERROR = 3
MAX_STEPS_PER_JOB = 6
FIRST_DELAY_S = 0.5  # before a restart; doubled each time

_CATEGORIES: Mapping[str, Category] = {
    "memory_exceeded": "memory",
    "unusable_frames": "frames",
    "generation_failed": "computing",
    "model_not_compatible": "loading",
    "worker_died": "death",
    "worker_start_failed": "death",
    "worker_silent": "death",
    "worker_stalled": "death",
    "encoding_failed": "encoding",
    "phase_timeout": "overdue",
    "gpu_unusable": "device",
}


@dataclasses.dataclass(frozen=True)
class Failure:
    """One failed attempt, as the supervisor saw it.

    code, message: Of the error.
    phase: In which the job was; "decode" begins when the last denoising step is over.
    signal: What ended the worker, if it died of one.
    component: The part whose weights are no numbers, if that is the cause.
    kept: The frames are safe somewhere, and the error says where.
    wanted: It went beyond a limit that somebody set, who wants the end and nothing else.
    """

    code: str
    message: str
    phase: str
    signal: int | None = None
    component: str | None = None
    kept: bool = False
    wanted: bool = False

    @property
    def category(self) -> Category:
        if self.component is not None or self.kept or self.wanted:
            return "none"
        found = _CATEGORIES.get(self.code, "none")
        return "decoding" if found == "computing" and self.phase == "decode" else found


@dataclasses.dataclass(frozen=True)
class Situation:
    """Where a job stands.

    pipeline: As it was loaded for the attempt that failed.
    fixed: What the user asked for by name, of "precision", "offload", "vae_tiling", "attention_backend" and
        "layerwise_casting": recovery does not change it.
    latents: The worker lives and has the latents, so that only decoding need be done again.
    tried: Names of all steps so far, with the category that each was for.
    on_cpu: How the job would be run on the processor, where it was given a GPU that nobody asked for by name.
    """

    pipeline: PipelineSpec
    frames: FrameSpec
    fixed: frozenset[str] = frozenset()
    latents: bool = False
    tried: tuple[tuple[Category, str], ...] = ()
    on_cpu: PipelineSpec | None = None

    def times(self, category: Category) -> int:
        return sum(1 for known, _ in self.tried if known == category)


@dataclasses.dataclass(frozen=True)
class Step:
    """What is tried next. `action` tells a person; `changes_pixels` is part of it where frames will differ visibly
    from those that the first plan would have made."""

    name: str
    kind: Kind
    action: str
    pipeline: PipelineSpec
    decoding: DecodeSpec | None = None
    delay_s: float = 0.0
    changes_pixels: bool = False


@dataclasses.dataclass(frozen=True)
class Stop:
    """Nothing is left to try, or nothing should be. `reason` says why."""

    reason: str
