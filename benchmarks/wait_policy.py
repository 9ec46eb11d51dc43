"""How threads wait for each other: what OMP_WAIT_POLICY and GOMP_SPINCOUNT cost on an idle and on a busy machine.

    ours        the plain script generating (the model of isolation_tax, 3 steps) with one setting in its environment
    reference   the same without any setting: libgomp spins for some milliseconds before a waiting thread sleeps

`.idle`: nothing else runs. `.busy`: two processes that never rest run beside it. Only when named: it takes minutes, and
is there to back a decision (docs/adr/), not a promise.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.arms import Shared, script_arguments
from benchmarks.child import Child
from benchmarks.harness import Benchmark, Row, Samples, part

SETTINGS = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin_1000": {"GOMP_SPINCOUNT": "1000"},
    "spin_10000": {"GOMP_SPINCOUNT": "10000"},
    "spin_100000": {"GOMP_SPINCOUNT": "100000"},
}
TURNS = 5


def run(shared: Shared) -> Iterator[Row]:
    for kind, size in (
        ("t2v_mid", {"height": 128, "width": 224, "num_frames": 17, "num_inference_steps": 3}),
        ("t2v", {"num_inference_steps": 16}),
    ):
        request = shared.request(kind, **size)
        with contextlib.ExitStack() as stack:
            children = {}
            for name, environment in SETTINGS.items():
                child = children[name] = stack.enter_context(Child("benchmarks.plain_script", **environment))
                child.ask(do="use_onednn")
                child.ask(do="load", model=request.model)
            for situation in ("idle", "busy"):
                with _busy_processes(2 if situation == "busy" else 0):
                    found: dict[str, list[float]] = {name: [] for name in SETTINGS}
                    for turn in range(TURNS + 1):
                        for name, child in children.items():
                            moments = child.ask(do="generate", arguments=script_arguments(request), seed=request.seed)
                            if turn:
                                found[name].append(moments["frames"])
                reference = tuple(found.pop("default"))
                for name, seconds in found.items():
                    yield Row(f"wait_policy.{kind}.{situation}.{name}", Samples(tuple(seconds), reference), "s", part())


@contextlib.contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    parent = os.getpid()
    code = f"import os\nwhile os.getppid() == {parent}: sum(range(100000))"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


BENCHMARK = Benchmark("wait_policy", "spinning against sleeping threads, idle and busy machine", run, optional=True)
