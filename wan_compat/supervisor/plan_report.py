"""`plan`: memory per phase and the way to run that fits, before anything is loaded. Reads headers only."""

from __future__ import annotations

import dataclasses
from typing import Any

from wan_compat.policies.facts import HostFacts, ModelFacts
from wan_compat.policies.limits import HOST_SHARE
from wan_compat.policies.models import decide_model
from wan_compat.policies.planning.choice import Choice, choose, describe_nearest
from wan_compat.policies.planning.contract import estimate_of, plan_of
from wan_compat.policies.planning.job import at_once_of, job_of, shape_of, wishes_of
from wan_compat.policies.planning.machine import GpuFacts, MachineFacts
from wan_compat.policies.policy import Policy
from wan_compat.policies.requests import resolve_request
from wan_compat.policies.tasks import Wish
from wan_compat.protocol.errors import InvalidRequest, MemoryExceeded, ModelNotCompatible, WanCompatError
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor.gpus import gpu_for
from wan_compat.supervisor.job_context import narrower
from wan_compat.supervisor.machine import read_machine, worker_machine
from wan_compat.supervisor.model_choice import choose_model
from wan_compat.supervisor.model_parts import changes_of, parts_of

PLAN_SCHEMA_VERSION = 1
_UNBOUNDED = 1 << 60  # the precision that a decision begins with does not matter: the plan has the last word


@dataclasses.dataclass(frozen=True)
class PlanReport:
    """What `plan` answers."""

    model: str
    pipeline_class: str
    task: str
    choice: Choice
    why_no_gpu: tuple[str, ...] = ()  # what is wrong with those that were found
    parts: tuple[str, ...] = ()  # what is not the folder's own, or in fewer bits: `transformer:gguf`

    @property
    def exit_code(self) -> int:
        return 0 if self.choice.fits else MemoryExceeded.exit_code

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know besides: plans for a GPU were computed, never tried."""
        machine = self.choice.machine
        return (*(gpu.remark for gpu in machine.gpus[:1]), *self.why_no_gpu)

    @property
    def nearest(self) -> str | None:
        """What to ask for instead, where this does not fit and something smaller does."""
        found = self.choice.nearest
        return None if found is None else describe_nearest(self.choice.job, found)

    def to_json(self) -> dict[str, Any]:
        """Return the `plan` document."""
        choice, job = self.choice, self.choice.job
        nearest = choice.nearest
        return {
            "schema_version": PLAN_SCHEMA_VERSION,
            "model": self.model,
            "pipeline_class": self.pipeline_class,
            "task": self.task,
            "parts": list(self.parts),
            "width": job.width,
            "height": job.height,
            "num_frames": job.num_frames,
            "videos_at_once": job.at_once,
            "phases": {
                name: {
                    "vram_bytes": item.vram_bytes,
                    "ram_bytes": item.ram_bytes,
                    "weights_bytes": item.weights,
                    "work_bytes": item.work,
                }
                for name, item in choice.chosen.phases.items()
            },
            "plan": plan_of(choice).to_json(),
            "fits": choice.fits,
            "reasons": list(choice.reasons if choice.fits else choice.chosen.short),
            "estimate": dataclasses.asdict(estimate_of(choice)),
            "nearest": None
            if nearest is None
            else {"width": nearest.width, "height": nearest.height, "num_frames": nearest.num_frames},
            "fits_in_8_bits": choice.fits_in_8_bits,
            "weighed": [
                {
                    "name": item.candidate.name,
                    "fits": item.fits,
                    "vram_bytes": item.vram_bytes,
                    "ram_bytes": item.ram_bytes,
                    "cost": item.candidate.cost.factor,
                    "cost_basis": item.candidate.cost.basis,
                    "lacks": list(item.short),
                }
                for item in choice.weighed
            ],
            "machine": {
                "vram_bytes": choice.machine.vram_bytes,
                "ram_bytes": choice.machine.ram_limit_bytes,
                "gpus": [gpu.name for gpu in choice.machine.gpus],
                "cpu_count": choice.machine.cpu_count,
            },
            "remarks": list(self.remarks),
        }


def plan_model(
    request: GenerationRequest,
    *,
    vram_bytes: int | None = None,
    ram_bytes: int | None = None,
    policy: Policy | None = None,
) -> PlanReport:
    """Plan a job for this machine, or for one with other memory.

    Args:
        request: What would be generated; its prompt does not matter, and pictures need not be there.
        vram_bytes: Of a GPU to plan for instead of what is here; 0 plans without one.
        ram_bytes: Main memory that a worker may take; None is what a job would be given here.
        policy: What the job would run under; for a machine that is only imagined, its limits do not count.

    Raises:
        ModelNotCompatible: It has classes of its own, whose memory nobody knows.
        EnvironmentLacks: A part is wanted in a form that needs a package which is not installed.
        InvalidRequest: A GPU to plan for, and none to compute on.
        InvalidRequest, ModelNotFound, ...: As `choose_model` and `resolve_request`.
    """
    machine, why_not = _machine(request, vram_bytes, ram_bytes, policy or Policy())
    # A task is planned without its pictures; they are asked for when it runs.
    wish = None if request.task is None else Wish(task=request.task.value, media_later=True)
    model = choose_model(
        request.model,
        request.mode,
        threads=machine.cpu_count,
        memory_limit_bytes=_UNBOUNDED,
        wish=wish,
        parts=parts_of(request),
        recover=request.recover,
    )
    shape = shape_of(model)
    if shape is None:
        raise ModelNotCompatible(
            f"{request.model} has classes of its own: what they take cannot be said from their files",
            hint="try it with --memory-limit, and fewer frames",
        )
    resolved = resolve_request(request, model, seed=0)
    choice = choose(shape, job_of(model, resolved.params, at_once_of(request)), machine, wishes_of(request))
    pipeline = model.pipeline.pipeline_class
    return PlanReport(request.model, pipeline, resolved.params.task, choice, why_not, tuple(changes_of(model)))


def default_choice(facts: ModelFacts, host: HostFacts) -> Choice | None:
    """Return how a model's usual job of the usual size would be run; None where that cannot be said."""
    limit = int(host.memory_available_bytes * HOST_SHARE)
    try:
        model = decide_model(facts, threads=host.cpu_count, memory_limit_bytes=_UNBOUNDED)
        shape = shape_of(model)
        if shape is None:
            return None
        resolved = resolve_request(GenerationRequest(model=facts.root, prompt=""), model, seed=0)
    except WanCompatError:
        return None  # what is wrong with it is told by other findings
    machine = worker_machine(limit, host=host, gpu=gpu_for("auto", Policy()).gpu)
    return choose(shape, job_of(model, resolved.params), machine)


