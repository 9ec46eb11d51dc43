"""Keeps the zygotes and the workers of one supervisor: who works, who stays warm, and who goes for another.

Shared by the runner threads. A worker belongs to the runner that acquired it until it is released; in between it is
idle and warm, and belongs to whoever takes it from there. The full zygote is started when the first worker is needed,
so that a refused job costs nothing; the light one only when the full one cannot fork.

    acquire -> busy -- release(keep) --> idle, most recently used last -- acquire of an equal order --> busy
                  '- release ---------> ended                         '- its place or memory is needed --> ended

`workers` and `max_warm` bound the processes: as many as the larger of the two, busy and idle together.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from wan_compat.policies.confinement import Candidate, minimum_tier, plan_candidates, policy_for_code
from wan_compat.policies.facts import HostFacts
from wan_compat.policies.gpus import GpuUse
from wan_compat.policies.limits import HOST_SHARE, Deadlines, share
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import (
    GpuUnusable,
    SandboxEntryFailed,
    SandboxUnavailable,
    WanCompatError,
    WorkerStartFailed,
)
from wan_compat.protocol.values import Mode
from wan_compat.sandbox import bwrap
from wan_compat.sandbox import cgroup as cgroups
from wan_compat.sandbox.failure import namespaces_are_doubtful
from wan_compat.sandbox.spec import GPU, NAMESPACE_LAYERS, Tier
from wan_compat.supervisor.gpus import has_room
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.restart_guard import RestartGuard
from wan_compat.supervisor.runtime import RuntimeFolder
from wan_compat.supervisor.worker import Worker
from wan_compat.supervisor.worker_order import WorkerOrder
from wan_compat.supervisor.zygote import ZYGOTE_PROGRAM
from wan_compat.supervisor.zygotes import Starter, Zygotes

# An idle worker has nothing to do but answer; a machine that is busy or swaps may keep it from that for a while.
ANSWER_S = 10.0
# What a full zygote says when its children would not work; a light one has imported nothing that could be the cause.
_CANNOT_FORK = ("zygote_threads", "zygote_cuda")


def _gpu_of(order: WorkerOrder) -> str | None:
    pipeline = order.pipeline
    return pipeline.gpu.uuid if pipeline is not None and pipeline.gpu is not None else None


class WorkerPool:
    """
    Args:
        spawn_only: Use the light zygote only.
        wake_fd: Becomes readable when the runner shall look up (a job was cancelled); for who acquires without one.
        zygote_program: What Python runs as the zygote; tests put programs here that misbehave.
        workers: How many jobs run at once.
        max_warm: How many workers may stay when their job is over.
        max_idle_s: How long each of them may stay; None is as long as there is reason to.
        name: Of the runtime folder; None is a fresh one.
        tell: Hears about workers that were ended between jobs: the worker's name and why.
    """

    def __init__(
        self,
        *,
        spawn_only: bool,
        wake_fd: int = -1,
        zygote_program: Sequence[str] = ZYGOTE_PROGRAM,
        workers: int = 1,
        max_warm: int = 1,
        max_idle_s: float | None = None,
        name: str | None = None,
        tell: Callable[[str, str], None] = lambda worker, why: None,
    ) -> None:
        self._wake_fd = wake_fd
        self._workers, self._max_warm = workers, max_warm
        self._places = max(workers, max_warm)
        self._max_idle_s = max_idle_s
        self._name = name
        self._tell = tell
        self.guard = RestartGuard()
        self._zygotes = Zygotes(zygote_program, self.guard)
        self._lock = threading.RLock()  # of everything below; never held while something is waited for
        self._runtime: RuntimeFolder | None = None
        self._spawn_only = spawn_only
        self._living: dict[str, Worker] = {}
        self._warm: list[Worker] = []  # of the living ones; least recently used first
        self._busy = 0  # acquired, or being started
        self._count = 0
        self._cgroup: cgroups.CgroupSupport | None = None
        # What this machine said to namespaces of our own, and whether it let them be made.
        self._refused: SandboxEntryFailed | None = None
        self.gpu_failed: str | None = None  # why nobody is given a GPU any more who did not ask for one
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
        name: str = "",
    ) -> WorkerOrder:
        """Compose what a job needs. `name` is the model's, as the user wrote it."""
        return WorkerOrder(
            admitted=model.admitted,
            pipeline=model.pipeline.model_copy(update={"gpu_memory_limit_bytes": gpu_memory_limit_bytes}),
            requested_limit_bytes=requested_limit_bytes,
            memory_limit_bytes=memory_limit_bytes,
            policy=policy if model.pipeline.restricted is None else policy_for_code(policy),
            mode=mode,
            tree_hash=model.trust.tree.hash if model.trust is not None else None,
            site=site,
            model=name,
        )

    def share(self, host: HostFacts) -> HostFacts:
        """Return what one of the workers may count on, of what `host` has (policies/limits.py)."""
        with self._lock:
            living = list(self._living.values()) if self._places > 1 else []  # alone, it counts on what is free
        return share(host, workers=self._workers, ours=[worker.used_now() for worker in living])

    def gpu_use(self) -> GpuUse:
        """Return what the workers use of each GPU, as far as it was looked at."""
        busy: dict[str, int] = {}
        idle_bytes: dict[str, int] = {}
        busy_bytes: dict[str, int] = {}
        with self._lock:
            for worker in self._living.values():
                if (uuid := _gpu_of(worker.order)) is None:
                    continue
                held = idle_bytes if worker in self._warm else busy_bytes
                held[uuid] = held.get(uuid, 0) + (worker.vram_bytes or 0)
                busy[uuid] = busy.get(uuid, 0) + (worker not in self._warm)
        return GpuUse(busy, idle_bytes, busy_bytes, self._workers)

    def acquire(
        self,
        order: WorkerOrder,
        deadlines: Deadlines,
        *,
        fresh: bool,
        cancelled: Callable[[], bool],
        wake_fd: int | None = None,
        job: str | None = None,
        wants_bytes: int = 0,
        wants_vram_bytes: int = 0,
    ) -> Worker:
        """Return a READY or LOADED worker for `order`; give it back with `release`.

        Args:
            fresh: A new one, whatever is warm.
            wake_fd: Instead of the pool's own.
            job: Which job it is for.
            wants_bytes: What the job will need of main memory; idle workers go until that is free.
            wants_vram_bytes: The same of its GPU.

        Raises:
            JobCancelled: `cancelled` became true while the zygote was importing.
            SandboxUnavailable, WorkerStartFailed, ...: As `Worker.start`.
        """
        starter = Starter(deadlines, cancelled, self._wake_fd if wake_fd is None else wake_fd, job)
        with self._lock:
            self._busy += 1
        try:
            worker = None if fresh else self._take_warm(order)
            if worker is None:
                self._make_room(deadlines, wants_bytes)
                self._make_gpu_room(order, deadlines, wants_vram_bytes)
                self.runtime_folder()
                worker = self._start_somehow(order, starter)
            worker.engage(job)
            return worker
        except BaseException:
            with self._lock:
                self._busy -= 1
            raise

    def release(self, worker: Worker, *, keep: bool) -> None:
        """Take a worker back: keep it warm for the next job of the same model, or end it."""
        surplus: list[Worker] = []
        with self._lock:
            worker.rest()
            self._busy -= 1
            keep = keep and self._max_warm > 0 and worker.alive
            if keep:
                self._warm.append(worker)
                while len(self._warm) > self._max_warm:
                    surplus.append(self._warm.pop(0))
        if not keep:
            self._end(worker)
        for other in surplus:
            self._let_go(other, 0.0, "other models were used since")

    def kill(self, name: str) -> bool:
        """Kill a worker by its name, because somebody asked; return whether there is one."""
        with self._lock:
            worker = self._living.get(name)
            idle = worker is not None and worker in self._warm
            if worker is not None and idle:
                self._warm.remove(worker)
        if worker is None:
            return False
        worker.kill()
        if idle:
            self._end(worker)
        return True

    def tend(self) -> None:
        """Look after the idle workers: hear them, watch them, and end those that died, misbehave, use the machine for
        what nobody asked them or were not needed for long: nothing is lost by that but warmth."""
        ended: list[tuple[Worker, str]] = []
        with self._lock:
            for worker in list(self._warm):
                try:
                    why = next((f"it {what}" for what in worker.pump(0.0).unusual), None)
                except WanCompatError as error:
                    why = f"{error.code}: {error.message}"
                rested_s = time.monotonic() - worker.rests_since
                if why is None and self._max_idle_s is not None and rested_s > self._max_idle_s:
                    why = f"no job came for it in {rested_s:.0f} s"
                if why is not None:
                    self._warm.remove(worker)
                    ended.append((worker, why))
        for worker, why in ended:
            self._let_go(worker, 0.0, why)

    def living(self) -> list[tuple[Worker, bool]]:
        """Return every worker, oldest first, and whether it is idle. For onlookers."""
        with self._lock:
            return [(worker, worker in self._warm) for worker in self._living.values()]

    @property
    def has_idle(self) -> bool:
        return bool(self._warm)

    @contextlib.contextmanager
    def leftover(self, path: str) -> Iterator[None]:
        """Note a file or folder that must not outlive its job; should we be killed, the next supervisor removes it."""
        note = self.runtime_folder().note_leftover(path)
        try:
            yield
        finally:
            os.unlink(note)

    def runtime_folder(self) -> RuntimeFolder:
        """Return this supervisor's folder for sockets; made when first asked for.

        Raises:
            EnvironmentLacks: There is no place for it that is private.
        """
        with self._lock:
            if self._runtime is None:
                with contextlib.suppress(OSError):  # without /proc nobody can tell; the job will say so
                    cgroups.sweep_stale()
                self._runtime = RuntimeFolder(self._name)
            return self._runtime

    def close(self) -> None:
        """End all workers and zygotes and remove the runtime folder. For when no runner uses it any more."""
        with self._lock:
            idle, self._warm = self._warm, []
        for worker in idle:  # all at once: each needs its moment
            worker.ask_to_end()
        for worker in idle:
            self._end(worker, 0.5)
        with self._lock:
            self._zygotes.close()
            if self._runtime is not None:
                self._runtime.close()
                self._runtime = None

    # -- warm workers --------------------------------------------------------------------------------------------

    def _take_warm(self, order: WorkerOrder) -> Worker | None:
        """Return an idle worker of an equal order that answers, the most recently used one."""
        while True:
            with self._lock:
                worker = next((worker for worker in reversed(self._warm) if worker.order == order), None)
                if worker is None:
                    return None
                self._warm.remove(worker)
            if worker.alive and worker.answers(ANSWER_S):
                return worker
            self._let_go(worker, 0.0, "it did not answer")

    def _make_room(self, deadlines: Deadlines, wants_bytes: int) -> None:
        """End idle workers, the least recently used first, until there is a place and the memory for another one."""
        while True:
            with self._lock:
                if not self._warm:
                    return
                crowded = self._busy + len(self._warm) > self._places
            if not crowded and wants_bytes <= read_host().memory_available_bytes * HOST_SHARE:
                return
            with self._lock:
                worker = self._warm.pop(0) if self._warm else None
            if worker is not None:
                why = "another model needs its place" if crowded else "another model needs its memory"
                self._let_go(worker, deadlines.stop_grace_s, why)

    def _make_gpu_room(self, order: WorkerOrder, deadlines: Deadlines, wants_bytes: int) -> None:
        """The same for a GPU: its memory, of which the plan counts on what idle workers hold, or its only place."""
        uuid = _gpu_of(order)
        while uuid is not None:
            with self._lock:
                worker = next((worker for worker in self._warm if _gpu_of(worker.order) == uuid), None)
            if worker is None or has_room(uuid, wants_bytes):
                return
            with self._lock:
                if worker not in self._warm:
                    continue
                self._warm.remove(worker)
            self._let_go(worker, deadlines.stop_grace_s, "another model needs its GPU's memory")

    def _let_go(self, worker: Worker, grace_s: float, why: str) -> None:
        self._end(worker, grace_s)
        self._tell(worker.name, f"ended while idle: {why}")

    def _end(self, worker: Worker, grace_s: float = 0.0) -> None:
        try:
            worker.close(grace_s=grace_s)
        finally:
            with self._lock:
                self._living.pop(worker.name, None)
            self._zygotes.give_back(worker.name)

    # -- starting ------------------------------------------------------------------------------------------------

    def _start_somehow(self, order: WorkerOrder, starter: Starter) -> Worker:
        try:
            return self._start(order, self._spawn_only, starter)
        except WorkerStartFailed as error:
            if self._spawn_only or error.details.get("code") not in _CANNOT_FORK:
                raise
            return self._start(order, True, starter)

    def _start(self, order: WorkerOrder, light: bool, starter: Starter) -> Worker:
        """Start a worker in the strongest tier that can be entered, down to the order's minimum and not below."""
        with self._lock:
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
                worker = self._start_one(light, order, candidate, starter)
            except SandboxEntryFailed as error:
                if error.details.get("layer") == GPU:  # a weaker sandbox is no way to a GPU
                    raise GpuUnusable(error.message, fixes=error.fixes, details=error.details) from error
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

    def _start_one(self, light: bool, order: WorkerOrder, candidate: Candidate, starter: Starter) -> Worker:
        needs_own = bool(candidate.layers & NAMESPACE_LAYERS) and not candidate.outer
        if needs_own and self._refused is not None:
            raise self._refused
        # Seconds of imports should not be thrown away: where the answer is in doubt, the light zygote asks first.
        light = light or (needs_own and not self._permitted and namespaces_are_doubtful())
        with self._lock:
            self._count += 1
            name = f"w{self._count}"
        zygote = None
        try:
            if not candidate.outer:
                zygote = self._zygotes.lease(name, light, order.site, starter)
            worker = Worker(name, order, candidate.layers, self.runtime_folder(), candidate.outer)
        except BaseException:
            self._zygotes.give_back(name)
            raise
        worker.wanted_tier = candidate.tier
        worker.engage(starter.job)
        with self._lock:
            self._living[name] = worker
        try:
            if zygote is None:
                zygote = worker.make_own_zygote(starter.deadlines, starter.cancelled, starter.wake_fd)
                self._zygotes.close_unused()  # the shared ones, which could not do this; they hold much memory
            worker.start(zygote, starter.deadlines, starter.cancelled, starter.wake_fd)
        except SandboxEntryFailed as error:
            self._end(worker)
            if needs_own and error.details.get("layer") in NAMESPACE_LAYERS:
                self._refused = error
            raise
        except BaseException:
            self._end(worker)
            raise
        self._permitted = self._permitted or needs_own
        if not candidate.outer:
            self.guard.succeeded((light, order.site))
        return worker
