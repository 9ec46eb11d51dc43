"""What a job would do: every decision that comes before its worker (job_run.py), and nothing that comes after.

The same functions decide, so that what is refused here is what a job would end with, and what is told is what it would
do. Nothing is started and nothing is left: the output's place is tried and given back.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from wan_compat.policies.limits import memory_limit
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.planning.choice import Choice
from wan_compat.policies.planning.contract import plan_of
from wan_compat.policies.policy import Policy
from wan_compat.policies.requests import ResolvedRequest, resolve_request
from wan_compat.policies.tasks import media_of, wish_of
from wan_compat.policies.videos import outputs_of
from wan_compat.protocol.errors import RefusedByPolicy
from wan_compat.protocol.results import RESULT_SCHEMA_VERSION
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor.delivery import prepare_delivery
from wan_compat.supervisor.gpus import gpu_for
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.job_context import narrower
from wan_compat.supervisor.job_plan import plan_job
from wan_compat.supervisor.machine import worker_machine
from wan_compat.supervisor.media import copied_media
from wan_compat.supervisor.model_choice import choose_model
from wan_compat.supervisor.model_parts import parts_of


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What would be made, and how. `outputs`: final paths, none for frames; `choice`: None where no plan is made."""

    request: GenerationRequest
    model: ModelDecision
    resolved: ResolvedRequest
    choice: Choice | None
    memory_limit_bytes: int
    min_tier: str
    outputs: tuple[str, ...]

    @property
    def output(self) -> str | None:
        return self.outputs[0] if self.outputs else None

    def to_json(self) -> dict[str, Any]:
        """Return the document of `generate --dry-run`."""
        params = self.resolved.params
        return {
            "schema_version": RESULT_SCHEMA_VERSION,
            "dry_run": True,
            "model": self.request.model,
            "pipeline_class": self.model.pipeline.pipeline_class,
            "mode": self.request.mode.value,
            "output_path": self.output,
            "output_paths": list(self.outputs),
            "generation_params": params.model_dump(exclude={"frames"})
            | params.frames.model_dump()
            # A seed that is drawn is drawn by the job.
            | {"fps": self.resolved.fps, "seed": self.request.seed, "num_videos": self.request.num_videos},
            "plan": None if self.choice is None else plan_of(self.choice).to_json(),
            "sandbox": {"min_tier": self.min_tier, "memory_limit_bytes": self.memory_limit_bytes},
            "admitted": [{"path": file.path, "bytes": file.size} for file in self.model.admitted],
        }


def look_ahead(request: GenerationRequest, policy: Policy) -> Outlook:
    """Decide everything about a job, and do nothing of it.

    Raises:
        WanCompatError: What the job would end with before its worker: a refusal, a missing file, no room.
    """
    if request.restricted and not policy.allow_restricted:
        raise RefusedByPolicy(
            "the policy does not allow restricted code of repositories",
            hint="use a repository whose pipeline is part of diffusers",
        )
    host = read_host()
    wanted = [one for one in (request.memory_limit_bytes, policy.memory_limit_bytes) if one is not None]
    limit = memory_limit(min(wanted, default=None), host)
    model = choose_model(
        request.model,
        request.mode,
        threads=host.cpu_count,
        memory_limit_bytes=limit,
        restricted=request.restricted,
        wish=wish_of(request),
        parts=parts_of(request),
        recover=request.recover and not policy.require_manifest,
    )
    with copied_media(media_of(request)) as media:
        resolved = resolve_request(request, model, seed=0, media=media.specs)
    gpu = gpu_for(request.device, policy).gpu
    vram = narrower(request.gpu_memory_limit_bytes, policy.gpu_memory_limit_bytes)
    planned = plan_job(request, model, resolved, worker_machine(limit, host=host, gpu=gpu, vram_limit_bytes=vram))
    outputs = []
    for path in [] if request.output is None else outputs_of(request.output, request.num_videos):
        options = request.model_copy(update={"preview": None})  # whose folder would be made
        place = prepare_delivery(path, resolved.params.frames, resolved.fps, options, overwrite=request.overwrite)
        with place:
            outputs.append(place.path)
    return Outlook(request, planned.model, resolved, planned.choice, limit, policy.min_tier.value, tuple(outputs))