def _machine(
    request: GenerationRequest, vram_bytes: int | None, ram_bytes: int | None, policy: Policy
) -> tuple[MachineFacts, tuple[str, ...]]:
    """Return what to plan for, and what is wrong with GPUs that are left out of it."""
    if vram_bytes and request.device == "cpu":
        raise InvalidRequest("a GPU to plan for was given, and device 'cpu' too", hint="leave --vram or --device out")
    machine = read_machine()
    if ram_bytes is not None:
        machine = dataclasses.replace(machine, ram_total_bytes=ram_bytes, ram_free_bytes=ram_bytes)
        limit = ram_bytes
    else:
        # As memory_limit() of policies/limits.py, which refuses what is said here by a plan that does not fit.
        wanted = narrower(request.memory_limit_bytes, policy.memory_limit_bytes)
        limit = int(machine.ram_free_bytes * HOST_SHARE) if wanted is None else min(wanted, machine.ram_total_bytes)
    machine = dataclasses.replace(machine, ram_limit_bytes=limit, vram_limit_bytes=request.gpu_memory_limit_bytes)
    if vram_bytes is None:
        found = gpu_for(request.device, policy)
        # AMD's and Apple's are planned for, though no worker computes on them: it is told that nobody tried.
        others = tuple(gpu for gpu in machine.gpus if gpu.vendor != "nvidia") if request.device == "auto" else ()
        cap = narrower(request.gpu_memory_limit_bytes, policy.gpu_memory_limit_bytes)
        gpus = others if found.gpu is None else (found.gpu,)
        return dataclasses.replace(machine, gpus=gpus, vram_limit_bytes=cap), found.why_not
    if vram_bytes == 0:
        return dataclasses.replace(machine, gpus=()), ()
    capability = machine.gpu.compute_capability if machine.gpu is not None else None
    imagined = GpuFacts(f"a GPU with {vram_bytes / 1e9:g} GB", vram_bytes, vram_bytes, capability)
    return dataclasses.replace(machine, gpus=(imagined,)), ()
