"""Asks of every item what its job will ask, before any job is there: with the job's own functions, in its order.

    model and approval -> task and media -> size -> file format -> plan

What items have in common is asked once. Nothing is loaded, and no process started but ffmpeg's.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wan_compat.policies.batch.fields import KNOWN
from wan_compat.policies.batch.items import Item, Problem
from wan_compat.policies.limits import memory_limit, share
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.policy import Policy
from wan_compat.policies.requests import ResolvedRequest, resolve_request
from wan_compat.policies.tasks import media_of, wish_of
from wan_compat.protocol.errors import RefusedByPolicy, WanCompatError
from wan_compat.protocol.media import MediaSpec
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor.gpus import gpu_for
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.job_context import narrower
from wan_compat.supervisor.machine import worker_machine
from wan_compat.supervisor.model_choice import choose_model
from wan_compat.supervisor.model_parts import parts_of

if TYPE_CHECKING:  # they come with the first item
    from wan_compat.policies.encoding import EncodingConfig
    from wan_compat.supervisor.rescue import PlanCodec


class Judge:
    """Remembers what was asked.

    Args:
        run_fields: What every request gets in addition.
        workers: How many share the machine.
    """

    def __init__(self, run_fields: Mapping[str, Any], policy: Policy, workers: int) -> None:
        self._run_fields, self._policy = dict(run_fields), policy
        self._host = share(read_host(), workers=workers)
        self._models: dict[Any, ModelDecision | WanCompatError] = {}
        self._plans: dict[Any, WanCompatError | None] = {}
        self._encoders: dict[str, WanCompatError | None] = {}
        self._sounds: dict[str, WanCompatError | None] = {}

    def judge(self, items: Sequence[Item]) -> list[Problem]:
        """Return what the jobs of these items would be refused for; what is wrong with a model, once."""
        problems: dict[tuple[str, str], Problem] = {}
        more: dict[tuple[str, str], int] = {}
        for item in items:
            error = self._ask(item)
            if error is None:
                continue
            # The same model's trouble a thousand times is one trouble.
            field = _field_of(error)
            same = (item.request.model if field == "model" else f"line {item.line}", error.message)
            if same in problems:
                more[same] = more.get(same, 0) + 1
            else:
                problems[same] = Problem(item.line, field, error.message)
        return [
            dataclasses.replace(problem, why=f"{problem.why} (and {more[same]} more)") if same in more else problem
            for same, problem in problems.items()
        ]

    def _ask(self, item: Item) -> WanCompatError | None:
        from wan_compat.policies.encoding import Writer, plan_encoding, suffix_of

        request = item.request.model_copy(update=self._run_fields)
        model = self._model(request)
        if isinstance(model, WanCompatError):
            return model
        try:
            media = tuple(MediaSpec(role=role, bytes=os.stat(path).st_size) for role, path in media_of(request))
            resolved = resolve_request(request, model, seed=item.seed, media=media)
            frames = resolved.params.frames
            suffix = suffix_of(item.output, request.format)
            config = plan_encoding(
                frames.width, frames.height, resolved.fps, suffix, request, num_frames=frames.num_frames
            )
        except WanCompatError as error:
            return error

        def plan(codec: str) -> EncodingConfig:
            asked = request.model_copy(update={"codec": codec})
            return plan_encoding(frames.width, frames.height, resolved.fps, suffix, asked, num_frames=frames.num_frames)

        if config.format.writer is Writer.FFMPEG:
            lack = self._encoder(config, None if request.codec is not None else plan)
            if lack is not None:
                return lack
        if request.audio is not None and (lack := self._sound(request.audio)) is not None:
            return lack
        return self._plan(request, model, resolved)

    def _model(self, request: GenerationRequest) -> ModelDecision | WanCompatError:
        """Return the decision about a request's model, or why there is none."""
        wish, parts = wish_of(request), parts_of(request)
        same = (request.model, wish, repr(parts))
        if same not in self._models:
            try:
                self._models[same] = self._choose(request)
            except WanCompatError as error:
                self._models[same] = error
        return self._models[same]

    def _choose(self, request: GenerationRequest) -> ModelDecision:
        from wan_compat.supervisor.integrity import require_verified

        if request.restricted and not self._policy.allow_restricted:
            raise RefusedByPolicy("the policy does not allow restricted code of repositories")
        model = choose_model(
            request.model,
            request.mode,
            threads=self._host.cpu_count,
            memory_limit_bytes=self._memory(request),
            restricted=request.restricted,
            wish=wish_of(request),
            parts=parts_of(request),
            recover=request.recover and not self._policy.require_manifest,
        )
        if self._policy.require_manifest:
            require_verified(request.model, model.admitted)
        return model

    def _memory(self, request: GenerationRequest) -> int:
        wanted = [one for one in (request.memory_limit_bytes, self._policy.memory_limit_bytes) if one is not None]
        return memory_limit(min(wanted, default=None), self._host)

    def _plan(
        self, request: GenerationRequest, model: ModelDecision, resolved: ResolvedRequest
    ) -> WanCompatError | None:
        from wan_compat.policies.planning.job import at_once_of, job_of, wishes_of
        from wan_compat.supervisor.job_plan import plan_job

        bounds = (request.device, request.memory_limit_bytes, request.gpu_memory_limit_bytes)
        job = job_of(model, resolved.params, at_once_of(request))
        same = (id(model), job, wishes_of(request), bounds)
        if same not in self._plans:
            try:
                gpu = gpu_for(request.device, self._policy).gpu
                vram = narrower(request.gpu_memory_limit_bytes, self._policy.gpu_memory_limit_bytes)
                limit = self._memory(request)
                machine = worker_machine(limit, host=self._host, gpu=gpu, vram_limit_bytes=vram)
                plan_job(request, model, resolved, machine)
                self._plans[same] = None
            except WanCompatError as error:
                self._plans[same] = error
        return self._plans[same]

    def _encoder(self, config: EncodingConfig, plan: PlanCodec | None) -> WanCompatError | None:
        from wan_compat.supervisor.rescue import with_encoder

        what = f"{config.codec} of {config.format.name}{'' if plan is None else ', or another'}"
        return _asked(self._encoders, what, lambda: with_encoder(config, plan))

    def _sound(self, path: str) -> WanCompatError | None:
        from wan_compat.supervisor.sound import check_sound

        return _asked(self._sounds, path, lambda: check_sound(path))


def _asked(known: dict[str, WanCompatError | None], what: str, ask: Callable[[], object]) -> WanCompatError | None:
    if what not in known:
        try:
            ask()
            known[what] = None
        except WanCompatError as error:
            known[what] = error
    return known[what]


def _field_of(error: WanCompatError) -> str:
    """Return the field that an error begins with, as those about sizes do; "model" for all others."""
    first = error.message.split(" ", 1)[0]
    return first if first in KNOWN else "model"
