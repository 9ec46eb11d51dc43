"""What a worker may use is bounded by the kernel, in both the cgroup and the rlimit tier. [T8, T9]"""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.sandbox.harness import full_layers, names, run_program
from wan_compat.sandbox import cgroup
from wan_compat.sandbox.spec import Layer, Limits

SUPPORT = cgroup.detect()
FULL = names(full_layers())


def attack(name: str, arguments: dict[str, Any] | None = None, **order: Any) -> Any:
    return run_program("sandbox_attack", {"attack": name, "layers": FULL, "arguments": arguments or {}, **order})


def test_private_memory_is_bounded_without_a_cgroup() -> None:
    limits = {"memory_bytes": 256 << 20}
    assert attack("use_memory", {"size": 64 << 20}, limits=limits)["gained"]
    answer = attack("use_memory", {"size": 512 << 20}, limits=limits)
    assert answer["gained"] is None and "MemoryError" in answer["error"]


def test_memory_of_every_kind_is_bounded_by_a_cgroup() -> None:
    if not SUPPORT.available:
        pytest.skip(f"no cgroup: {SUPPORT.reason}")
    group = cgroup.create("bounds", Limits(memory_bytes=96 << 20, threads=16))
    try:
        order = {"layers": [*FULL, "cgroup"], "cgroup_dirs": list(group.dirs)}
        answer = attack("use_memory", {"size": 256 << 20}, **order)
        assert answer["gained"] is None and answer["signal"] == signal.SIGKILL
        assert group.usage().oom_kills >= 1
        assert group.usage().peak_bytes <= 96 << 20
    finally:
        group.kill()
        assert group.remove()


def test_threads_are_bounded() -> None:
    assert attack("start_threads", {"count": 4})["gained"]
    answer = attack("start_threads", {"count": 100})
    assert answer["gained"] is None and "threads, then" in answer["error"]


def test_descriptors_are_bounded() -> None:
    assert "Errno 24" in attack("open_files", {"count": 100})["error"]


def test_scratch_is_bounded_in_bytes_and_files() -> None:
    assert attack("write_big_file", {"size": 4 << 20})["gained"]
    assert "Errno 28" in attack("write_big_file", {"size": 16 << 20})["error"]
    assert "Errno 28" in attack("make_many_files", {"count": 100})["error"]


def test_buffers_of_sockets_and_pipes_keep_the_machine_s_size() -> None:
    """So all of them together are bounded by the number of descriptors."""
    with open("/proc/sys/net/core/wmem_max") as file:
        most = 2 * int(file.read())  # the kernel doubles what is asked for, for its own bookkeeping (socket(7))
    assert int(attack("grow_socket", {"size": 256 << 20})["gained"]) <= most
    assert attack("grow_pipe")["gained"] is None


def test_processor_time_is_bounded_by_a_cgroup() -> None:
    if not SUPPORT.available:
        pytest.skip(f"no cgroup: {SUPPORT.reason}")
    free = float(attack("burn_processor", {"threads": 2})["gained"])
    group = cgroup.create("share", Limits(memory_bytes=256 << 20, threads=16, cpu_cores=0.2))
    try:
        order = {"layers": [*FULL, "cgroup"], "cgroup_dirs": list(group.dirs)}
        used = float(attack("burn_processor", {"threads": 2}, **order)["gained"])
        # One period of credit may be used on top, at the beginning and at the end.
        assert used < max(0.45, free / 2), f"{used} s of processor in a second, {free} s without the bound"
    finally:
        group.kill()
        assert group.remove()


def test_processes_are_bounded_by_a_cgroup_as_well_as_threads() -> None:
    if not SUPPORT.available:
        pytest.skip(f"no cgroup: {SUPPORT.reason}")
    group = cgroup.create("threads", Limits(memory_bytes=256 << 20, threads=6))
    try:
        order = {"layers": [*names(full_layers() - {Layer.RLIMITS}), "cgroup"], "cgroup_dirs": list(group.dirs)}
        answer = attack("start_threads", {"count": 30}, **order)
        assert answer["gained"] is None and "threads, then" in answer["error"]
    finally:
        group.kill()
        assert group.remove()


def test_scratch_counts_as_the_worker_s_memory() -> None:
    if not SUPPORT.available:
        pytest.skip(f"no cgroup: {SUPPORT.reason}")
    group = cgroup.create("scratch", Limits(memory_bytes=64 << 20, threads=16))
    try:
        order = {"layers": [*FULL, "cgroup"], "cgroup_dirs": list(group.dirs)}
        assert attack("write_big_file", {"size": 6 << 20}, **order)["gained"]
        assert group.usage().peak_bytes > 6 << 20
    finally:
        group.kill()
        assert group.remove()


def test_file_size_is_bounded() -> None:
    answer = attack("write_big_file", {"size": 2 << 20}, limits={"file_size_bytes": 1 << 20})
    assert answer["gained"] is None
    assert answer["signal"] == signal.SIGXFSZ or "Errno 27" in answer["error"]


def test_a_failed_name_look_up_does_not_hang() -> None:
    assert "hung" not in str(attack("look_up_name")["gained"])
