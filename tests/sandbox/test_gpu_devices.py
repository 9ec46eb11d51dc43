"""What a worker with a GPU sees besides, tried with devices that every machine has, and that other workers see none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.harness import ROOT, full_layers, names, run_program
from wan_compat.sandbox import gpu_devices, view
from wan_compat.sandbox.spec import ConfinementSpec, GpuAccess, Layer, Limits, View

STAND_INS = ["/dev/zero", "/dev/full"]
RM_FREE, UVM_REGISTER_GPU, TIOCSTI = 0xC0104629, 37, 0x5412


def spec(gpu: GpuAccess | None) -> ConfinementSpec:
    return ConfinementSpec(frozenset({Layer.VIEW}), View(), Limits(1 << 30), gpu=gpu)


def test_one_gpu_has_three_nodes_and_what_is_no_device_is_missing(tmp_path: Path) -> None:
    assert gpu_devices.device_nodes(12) == ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia12")
    (tmp_path / "nvidiactl").symlink_to("/dev/null")
    (tmp_path / "nvidia-uvm").touch()
    assert gpu_devices.missing_nodes(0, str(tmp_path)) == (str(tmp_path / "nvidia-uvm"), str(tmp_path / "nvidia0"))


def test_only_a_worker_with_a_gpu_sees_its_nodes() -> None:
    with_gpu, without = spec(GpuAccess(("/dev/nvidia0",))), spec(None)
    assert view.devices_of(with_gpu) == (*view.DEVICES, "/dev/nvidia0")
    assert view.devices_of(without) == view.DEVICES
    rules, fewer = dict(view.access_rules(with_gpu)), dict(view.access_rules(without))
    assert rules.keys() - fewer.keys() == {"/dev/nvidia0", view.OWN_PROCESS}


def test_copies_are_of_this_gpu_and_params_leave_device_files_alone(tmp_path: Path) -> None:
    for path, text in {
        "proc/driver/nvidia/params": "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileMode: 438\n",
        "proc/devices": "Character devices:\n195 nvidia\n",
        "sys/bus/pci/devices/0000:3b:00.0/numa_node": "1\n",
        "sys/bus/pci/devices/0000:3b:00.0/resource0": "the card's registers",
        "sys/bus/pci/devices/0000:af:00.0/numa_node": "0\n",
        "sys/devices/system/node/node1/cpumap": "f0f0\n",
        "sys/devices/system/node/node1/meminfo": "Node 1 MemFree",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = {file.target: file.content.decode() for file in gpu_devices.driver_files("0000:3b:00.0", str(tmp_path))}
    assert found == {
        "/proc/driver/nvidia/params": "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 0\nDeviceFileMode: 438\n",
        "/proc/devices": "Character devices:\n195 nvidia\n",
        "/sys/bus/pci/devices/0000:3b:00.0/numa_node": "1\n",
        "/sys/devices/system/node/node1/cpumap": "f0f0\n",
    }
    assert "/sys/bus" not in " ".join(file.target for file in gpu_devices.driver_files("../../../etc", str(tmp_path)))


def use(**order: Any) -> Any:
    ask = {"others": ["/dev/random"], "ioctls": [RM_FREE, UVM_REGISTER_GPU, TIOCSTI], "read": ["/proc/devices"]}
    return run_program("sandbox_launch", {"scenario": "use_devices", "layers": names(full_layers()), **ask, **order})


def test_inside_the_nodes_work_threads_are_named_and_nothing_else_is_there() -> None:
    """/dev/full answers a write with ENOSPC, which only the device itself does."""
    answer = use(devices=STAND_INS)["answer"]
    assert answer["devices"] == {"/dev/zero": 1, "/dev/full": "E28"}
    assert answer["others"] == {"/dev/random": "E2"}
    assert answer["ioctl"] == {hex(RM_FREE): "E25", hex(UVM_REGISTER_GPU): "E25", hex(TIOCSTI): "E25"}
    assert (answer["thread"], answer["maps"]) == ("cuda-EvtHandlr", True)
    assert answer["read"] == {"/proc/devices": "Character devices:\n"}
    assert answer["proc"] == "E13"  # Landlock lists no /proc
    assert answer["open_doors"] == []


def test_without_landlock_the_view_alone_has_one_process_and_no_kernel() -> None:
    layers = names(full_layers() - {Layer.LANDLOCK})
    answer = use(devices=STAND_INS, layers=layers, read=["/proc/version", "/proc/sys/kernel/ostype"])["answer"]
    assert answer["proc"] == ["1", "devices", "self"]
    assert answer["read"] == {"/proc/version": "E2", "/proc/sys/kernel/ostype": "E2"}
    assert answer["others"] == {"/dev/random": "E2"}
    assert answer["open_doors"] == []


def test_a_node_that_the_worker_may_not_use_is_named(tmp_path: Path) -> None:
    closed = "/dev/console" if os.path.exists("/dev/console") else "/dev/mem"
    if not os.path.exists(closed) or (not ROOT and os.access(closed, os.W_OK)):
        pytest.fail(f"{closed} is not as every Linux has it")
    order = {"scenario": "refuse_spec", "layers": names(full_layers()), "devices": [closed]}
    error = run_program("sandbox_launch", order)
    assert f"may not use {closed}" in error["message"] and f"chmod a+rw {closed}" in error["hint"]
    assert error["left"] == {}
