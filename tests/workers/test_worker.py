"""A worker's life: its greeting, its own randomness, and the ways in which it ends."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.assets.tiny_wan import tiny_model
from tests.workers.harness import WorkerProcess, ZygoteProcess, parameters
from tests.workers.inside import in_torch_process
from wan_compat.protocol import messages as m
from wan_compat.protocol.messages import PROTOCOL_VERSION
from wan_compat.protocol.values import FrameSpec
from wan_compat.sandbox import selftest
from wan_compat.workers.control import EXIT_LOST


def test_hello_carries_layers_versions_and_a_self_test_that_passed(zygote: ZygoteProcess, confined: bool) -> None:
    if not confined:
        pytest.skip("this machine cannot confine")
    with zygote.spawn(tiny_model("t2v")) as worker:
        hello = worker.handshake()
        worker.kill()
    denied = {probe.name for probe in hello.probes if probe.denied}
    assert hello.protocol_version == PROTOCOL_VERSION
    assert {"seccomp", "landlock", "view"} <= set(hello.layers)
    assert selftest.expected_denied(hello.layers) <= denied
    assert {probe.name for probe in worker.sealed_probes if probe.denied} == selftest.expected_sealed(hello.layers)
    assert hello.entry_s > 0 and "torch" in hello.versions


def test_one_worker_serves_many_jobs_and_a_seed_gives_one_clip(t2v_worker: WorkerProcess) -> None:
    first = t2v_worker.generate(parameters(seed=1), job=1)
    other = t2v_worker.generate(parameters(seed=2), job=2)
    again = t2v_worker.generate(parameters(seed=1), job=3)
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)


@in_torch_process
def test_two_workers_of_one_zygote_have_different_random_numbers() -> None:
    """What a fork copies: the state of numpy's and torch's generators. After `reseed`, no two workers agree."""
    import numpy
    import torch

    from wan_compat.workers.worker import reseed

    drawn = []
    for seed in (None, None, b"a" * 32, b"b" * 32):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            if seed is not None:
                reseed(seed)
            values = (float(numpy.random.rand()), float(torch.rand(1)))
            os.write(writer, repr(values).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        drawn.append(eval(os.read(reader, 1000)))
    assert drawn[0] == drawn[1]  # the danger is real
    assert all(len({values[i] for values in drawn}) == 3 for i in range(2))


@in_torch_process
def test_the_same_seed_gives_the_same_random_numbers() -> None:
    import torch

    from wan_compat.workers.worker import reseed

    reseed(b"c" * 32)
    first = torch.rand(4)
    reseed(b"c" * 32)
    assert torch.equal(torch.rand(4), first)


def test_it_ends_when_the_supervisor_s_doorbell_closes(zygote: ZygoteProcess, confined: bool) -> None:
    worker = zygote.spawn(tiny_model("t2v"), confined=confined)
    worker.handshake()
    worker.doorbell.close()
    assert os.waitstatus_to_exitcode(zygote.wait_exit(worker.name)) == EXIT_LOST
    worker.close()


def test_it_ends_in_the_middle_of_a_generation_when_the_supervisor_is_gone(t2v_worker: WorkerProcess) -> None:
    t2v_worker.send(m.Generate(job=1, params=parameters(num_inference_steps=1000)))
    assert isinstance(t2v_worker.receive(), m.Progress)
    t2v_worker.doorbell.close()
    assert t2v_worker.ended()


def test_it_ends_at_the_first_message_out_of_order(zygote: ZygoteProcess, confined: bool) -> None:
    with zygote.spawn(tiny_model("t2v"), confined=confined) as worker:
        worker.handshake()
        worker.channel.send(m.Generate(job=1, params=parameters()), 2)  # nothing is loaded
        assert os.waitstatus_to_exitcode(zygote.wait_exit(worker.name)) == EXIT_LOST
        assert "protocol_violation" in worker.log.read_text()


def test_it_ends_at_a_skipped_sequence_number(zygote: ZygoteProcess, confined: bool) -> None:
    with zygote.spawn(tiny_model("t2v"), confined=confined) as worker:
        worker.handshake()
        worker.channel.send(m.Ping(nonce=1), 3)
        assert os.waitstatus_to_exitcode(zygote.wait_exit(worker.name)) == EXIT_LOST


def test_shutdown_in_the_middle_of_a_generation_ends_it_at_once(t2v_worker: WorkerProcess) -> None:
    t2v_worker.send(m.Generate(job=1, params=parameters(num_inference_steps=1000)))
    assert isinstance(t2v_worker.receive(), m.Progress)
    t2v_worker.send(m.Shutdown())
    assert t2v_worker.ended(2.0)


def test_too_large_a_request_is_memory_exceeded_and_the_worker_goes_on(zygote: ZygoteProcess, confined: bool) -> None:
    if not confined:
        pytest.skip("nothing bounds memory without the sandbox")
    model = tiny_model("t2v")
    # The text encoder's attention over 4096 tokens wants several times 268 MB.
    huge = parameters(max_sequence_length=4096)
    with zygote.spawn(model, memory_bytes=900 << 20) as worker:
        worker.start(model)
        failed = worker.generate(huge, job=1)
        after = worker.generate(parameters(), job=2)
        worker.kill()
    assert isinstance(failed.end, m.Failed) and failed.end.code == "memory_exceeded", failed.end
    assert failed.end.fixes
    assert isinstance(after.end, m.Generated)


def test_memory_does_not_grow_from_job_to_job(t2v_worker: WorkerProcess) -> None:
    """After ten jobs or more, memory comes down to what it was after the first few.

    How much the allocator holds back after a job goes up and down by 14 MB, with the pieces that the heap has by then;
    what it comes down to again and again does not change (60 jobs). Ten jobs that left one clip each behind, of 2.4 MB
    as floats, would have raised it by 24 MB for ever.
    """
    import psutil

    process = psutil.Process(t2v_worker.pid)
    frames = FrameSpec(height=64, width=96, num_frames=33)
    used: list[int] = []
    while len(used) < 11 or (used[-1] >= min(used[1:5]) + (6 << 20) and len(used) < 60):
        t2v_worker.generate(parameters(frames=frames, num_inference_steps=1), job=len(used) + 1)
        used.append(process.memory_full_info().uss)
    assert used[-1] < min(used[1:5]) + (6 << 20), used


def test_without_a_view_the_model_is_found_where_it_was(
    zygote: ZygoteProcess, confined: bool, t2v_worker: WorkerProcess
) -> None:
    """Tier C has no mount namespace: the worker's scratch folder gets links to the admitted files."""
    model = tiny_model("t2v")
    with zygote.spawn(model, confined=False) as worker:
        worker.start(model)
        pixels = worker.generate(parameters()).pixels
        worker.kill()
    assert np.array_equal(pixels, t2v_worker.generate(parameters()).pixels)
