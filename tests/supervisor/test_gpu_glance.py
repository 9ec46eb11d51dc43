"""A monitor asks about the GPUs every second; the driver is opened for the first question only, and closed at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from wan_compat.supervisor import gpu_glance, status_report
from wan_compat.supervisor.gpu_glance import GpuGlance
from wan_compat.supervisor.nvml import Gpu


class Driver:
    """Counts how often it is opened and closed."""

    opened = closed = 0
    gpus_there = True

    def __init__(self) -> None:
        type(self).opened += 1

    def close(self) -> None:
        type(self).closed += 1

    def gpus(self) -> list[Gpu]:
        return [Gpu(0, "one", 24, 10), Gpu(1, "two", 8, 8)] if self.gpus_there else []


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> type[Driver]:
    fresh = type("FreshDriver", (Driver,), {})
    monkeypatch.setattr(gpu_glance, "Nvml", fresh)
    return fresh


def test_the_driver_is_opened_once_for_all_looks_and_threads(driver: type[Driver]) -> None:
    glance = GpuGlance()
    assert driver.opened == 0, "nobody looked yet"
    threads = [threading.Thread(target=glance.memory) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert glance.memory() == (32, 14)
    assert (driver.opened, driver.closed) == (1, 0)
    glance.close()
    glance.close()
    assert (driver.opened, driver.closed) == (1, 1)


def test_the_supervisors_status_looks_that_way(driver: type[Driver], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_glance, "GLANCE", GpuGlance())
    for _ in range(3):
        machine = status_report.machine_status()
        assert (machine.vram_total_bytes, machine.vram_used_bytes) == (32, 14)
    assert driver.opened == 1
    driver.gpus_there = False  # lost, all of them
    assert status_report.machine_status().vram_total_bytes is None


def test_without_a_driver_it_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def missing() -> None:
        looks.append(1)
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(gpu_glance, "Nvml", missing)
    glance = GpuGlance()
    assert [glance.memory() for _ in range(5)] == [None] * 5
    assert len(looks) == 1


def test_another_process_opens_it_for_itself(driver: type[Driver], monkeypatch: pytest.MonkeyPatch) -> None:
    glance = GpuGlance()
    glance.memory()
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as after a fork
    assert glance.memory() == (32, 14)
    assert driver.opened == 2


def test_it_is_closed_when_the_process_ends() -> None:
    code = """
from wan_compat.supervisor import gpu_glance
class Driver:
    gpus = lambda self: []
    close = lambda self: print("closed")
gpu_glance.Nvml = Driver
gpu_glance.GLANCE.memory()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "closed\n"
