"""Which device nodes a worker with a GPU sees, and that others see none."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from wan_compat.sandbox import view
from wan_compat.sandbox.gpu_devices import gpu_devices
from wan_compat.sandbox.spec import ConfinementSpec, Layer, Limits, View

NAMES = ("nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1")
OTHERS = ("nvidia-modeset", "nvidia0x", "dri", "sda", "nvidia-caps/other")


def spec(*, allow_gpu: bool) -> ConfinementSpec:
    return ConfinementSpec(frozenset({Layer.VIEW}), View(), Limits(1 << 30), allow_gpu=allow_gpu)


def test_compute_nodes_are_found_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-caps").mkdir()
    for name in (*NAMES, *OTHERS):
        (tmp_path / name).touch()
    assert gpu_devices(str(tmp_path)) == ()  # files with such names are no devices
    null = os.lstat("/dev/null")
    monkeypatch.setattr(os, "lstat", lambda _: null)
    assert stat.S_ISCHR(null.st_mode)
    assert sorted(gpu_devices(str(tmp_path))) == sorted(str(tmp_path / name) for name in NAMES)
    assert gpu_devices(str(tmp_path / "absent")) == ()


def test_only_a_worker_with_a_gpu_sees_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "gpu_devices", lambda: ("/dev/nvidia0",))
    assert "/dev/nvidia0" in view.devices_of(spec(allow_gpu=True))
    assert view.devices_of(spec(allow_gpu=False)) == view.DEVICES
    with_gpu, without = (dict(view.access_rules(spec(allow_gpu=allow))) for allow in (True, False))
    assert "/dev/nvidia0" in with_gpu and "/dev/nvidia0" not in without
