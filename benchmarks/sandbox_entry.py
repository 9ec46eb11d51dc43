"""What confinement adds to a fork.

    ours        the zygote is asked for a worker and has entered every layer of this machine's tier
    reference   the same order with no layers: the same two forks, the same messages

The row is the difference of neighbours. Making the socket folder and the cgroup beforehand is not in it (worker_ready
counts that), nor is the self-test, which comes after the entry.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import signal
import statistics
import time
from collections.abc import Iterator

from benchmarks.arms import Shared
from benchmarks.harness import Benchmark, Row, Samples, at_most
from wan_compat.protocol.launch import SpawnWorker
from wan_compat.sandbox.spec import Layer, to_wire
from wan_compat.supervisor.worker import Worker

TURNS = 25


def run(shared: Shared) -> Iterator[Row]:
    with spawning(shared) as spawn_s:
        layers = spawn_s.layers
        arms = layers, layers - {Layer.CGROUP}, frozenset[Layer]()
        turns = [[spawn_s(arm) * 1000 for arm in arms] for _ in range(TURNS + 3)][3:]
    entered, without_cgroup, forked = zip(*turns, strict=True)
    medians = statistics.median(entered), statistics.median(forked)
    note = f"fork with {len(layers)} layers {medians[0]:.1f} ms, without {medians[1]:.1f} ms"
    yield Row("sandbox_entry", Samples(_less(entered, forked)), "ms", at_most(10), note)
    if Layer.CGROUP in layers:
        note = "joining a version 2 cgroup waits for the kernel to quiesce, 5 to 12 ms; a version 1 one does not"
        yield Row("sandbox_entry.without_cgroup", Samples(_less(without_cgroup, forked)), "ms", at_most(), note)


def _less(minuend: tuple[float, ...], subtrahend: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(ours - reference for ours, reference in zip(minuend, subtrahend, strict=True))


class Spawning:
    """Asks a zygote for workers with the spec of one that the supervisor composed, and kills each at its first line."""

    def __init__(self, model: Worker) -> None:
        # Private, because the supervisor itself never stops half-way, as is needed here.
        assert model._zygote is not None
        self._zygote, self._spec = model._zygote, model._spec
        self._ring, self._doorbell = os.memfd_create("ring", os.MFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC)
        self._log = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self.layers = self._spec.layers

    def __call__(self, layers: frozenset[Layer]) -> float:
        """Return the seconds from the order to the zygote's answer that the worker is about to run its first line."""
        cgroup_dirs = self._spec.cgroup_dirs if Layer.CGROUP in layers else ()
        spec = dataclasses.replace(self._spec, layers=layers, cgroup_dirs=cgroup_dirs)
        name = f"bench-{secrets.token_hex(4)}"
        order = SpawnWorker(worker=name, endpoint="ipc:///nowhere", spec=to_wire(spec), seed=secrets.token_bytes(32))
        started = time.perf_counter()
        _, *descriptors = self._zygote.spawn(order, (self._ring, self._doorbell, self._log))
        seconds = time.perf_counter() - started
        signal.pidfd_send_signal(descriptors[0], signal.SIGKILL)
        self._zygote.exit_status(name, 5.0)
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)
        return seconds

    def close(self) -> None:
        for descriptor in (self._ring, self._doorbell, self._log):
            os.close(descriptor)


@contextlib.contextmanager
def spawning(shared: Shared) -> Iterator[Spawning]:
    with shared.ready_worker() as model, contextlib.closing(Spawning(model)) as spawn_s:
        yield spawn_s


BENCHMARK = Benchmark("sandbox_entry", "fork into the sandbox, less a plain fork; absolute", run)
