"""Which GPU a job computes on, or why on none: by tables."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from wan_compat.policies.gpus import CudaFacts, GpuUse, NodeFacts, choose_gpu, remarks, why_unusable
from wan_compat.policies.planning.machine import GpuFacts
from wan_compat.protocol import errors

GB = 1 << 30
CUDA = CudaFacts(torch=(12, 8), driver=(12, 9))


def gpu(index: int = 0, free_gb: float = 70, **changed: Any) -> GpuFacts:
    known = GpuFacts(
        "NVIDIA Imaginary", 80 * GB, int(free_gb * GB), (9, 0), index=index, uuid=uuid(index), minor=index + 4,
        address="0000:3b:00.0",
    )  # fmt: skip
    return dataclasses.replace(known, **changed)


def uuid(index: int) -> str:
    return f"GPU-{index:08x}-0000-0000-0000-000000000000"


AMD = GpuFacts("AMD Imaginary", 64 * GB, 64 * GB, vendor="amd")


@pytest.mark.parametrize(
    ("gpus", "cuda", "chosen", "words"),
    [
        ((), CUDA, None, ""),
        ((gpu(),), CUDA, 0, ""),
        ((gpu(), gpu(1, 75)), CUDA, 1, ""),
        ((gpu(0, 70.2), gpu(1, 70.9)), CUDA, 0, ""),  # other programs' little more or less decides nothing
        ((gpu(mig=True), gpu(1, 10)), CUDA, 1, "divided"),
        ((gpu(compute_mode="prohibited"),), CUDA, None, "nvidia-smi -c 0"),
        ((gpu(compute_mode="exclusive"),), CUDA, 0, ""),
        ((gpu(uuid="MIG-1"),), CUDA, None, "which one"),
        ((gpu(minor=None),), CUDA, None, "which one"),
        ((gpu(),), CudaFacts(None, (12, 9)), None, "without CUDA"),
        ((gpu(),), CudaFacts((12, 8), (11, 4)), None, "11.4"),
        ((gpu(),), CudaFacts((12, 8), (12, 2)), 0, ""),  # minor versions are compatible
        ((gpu(),), CudaFacts((12, 8), (13, 0)), 0, ""),  # newer drivers run older programs
        ((gpu(),), CudaFacts((12, 8), None), 0, ""),
        ((AMD,), CUDA, None, "NVIDIA's alone"),
        ((AMD, gpu(1)), CUDA, 1, ""),
    ],
    ids=str,
)
def test_auto_takes_the_usable_one_with_the_most_room(gpus, cuda, chosen, words):
    found = choose_gpu("auto", gpus, cuda)
    assert (found.gpu.index if found.gpu else None) == chosen
    assert words in " ".join(found.why_not) and bool(words) == bool(found.why_not)


def test_what_is_asked_for_by_name_is_had_or_is_an_error():
    both = (gpu(), gpu(1, 75), gpu(2, mig=True))
    assert choose_gpu("cpu", both, CUDA).gpu is None
    assert choose_gpu("cuda", both, CUDA).gpu == both[1]
    assert choose_gpu("cuda:0", both, CUDA).gpu == both[0]
    with pytest.raises(errors.GpuUnusable, match=r"GPU 2 .*MIG"):
        choose_gpu("cuda:2", both, CUDA)
    with pytest.raises(errors.InvalidRequest, match="knows 0, 1, 2"):
        choose_gpu("cuda:3", both, CUDA)
    for wish in ("cuda", "cuda:0"):
        with pytest.raises(errors.GpuUnusable, match="no NVIDIA driver") as caught:
            choose_gpu(wish, (), CUDA)
        assert caught.value.exit_code == 3
    with pytest.raises(errors.GpuUnusable, match="AMD"):
        choose_gpu("cuda", (AMD,), CUDA)


def test_nodes_that_are_missing_or_closed_are_named_with_what_mends_it():
    missing = why_unusable(gpu(), CUDA, NodeFacts(missing=("/dev/nvidia-uvm",)))
    assert missing is not None and "/dev/nvidia-uvm" in missing and "nvidia-modprobe -u -c 4" in missing
    closed = why_unusable(gpu(), CUDA, NodeFacts(closed=("/dev/nvidia4",)))
    assert closed is not None and "chmod a+rw /dev/nvidia4" in closed
    assert why_unusable(gpu(), CUDA, NodeFacts()) is None
    assert choose_gpu("auto", (gpu(), gpu(1, 1)), CUDA, nodes={0: NodeFacts(missing=("x",))}).gpu == gpu(1, 1)


def test_jobs_that_run_at_once_go_to_different_gpus_and_share_what_is_there():
    both = (gpu(0, 70), gpu(1, 60))
    one = choose_gpu("auto", both, CUDA, use=GpuUse(busy={uuid(0): 1}, busy_bytes={uuid(0): 9 * GB}, workers=2))
    assert one.gpu == both[1]  # each worker has a GPU to itself
    alone = choose_gpu("auto", (gpu(0, 60),), CUDA, use=GpuUse({uuid(0): 1}, {}, {uuid(0): 10 * GB}, workers=2))
    assert alone.gpu is not None and alone.gpu.memory_free_bytes == 35 * GB
    hungry = choose_gpu("auto", (gpu(0, 10),), CUDA, use=GpuUse({uuid(0): 1}, {}, {uuid(0): 60 * GB}, workers=2))
    assert hungry.gpu is not None and hungry.gpu.memory_free_bytes == 10 * GB  # never more than is free


def test_memory_of_idle_workers_counts_as_free_so_that_a_warm_one_is_chosen_again():
    use = GpuUse(idle_bytes={uuid(0): 30 * GB})
    found = choose_gpu("auto", (gpu(0, 45), gpu(1, 75)), CUDA, use=use)
    assert found.gpu is not None and (found.gpu.index, found.gpu.memory_free_bytes) == (0, 75 * GB)


def test_a_gpu_for_one_process_at_a_time_is_given_to_one_worker_at_a_time():
    only = gpu(compute_mode="exclusive")
    busy = GpuUse(busy={uuid(0): 1}, workers=2)
    assert choose_gpu("auto", (only,), CUDA, use=GpuUse(busy={uuid(0): 0}, workers=2)).gpu is not None
    taken = choose_gpu("auto", (only,), CUDA, use=busy)
    assert taken.gpu is None and "one process at a time" in taken.why_not[0]
    other = choose_gpu("auto", (only, gpu(1, 5)), CUDA, use=busy).gpu
    assert other is not None and other.index == 1
    with pytest.raises(errors.GpuUnusable, match="nvidia-smi -c 0"):
        choose_gpu("cuda", (only,), CUDA, use=busy)


def test_exclusive_mode_is_told():
    assert "one process at a time" in remarks(gpu(compute_mode="exclusive"))[0] and remarks(gpu()) == ()
