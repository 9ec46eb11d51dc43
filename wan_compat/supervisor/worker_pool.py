"""Keeps the zygote and the workers of one supervisor: one worker stays warm, and goes when another is needed.

Belongs to the runner thread. The full zygote is started when the first worker is needed, so that a refused job costs
nothing; the light one only when the full one cannot fork.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

from wan_compat.policies.confinement import Candidate, minimum_tier, plan_candidates, policy_for_code
from wan_compat.policies.limits import Deadlines
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import (
    JobCancelled,
    JobTimeout,
    SandboxEntryFailed,
    SandboxUnavailable,
    WorkerStartFailed,
)
from wan_compat.protocol.values import Mode
from wan_compat.sandbox import bwrap
from wan_compat.sandbox import cgroup as cgroups
from wan_compat.sandbox.failure import namespaces_are_doubtful
from wan_compat.sandbox.spec import NAMESPACE_LAYERS, Tier
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.runtime import RuntimeFolder
from wan_compat.supervisor.worker import Worker, WorkerOrder
from wan_compat.supervisor.zygote import ZYGOTE_PROGRAM, Zygote

MAX_WARM = 1
MAX_ZYGOTES = 3  # each holds the libraries; a job that needs another one gets it in the place of the oldest


class WorkerPool:
    """
    Args:
        spawn_only: Use the light zygote only.
        wake_fd: Becomes readable when the runner shall look up (a job was cancelled).
        zygote_program: What Python runs as the zygote; tests put programs here that misbehave.
    """

    def __init__(self, *, spawn_only: bool, wake_fd: int, zygote_program: Sequence[str] = ZYGOTE_PROGRAM) -> None:
        self._zygote_program = zygote_program
        self._wake_fd = wake_fd
        self._runtime: RuntimeFolder | None = None
        self._zygotes: dict[tuple[bool, str | None], Zygote] = {}  # by lightness and environment
        self._spawn_only = spawn_only
        self._warm: list[Worker] = []
        self._count = 0
        self._cgroup: cgroups.CgroupSupport | None = None
        # What this machine said to namespaces of our own, and whether it let them be made.
        self._refused: SandboxEntryFailed | None = None
        self._permitted = False

    def order(
        self,
        policy: Policy,
        mode: Mode,
        model: ModelDecision,
        requested_limit_bytes: int | None,
        memory_limit_bytes: int,
        gpu_memory_limit_bytes: int | None = None,
        site: str | None = None,
    ) -> WorkerOrder:
        """Compose what a job needs."""
        return WorkerOrder(
            admitted=model.admitted,
            pipeline=model.pipeline.model_copy(update={"gpu_memory_limit_bytes": gpu_memory_limit_bytes}),
            requested_limit_bytes=requested_limit_bytes,
            memory_limit_bytes=memory_limit_bytes,
            policy=policy if model.pipeline.restricted is None else policy_for_code(policy),
            mode=mode,
            tree_hash=model.trust.tree.hash if model.trust is not None else None,
            site=site,
        )

    def acquire(
        self, order: WorkerOrder, deadlines: Deadlines, *, fresh: bool, cancelled: Callable[[], bool]
    ) -> Worker:
        """Return a READY or LOADED worker for `order`; give it back with `release`.

        Raises:
            JobCancelled: `cancelled` became true while the zygote was importing.
            SandboxUnavailable, WorkerStartFailed, ...: As `Worker.start`.
        """
        for worker in [worker for worker in self._warm if not fresh and worker.order == order]:
            self._warm.remove(worker)
            if worker.alive:
                return worker
            worker.close()
        while len(self._warm) >= MAX_WARM:
            self._warm.pop(0).close(grace_s=deadlines.stop_grace_s)
        self._runtime_folder()
        try:
            return self._start(order, deadlines, self._spawn_only, cancelled)
        except WorkerStartFailed as error:
            if self._spawn_only or error.details.get("code") != "zygote_threads":
                raise
            return self._start(order, deadlines, True, cancelled)

    @contextlib.contextmanager
    def leftover(self, path: str) -> Iterator[None]:
        """Note a file or folder that must not outlive its job; should we be killed, the next supervisor removes it."""
        note = self._runtime_folder().note_leftover(path)
        try:
            yield
        finally:
            os.unlink(note)

    def _runtime_folder(self) -> RuntimeFolder:
        if self._runtime is None:
            cgroups.sweep_stale()
            self._runtime = RuntimeFolder()
        return self._runtime

    def release(self, worker: Worker, *, keep: bool) -> None:
        """Take a worker back: keep it warm for the next job of the same model, or end it."""
        if keep and worker.alive:
            self._warm.append(worker)
        else:
            worker.close()

    def close(self) -> None:
        """End all workers and zygotes and remove the runtime folder."""
        for worker in self._warm:
            worker.close(grace_s=0.5)
        self._warm.clear()
        self._close_zygotes()
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None

    def _close_zygotes(self) -> None:
        for zygote in self._zygotes.values():
            zygote.close()
        self._zygotes.clear()

    def _start(self, order: WorkerOrder, deadlines: Deadlines, light: bool, cancelled: Callable[[], bool]) -> Worker:
        """Start a worker in the strongest tier that can be entered, down to the order's minimum and not below."""
        if self._cgroup is None:
            self._cgroup = cgroups.detect()
        candidates = plan_candidates(
            read_host(),
            order.policy,
            order.mode,
            has_cgroup=self._cgroup.available,
            why_no_cgroup=self._cgroup.reason,
            cgroup_remedy=self._cgroup.remedy,
        )
        downgrades: list[SandboxEntryFailed] = []
        for candidate in candidates:
            try:
                worker = self._start_one(light, order, candidate, deadlines, cancelled)
            except SandboxEntryFailed as error:
                downgrades.append(error)
                continue
            if candidate.tier is not candidates[0].tier:
                worker.downgraded_because = tuple(error.message for error in downgrades)
            return worker
        # What our own layers met is the cause; that bubblewrap is no way out either adds to the remedies.
        minimum = minimum_tier(order.policy, order.mode)
        last = [error for error in downgrades if error.details.get("layer") != bwrap.NAME][-1]
        remedies = [fix for error in downgrades if error is not last for fix in error.fixes]
        remedies += [self._cgroup.remedy] if not self._cgroup.available and minimum is Tier.A else []
        remedies.append("run `wan-compat doctor` to see what is missing and how to get it")
        raise SandboxUnavailable(
            f"tier {minimum.value} is required, but {last.message}",
            fixes=[*last.fixes, *dict.fromkeys(remedies)],
            details=last.details,
        ) from last

    def _start_one(
        self,
        light: bool,
        order: WorkerOrder,
        candidate: Candidate,
        deadlines: Deadlines,
        cancelled: Callable[[], bool],
    ) -> Worker:
        needs_own = bool(candidate.layers & NAMESPACE_LAYERS) and not candidate.outer
        if needs_own and self._refused is not None:
            raise self._refused
        # Seconds of imports should not be thrown away: where the answer is in doubt, the light zygote asks first.
        light = light or (needs_own and not self._permitted and namespaces_are_doubtful())
        zygote = None if candidate.outer else self._zygote(light, order.site, deadlines, cancelled)
        self._count += 1
        worker = Worker(f"w{self._count}", order, candidate.layers, self._runtime_folder(), candidate.outer)
        try:
            if zygote is None:
                zygote = worker.make_own_zygote(deadlines, cancelled, self._wake_fd)
                self._close_zygotes()  # the shared ones, which could not do this; they hold much memory
            worker.start(zygote, deadlines, cancelled, self._wake_fd)
        except SandboxEntryFailed as error:
            worker.close()
            if needs_own and error.details.get("layer") in NAMESPACE_LAYERS:
                self._refused = error
            raise
        except BaseException:
            worker.close()
            raise
        self._permitted = self._permitted or needs_own
        return worker

    def _zygote(self, light: bool, site: str | None, deadlines: Deadlines, cancelled: Callable[[], bool]) -> Zygote:
        key = (light, site)
        zygote = self._zygotes.get(key)
        if zygote is not None and not zygote.alive():
            self._zygotes.pop(key).close()
            zygote = None
        if zygote is None:
            while len(self._zygotes) >= MAX_ZYGOTES:  # none of them has a worker now: the warm ones were let go
                self._zygotes.pop(next(iter(self._zygotes))).close()
            zygote = self._zygotes[key] = Zygote(light=light, program=self._zygote_program, site=site)
        try:
            zygote.wait_ready(deadlines.zygote_s, cancelled, self._wake_fd)
        except (JobCancelled, JobTimeout):
            raise  # the job is over; the imports go on, for the next one
        except BaseException:
            self._zygotes.pop(key).close()
            raise
        return zygote
