"""Attacks made by a repository's own code, in a worker that a supervisor started: nothing of the path is a stand-in but
the place of the pipeline (tests/programs/sandbox_repository_code.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.programs.sandbox_repository_code import ANSWER
from tests.sandbox.harness import PROGRAMS
from tests.security.attacks import Case, Surroundings, undo
from wan_compat.policies.confinement import plan_candidates
from wan_compat.policies.facts import FileFact
from wan_compat.policies.limits import deadlines
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import ForbiddenCall, MemoryExceeded, WorkerDied
from wan_compat.protocol.values import ComponentSpec, Mode, PipelineSpec
from wan_compat.sandbox import cgroup
from wan_compat.sandbox.spec import Bind
from wan_compat.supervisor.bwrap_zygote import BwrapZygote
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.runtime import RuntimeFolder
from wan_compat.supervisor.worker import Worker
from wan_compat.supervisor.worker_order import WorkerOrder
from wan_compat.supervisor.zygote import Zygote

# In every worker's memory, so that a search that finds nothing can be told from one that does not search.
CONTROL_BEGINS = "wan-test-control-"
CONTROL = CONTROL_BEGINS + "fedcba9876543210"
PROGRAM = str(PROGRAMS / "sandbox_repository_code.py")
MEMORY_BYTES = 512 << 20
_DEADLINES = deadlines(weight_bytes=0, timeout_s=None)


def _never() -> bool:
    return False


class Repository:
    """A zygote, and a fresh worker of it for every attack; without a zygote, each worker in a bubblewrap of its own."""

    def __init__(
        self, zygote: Zygote | None, runtime: RuntimeFolder, around: Surroundings, folder: Path, wake_fd: int
    ) -> None:
        self._wake_fd = wake_fd
        self._zygote, self._runtime, self._around, self._folder = zygote, runtime, around, folder
        self._count = 0

    def attempt(self, case: Case, mode: Mode = Mode.SAFE) -> dict[str, Any]:
        """Make one attack; the answer says also which forbidden call ended the worker, if one did."""
        with self.worker(case, mode) as worker:
            return {**self._listen(worker), "arrived": undo(self._around)}

    @contextlib.contextmanager
    def worker(self, case: Case, mode: Mode = Mode.SAFE) -> Iterator[Worker]:
        """Make a worker for an attack, not yet started."""
        policy = Policy()
        arguments = case.arguments if case.arguments_in_worker is None else case.arguments_in_worker
        order = WorkerOrder(
            admitted=self._model(case.attack, self._around.fill(arguments)),
            pipeline=PipelineSpec(
                pipeline_class="WanPipeline",
                components=(
                    ComponentSpec(name="vae", library="diffusers", class_name="AutoencoderKLWan", subfolder="vae"),
                ),
                threads=1,
            ),
            requested_limit_bytes=MEMORY_BYTES,
            memory_limit_bytes=MEMORY_BYTES,
            policy=policy,
            mode=mode,
        )
        has_cgroup = cgroup.detect().available
        candidates = plan_candidates(read_host(), policy, mode, has_cgroup=has_cgroup)
        candidate = next(each for each in candidates if bool(each.outer) == (self._zygote is None))
        self._count += 1
        worker = Worker(f"a{self._count}", order, candidate.layers, self._runtime, candidate.outer)
        try:
            yield worker
        finally:
            worker.close()

    def start(self, worker: Worker) -> None:
        zygote = self._zygote
        if zygote is None:
            programs = Bind(source=str(PROGRAMS), target=str(PROGRAMS))
            view = dataclasses.replace(worker._own.spec.view, binds=(*worker._own.spec.view.binds, programs))
            worker._own.spec = dataclasses.replace(worker._own.spec, view=view)
            zygote = BwrapZygote(worker._own.spec, program=(PROGRAM, "/dev/null"))
            worker._own.undo.callback(zygote.close)
            zygote.wait_ready(60, _never, self._wake_fd)
        worker.start(zygote, _DEADLINES, _never, self._wake_fd)

    def _listen(self, worker: Worker) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        try:
            # The attack may be over before we have read that the worker is ready.
            self.start(worker)
            while time.monotonic() < deadline:
                worker.pump(0.05)
                for line in worker.log.tail().splitlines():
                    if line.startswith(ANSWER):
                        return {**json.loads(line.removeprefix(ANSWER)), "killed": None}
        except ForbiddenCall as error:
            return {"gained": None, "error": error.message, "killed": error.details["incident"]["what"]}
        except MemoryExceeded as error:
            return {"gained": None, "error": error.message, "killed": "memory"}
        except WorkerDied as error:
            return {"gained": None, "error": error.message, "killed": "SIGSYS" if "SIGSYS" in error.message else "died"}
        raise AssertionError(f"the repository's code said nothing: {worker.log.tail()[-2000:]}")

    def _model(self, attack: str, arguments: dict[str, Any]) -> tuple[FileFact, ...]:
        model = self._folder / "model"
        model.mkdir(exist_ok=True)
        (model / "pipeline.py").write_bytes((PROGRAMS / "sandbox_attack.py").read_bytes())
        (model / "order.json").write_text(json.dumps({"attack": attack, "arguments": arguments, "control": CONTROL}))
        facts = []
        for path in sorted(model.iterdir()):
            path.chmod(0o644)
            seen = path.stat()
            facts.append(FileFact(path.name, str(path), seen.st_size, seen.st_dev, seen.st_ino, seen.st_mtime_ns))
        return tuple(facts)


@contextlib.contextmanager
def repository(around: Surroundings, *, in_bwrap: bool = False, program: str = PROGRAM) -> Iterator[Repository]:
    """Start the zygote; end it and remove everything afterwards."""
    runtime = RuntimeFolder()
    never = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    zygote = None if in_bwrap else Zygote(program=(program, around.values["open"]))
    try:
        if zygote is not None:
            zygote.wait_ready(60, _never, never)
        with tempfile.TemporaryDirectory(prefix="wan-compat-repository-") as folder:
            Path(folder).chmod(0o755)
            yield Repository(zygote, runtime, around, Path(folder), never)
    finally:
        os.close(never)
        if zygote is not None:
            zygote.close()
        runtime.close()
