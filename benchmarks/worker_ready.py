"""How long until a worker is there.

    ours        a running zygote forks it
                .fork       to its first line, without layers: the two forks and the messages around them (the bar)
                .entered    to its first line, every layer entered
                .ready      composed, forked, entered, self-tested, connected, its filter sealed: it may load a model
    reference   a new interpreter imports what a script needs: torch, diffusers, transformers, the Wan classes

What the zygote itself costs, once per supervisor, is one such import.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

from benchmarks.arms import Shared
from benchmarks.child import SCRIPT_IMPORTS, run_python
from benchmarks.harness import Benchmark, Row, Samples, faster
from benchmarks.sandbox_entry import spawning

TURNS = 5
FORKS_PER_TURN = 5


def run(shared: Shared) -> Iterator[Row]:
    fork, entered, ready, reference = [], [], [], []
    with spawning(shared) as spawn_s:
        for _ in range(TURNS):
            fork.append(_median_ms(lambda: spawn_s(frozenset())))
            entered.append(_median_ms(lambda: spawn_s(spawn_s.layers)))
            ready.append(_median_ms(lambda: ready_s(shared)))
            reference.append(run_python(SCRIPT_IMPORTS)[0] * 1000)
    note = f"each run is the median of {FORKS_PER_TURN} forks"
    yield Row("worker_ready.fork", Samples(tuple(fork), tuple(reference)), "ms", faster(100), note)
    yield Row("worker_ready.entered", Samples(tuple(entered), tuple(reference)), "ms", faster())
    yield Row("worker_ready.ready", Samples(tuple(ready), tuple(reference)), "ms", faster())


def ready_s(shared: Shared) -> float:
    """Return the seconds from nothing to a worker that may load a model."""
    shared.pool  # noqa: B018 - is made when first asked for
    started = time.perf_counter()
    with shared.ready_worker():
        return time.perf_counter() - started


def _median_ms(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(FORKS_PER_TURN)) * 1000


BENCHMARK = Benchmark("worker_ready", "a forked worker against a spawned interpreter that imports", run)
