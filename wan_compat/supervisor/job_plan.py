"""A job's plan: chosen when the request is final and before anything is loaded, refused where nothing fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from wan_compat.policies.models import ModelDecision
from wan_compat.policies.planning.candidates import Wishes
from wan_compat.policies.planning.choice import Choice, choose, require_fit
from wan_compat.policies.planning.job import at_once_of, job_of, shape_of, wishes_of, with_plan
from wan_compat.policies.planning.machine import GpuFacts, MachineFacts
from wan_compat.policies.planning.work import first_step_s
from wan_compat.policies.requests import ResolvedRequest
from wan_compat.protocol.errors import InvalidRequest, MemoryExceeded
from wan_compat.protocol.values import GenerationRequest, PipelineSpec


@dataclasses.dataclass(frozen=True)
class PlannedJob:
    """`choice` is None where no plan is made: classes of a repository's own are run as they are."""

    model: ModelDecision
    choice: Choice | None


def plan_without_gpu(
    request: GenerationRequest, model: ModelDecision, resolved: ResolvedRequest, machine: MachineFacts
) -> PipelineSpec | None:
    """Return how a job that was planned for a GPU would be run on the processor; None where it does not fit there."""
    try:
        return plan_job(request, model, resolved, dataclasses.replace(machine, gpus=())).model.pipeline
    except (InvalidRequest, MemoryExceeded):
        return None


def plan_job(
    request: GenerationRequest, model: ModelDecision, resolved: ResolvedRequest, machine: MachineFacts
) -> PlannedJob:
    """Return the model as it will be loaded.

    Raises:
        InvalidRequest: Wishes that contradict each other, the machine or the model.
        MemoryExceeded: No way to run it fits; names the nearest request that does.
    """
    wishes = wishes_of(request)
    shape = shape_of(model)
    if shape is None:
        if wishes.on_gpu:
            raise InvalidRequest(
                f"device {request.device!r} is for diffusers' pipelines; this one is of the repository, and is "
                "computed on the processor",
                hint="leave --device out",
            )
        if wishes != Wishes():
            raise InvalidRequest(
                "precision, offload, tiling, attention, casting and caches are for diffusers' pipelines; this one is "
                "of the repository, and is run without a plan",
                hint="leave those options out",
            )
        return PlannedJob(model, None)
    choice = choose(shape, job_of(model, resolved.params, at_once_of(request)), machine, wishes)
    require_fit(choice, request.model)
    return PlannedJob(with_plan(model, choice), choice)


def longest_first_step(
    request: GenerationRequest, model: ModelDecision, resolved: ResolvedRequest, gpu: GpuFacts | None
) -> Callable[[PipelineSpec], float] | None:
    """Return what tells how long the first denoising step can take, by how the model is run; None where its size is
    not known."""
    shape = shape_of(model)
    if shape is None:
        return None
    job = job_of(model, resolved.params, at_once_of(request))
    return lambda pipeline: first_step_s(shape, job, pipeline, gpu)
