"""The result of a job: what was made, from what, how, and how long that took."""

from __future__ import annotations

import dataclasses
import platform
from typing import TYPE_CHECKING

from wan_compat._version import __version__
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.requests import ResolvedRequest
from wan_compat.protocol import messages as m
from wan_compat.protocol.results import (
    GenerationMetadata,
    OutputReport,
    ProcessedFrames,
    SandboxReport,
    Timings,
    VideoGenerationResult,
)
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor.model_choice import code_report
from wan_compat.supervisor.model_parts import changes_of
from wan_compat.supervisor.worker import Worker

if TYPE_CHECKING:
    from wan_compat.policies.planning.choice import Choice
    from wan_compat.supervisor.environments import Environment

COUNTED_PHASES = ("text_encode", "denoise_high", "denoise_low", "decode")


@dataclasses.dataclass(frozen=True)
class Made:
    """What a job knows at its end. `generated` is None where it was only to load, `choice` where no plan is made."""

    request: GenerationRequest
    model: ModelDecision
    resolved: ResolvedRequest
    environment: Environment | None
    choice: Choice | None
    generated: m.Generated | None
    frames: ProcessedFrames | None
    output: OutputReport | None
    timings: Timings
    warnings: list[str]
    recovery: list[dict[str, str]]


def compose_result(run: Made, worker: Worker) -> VideoGenerationResult:
    """Return the document of a job that succeeded, with what its worker says and was seen to use."""
    from wan_compat.policies.planning.contract import plan_of

    model, resolved, environment, frames, output = run.model, run.resolved, run.environment, run.frames, run.output
    loaded = worker.loaded()
    assert worker.tier is not None and loaded is not None
    params = resolved.params
    peak = worker.peak_bytes()
    generated = run.generated
    decoding = "streaming" if loaded.streaming else "whole"
    dtypes = sorted({component.dtype for component in model.pipeline.components if component.dtype})
    return VideoGenerationResult(
        success=True,
        output_path=output.path if output else None,
        frames=frames,
        generation_time=run.timings.total_s or 0.0,
        memory_used=peak,
        metadata=GenerationMetadata(
            model_path=run.request.model,
            pipeline_class=model.pipeline.pipeline_class,
            optimizations_applied=[
                *dtypes,
                f"conv3d:{model.pipeline.conv3d}",
                f"decode:{decoding}",
                *loaded.applied,
                *(generated.applied if generated is not None else ()),
                *changes_of(model),
            ],
            generation_params=params.model_dump(exclude={"frames"})
            | params.frames.model_dump()
            | {"fps": resolved.fps},
            system_info={
                "wan_compat": __version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
                "kernel": platform.release(),
                **({"environment": environment.id} if environment is not None else {}),
                **worker.versions,
            },
            repository=model.repository,
            revision=model.revision,
            # The plan that was chosen, with what recovery made of it.
            plan=None
            if run.choice is None
            else plan_of(run.choice).to_json() | model.pipeline.plan.model_dump(mode="json"),
        ),
        errors=[],
        warnings=list(run.warnings),
        timings=run.timings,
        sandbox=SandboxReport(
            tier=worker.tier.tier.value,
            layers=list(worker.layers),
            memory_limit_bytes=worker.order.memory_limit_bytes,
            self_test=dict(worker.self_test),
            outer=worker.outer_by,
        ),
        peak={
            "worker_rss_bytes": peak,
            "worker_after_bytes": worker.used_bytes(),
            "vram_bytes": generated.peak_vram_bytes if generated is not None else None,
            **_counted(generated),
        },
        recovery=list(run.recovery),
        output=output,
        code=code_report(run.request.mode, model),
        loras=list(model.loras),
    )


def _counted(generated: m.Generated | None) -> dict[str, int]:
    """Return the most bytes of tensors in each phase, where they were counted; of the phases that there are, since a
    worker may name others."""
    found = generated.peak_allocated_bytes if generated is not None else {}
    return {f"{phase}_bytes": found[phase] for phase in COUNTED_PHASES if phase in found}
