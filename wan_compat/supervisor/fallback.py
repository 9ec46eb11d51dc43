"""FallbackHandler: what is left of a model that does not run, and what could be used instead.

Parts are loaded one after the other in a confined worker, as a generation would load them, and given up again. A
worker that dies of one is replaced for the next.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from wan_compat.policies.fallback import (
    AlternativeModel,
    Candidate,
    FallbackStrategy,
    UsableComponent,
    alternatives,
    candidates,
    info_of,
    strategy_for,
)
from wan_compat.policies.limits import Deadlines, deadlines, memory_limit
from wan_compat.policies.policy import Policy
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import DeadlineExceeded, MemoryExceeded, WanCompatError, from_worker
from wan_compat.protocol.values import Mode, PipelineSpec
from wan_compat.supervisor.check import check_model
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.machine import read_machine
from wan_compat.supervisor.registry import CompatibilityRegistry
from wan_compat.supervisor.worker import Worker
from wan_compat.supervisor.worker_order import WorkerOrder
from wan_compat.supervisor.worker_pool import WorkerPool

_MB = 1_000_000


class FallbackHandler:
    """Args:
    policy: What workers may do and use; None is the built-in one.
    registry: Where alternatives come from; None is this user's.
    """

    def __init__(self, policy: Policy | None = None, registry: CompatibilityRegistry | None = None) -> None:
        self._policy = policy or Policy()
        self._registry = registry

    def create_fallback_strategy(self, failed_pipeline: str, error: Exception) -> FallbackStrategy:
        """Return what to do about a pipeline that failed, by the kind of failure."""
        return strategy_for(failed_pipeline, error)

    def attempt_component_isolation(self, model_path: str) -> list[UsableComponent]:
        """Load each part of a model by itself, in safe mode, and say which can be used and why the others cannot.

        Raises:
            ModelNotFound: There is nothing at `model_path`.
            SandboxUnavailable, WorkerStartFailed, ...: No worker could be started at all.
        """
        report = check_model(model_path)
        limit = memory_limit(self._policy.memory_limit_bytes, report.host)
        components = report.architecture.components
        found, verdicts = candidates(report.facts, components, limit)
        usable = {}
        for name, problem in self._try_parts(found, limit):
            usable[name] = problem is None
            verdicts[name] = problem or "loads by itself, and all its weights are numbers"
        return [
            UsableComponent(name, info_of(part), usable.get(name, False), verdicts[name])
            for name, part in sorted(components.items())
        ]

    def suggest_alternative_models(self, target_architecture: str) -> list[AlternativeModel]:
        """Return models of the registry that do the same and fit this machine, the largest first.

        Args:
            target_architecture: An architecture type (`wan_i2v`), a variant's slug or a capability (`text_to_video`).
        """
        registry = self._registry or CompatibilityRegistry()
        machine = read_machine()
        return [
            *alternatives(
                target_architecture,
                registry.document.models,
                vram_mb=machine.vram_bytes // _MB,
                ram_mb=machine.ram_limit_bytes // _MB,
            )
        ]

    def _try_parts(self, parts: dict[str, Candidate], limit: int) -> Iterator[tuple[str, str | None]]:
        """Yield each part's name, and what is wrong with it."""
        if not parts:
            return
        pipeline = PipelineSpec(
            pipeline_class="WanPipeline",  # never built: parts are loaded, and no more
            components=tuple(part.spec for part in parts.values()),
            threads=read_host().cpu_count,
        )
        order = WorkerOrder(
            admitted=tuple(
                sorted({file for part in parts.values() for file in part.files}, key=lambda file: file.path)
            ),
            pipeline=pipeline,
            requested_limit_bytes=None,
            memory_limit_bytes=limit,
            policy=self._policy,
            mode=Mode.SAFE,
        )
        size = sum(file.size for file in order.admitted)
        limits = deadlines(weight_bytes=size, timeout_s=None)
        with _pool() as pool:
            worker: Worker | None = None
            try:
                for name in parts:
                    worker = worker or pool.acquire(order, limits, fresh=True, cancelled=lambda: False)
                    try:
                        yield name, _try_part(worker, pipeline, name, limits)
                    except WanCompatError as error:  # the worker's end, or a hang
                        pool.release(worker, keep=False)
                        worker = None
                        yield name, f"{error.title}: {error.message}"
            finally:
                if worker is not None:
                    pool.release(worker, keep=False)


@contextlib.contextmanager
def _pool() -> Iterator[WorkerPool]:
    wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    pool = WorkerPool(spawn_only=False, wake_fd=wake_fd)
    try:
        yield pool
    finally:
        pool.close()
        os.close(wake_fd)


def _try_part(worker: Worker, pipeline: PipelineSpec, name: str, limits: Deadlines) -> str | None:
    """Return what is wrong with a part, None if nothing is. Raises what ends the worker."""
    worker.send(m.LoadPart(pipeline=pipeline, component=name))
    until = time.monotonic() + limits.load_s
    while time.monotonic() < until:
        for message in worker.pump(0.5, limits.silence_s).messages:
            if isinstance(message, m.PartLoaded):
                if message.component != name or not message.not_finite:
                    return None
                return f"its weights have NaN or infinite values: {', '.join(message.not_finite[:3])}"
            if isinstance(message, m.Failed):
                error = from_worker(message.code, message.message, message.fixes)
                if isinstance(error, MemoryExceeded):
                    return f"it does not fit into {worker.order.memory_limit_bytes / 1e9:.1f} GB: {error.message}"
                return error.message
    raise DeadlineExceeded(f"{name} was not loaded within {limits.load_s:g} s")
