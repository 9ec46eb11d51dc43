"""What several benchmarks share: the running supervisor, a zygote with workers, the plain script.

Started when first asked for and ended together, so that `--only` starts no more than it needs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.child import Child
from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Supervisor
from wan_compat.policies.limits import deadlines
from wan_compat.policies.models import decide_model
from wan_compat.policies.policy import Policy
from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.protocol.values import Mode
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.inspection import read_model
from wan_compat.supervisor.worker import Worker, WorkerOrder
from wan_compat.supervisor.worker_pool import WorkerPool
from wan_compat.supervisor.zygote import ZYGOTE_ENVIRONMENT

MEMORY_LIMIT_BYTES = 8 << 30

# How a worker's threads wait for each other, from the environment that its zygote gets.
WAITING = {name: value for name, value in ZYGOTE_ENVIRONMENT.items() if name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}


class Job:
    """A finished job of the running supervisor, with the moment of each event (seconds since submit)."""

    def __init__(self, supervisor: Supervisor, request: GenerationRequest) -> None:
        self.request = request
        started = time.perf_counter()
        job = supervisor.submit(request)
        self.events = [(time.perf_counter() - started, event) for event in job.events()]
        self.result: VideoGenerationResult = job.result()
        self.seconds = self.events[-1][0]

    def at(self, kind: type[ev.Event], phase: str | None = None) -> float:
        """Return the moment of the last event of this kind; with a phase, of the last Progress of it."""
        found = [at for at, event in self.events if isinstance(event, kind)]
        if phase is not None:
            found = [at for at, event in self.events if isinstance(event, ev.Progress) and event.phase == phase]
        return found[-1]


class Shared:
    """The things that benchmarks share. Use it as a context manager."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    @functools.cached_property
    def folder(self) -> Path:
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="wan-compat-bench-")))

    @functools.cached_property
    def supervisor(self) -> Supervisor:
        """A supervisor whose zygote has imported: one job was run."""
        supervisor = self._stack.enter_context(Supervisor())
        Job(supervisor, self.request("t2v", num_frames=1, num_inference_steps=1))
        return supervisor

    def job(self, model: str, **fields: Any) -> Job:
        return Job(self.supervisor, self.request(model, **fields))

    def request(self, model: str, **fields: Any) -> GenerationRequest:
        defaults: dict[str, Any] = {
            "prompt": "a red ball bounces to the right on a blue background",
            "height": 64,
            "width": 96,
            "num_frames": 9,
            "num_inference_steps": 4,
            "guidance_scale": 4.0,
            "max_sequence_length": 64,
            "seed": 7,
            "fps": 16,
            "overwrite": True,
            "memory_limit_bytes": MEMORY_LIMIT_BYTES,
        }
        return GenerationRequest(model=str(tiny_model(model)), **(defaults | fields))

    @functools.cached_property
    def plain(self) -> Child:
        """The plain script, imported, with what a worker has on a CPU: its convolution and its way of waiting.

        On a busy machine threads that spin make a script several times slower. That is a difference worth having
        (isolation_tax shows it in a row of its own), but not what the other benchmarks are about.
        """
        return self._plain_child(**WAITING)

    @functools.cached_property
    def untuned(self) -> Child:
        """The plain script with a worker's convolution, but without settings in its environment."""
        return self._plain_child()

    def _plain_child(self, **environment: str) -> Child:
        child = self._stack.enter_context(Child("benchmarks.plain_script", **environment))
        child.ask(do="use_onednn")
        return child

    def plain_load(self, model: str) -> None:
        self.plain.ask(do="load", model=str(tiny_model(model)))

    def plain_generate(self, request: GenerationRequest, **options: Any) -> Any:
        return self.plain.ask(do="generate", arguments=script_arguments(request), seed=request.seed, **options)

    # -- workers without a model -----------------------------------------------------------------------------------

    @functools.cached_property
    def pool(self) -> WorkerPool:
        """A pool whose zygote has imported and had a moment to itself; its workers load nothing here."""
        wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._stack.callback(os.close, wake_fd)
        pool = WorkerPool(spawn_only=False, wake_fd=wake_fd)
        self._stack.callback(pool.close)
        self._acquire_and_release(pool)
        time.sleep(2)
        return pool

    @contextlib.contextmanager
    def ready_worker(self) -> Iterator[Worker]:
        """Yield a new worker: forked, confined as this machine permits, self-tested, connected, without a model."""
        worker = self._acquire(self.pool)
        try:
            yield worker
        finally:
            self.pool.release(worker, keep=False)

    def _acquire_and_release(self, pool: WorkerPool) -> None:
        pool.release(self._acquire(pool), keep=False)

    def _acquire(self, pool: WorkerPool) -> Worker:
        return pool.acquire(
            self._order(pool), deadlines(weight_bytes=0, timeout_s=None), fresh=True, cancelled=lambda: False
        )

    def _order(self, pool: WorkerPool) -> WorkerOrder:
        limit = MEMORY_LIMIT_BYTES
        model = decide_model(
            read_model(str(tiny_model("t2v"))), threads=read_host().cpu_count, memory_limit_bytes=limit
        )
        return pool.order(Policy(), Mode.SAFE, model, limit, limit)

    def __enter__(self) -> Shared:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def script_arguments(request: GenerationRequest) -> dict[str, Any]:
    """Return what the same request is in a call of the pipeline."""
    names = ("prompt", "height", "width", "num_frames", "num_inference_steps", "guidance_scale", "max_sequence_length")
    return {name: getattr(request, name) for name in names}


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on, in words that name no particular machine."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)),
        "linux": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "diffusers": importlib.metadata.version("diffusers"),
    }
