"""`IntegrationValidator`: a model's whole way, detect -> load -> generate -> encode, with a report on each stage."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from typing import TYPE_CHECKING, Any, Literal

from wan_compat.policies.smoke_request import PROMPT, SEED, smoke_request
from wan_compat.protocol.errors import JobCancelled, WanCompatError
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.load_test import clip_fields, decided
from wan_compat.supervisor.model_handle import ModelHandle
from wan_compat.supervisor.smoke_media import smoke_media

if TYPE_CHECKING:
    from wan_compat.protocol.results import VideoGenerationResult
    from wan_compat.supervisor.client import Job, Supervisor

StageName = Literal["detect", "load", "generate", "encode"]
STAGES: tuple[StageName, ...] = ("detect", "load", "generate", "encode")


@dataclasses.dataclass(frozen=True)
class StageReport:
    """One stage. `success` is None where an earlier one failed and this was never begun; `code` is the error's."""

    name: StageName
    success: bool | None
    seconds: float = 0.0
    detail: str = ""
    code: str | None = None


@dataclasses.dataclass(frozen=True)
class IntegrationReport:
    """All four stages in order."""

    model: str
    stages: tuple[StageReport, ...]

    @property
    def success(self) -> bool:
        return all(stage.success for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        return {"model": self.model, "success": self.success, "stages": [dataclasses.asdict(s) for s in self.stages]}


class IntegrationValidator:
    """Args:
    supervisor: Runs the jobs; stays open.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def validate(self, model: str, *, suffix: str = ".mp4", **fields: Any) -> IntegrationReport:
        """Take a model all the way to a small video file, which is thrown away. An error ends it, and is in the report.

        Args:
            suffix: Of the file, which chooses its format.
            fields: Of the GenerationRequest: `mode`, `task`, `codec`, ...

        Raises:
            JobCancelled: The only error that is not an answer.
        """
        stages: list[StageReport] = []
        began = time.monotonic()

        def passed(name: StageName, detail: str) -> None:
            nonlocal began
            now = time.monotonic()
            stages.append(StageReport(name, True, now - began, detail))
            began = now

        current: list[StageName] = ["detect"]
        try:
            found = self._supervisor.check(model)
            decision = decided(model, **fields)
            passed("detect", f"{found.architecture.architecture_type}, runs through {decision.pipeline.pipeline_class}")
            current.append("load")
            clip = smoke_request(decision)
            with smoke_media(clip.media, clip.width, clip.height, clip.media_frames) as media:
                follow = _Following(current)
                handle = ModelHandle(self._supervisor, model, follow=follow, **{**fields, **clip_fields(clip), **media})
                loaded = handle.load()
                passed("load", f"sandbox tier {loaded.sandbox.tier}, {loaded.memory_used / 1e6:.0f} MB")
                current.append("generate")
                with tempfile.TemporaryDirectory(prefix="wan-compat-integration-") as folder:
                    result = handle.generate(PROMPT, seed=SEED, output=os.path.join(folder, f"clip{suffix}"))
            output = result.output
            assert output is not None
            generated = follow.generated_after
            stages.append(StageReport("generate", True, generated, f"{clip.num_frames} frames"))
            stages.append(
                StageReport(
                    "encode",
                    True,
                    time.monotonic() - began - generated,
                    f"{output.codec}, {output.num_frames} frames, {output.width}x{output.height}, read back",
                )
            )
        except JobCancelled:
            raise
        except WanCompatError as error:
            if current[-1] == "generate" and error.code == "encoding_failed":
                current.append("encode")  # the encoder works from the first frame on, and can end while others are made
            if current[-1] == "encode":
                stages.append(StageReport("generate", True, time.monotonic() - began))
            stages.append(StageReport(current[-1], False, time.monotonic() - began, error.message, error.code))
        told = {stage.name for stage in stages}
        return IntegrationReport(model, (*stages, *(StageReport(name, None) for name in STAGES if name not in told)))


class _Following:
    """Waits for a job, and notes whether it makes frames or waits for the encoder, which another attempt undoes."""

    def __init__(self, current: list[StageName]) -> None:
        self._current = current
        self.generated_after = 0.0

    def __call__(self, job: Job) -> VideoGenerationResult:
        began = time.monotonic()
        for event in job.events():
            if not isinstance(event, ev.PhaseStarted):
                continue
            if event.phase == "encode":
                self.generated_after = time.monotonic() - began
                self._current.append("encode")
            elif self._current[-1] == "encode":
                self._current.append("generate")
        return job.result()
