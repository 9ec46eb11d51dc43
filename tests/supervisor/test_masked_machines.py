"""A machine that lacks something is used as far as that is safe, or refused with cause and remedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat.sandbox import cgroup

PROGRAM = Path(__file__).resolve().parent.parent / "programs" / "masked_machine.py"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="masking folders of the machine needs root")


def run(lack: str, tmp_path: Path, min_tier: str = "B") -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), lack, min_tier, str(tiny_model("t2v")), str(tmp_path / "x.mp4")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@needs_root
def test_full_dev_shm_does_not_matter_to_frames_in_a_memfd(tmp_path):
    assert run("full-shm", tmp_path)["tier"] in ("A", "B")


@needs_root
def test_masked_proc_is_named_with_its_remedy_before_anything_starts(tmp_path):
    error = run("no-proc", tmp_path)["error"]
    assert error["code"] == "environment_lacks" and "/proc" in error["message"] and "mount" in error["fixes"][0]
    assert list(tmp_path.iterdir()) == []


@needs_root
def test_without_a_cgroup_tier_b_works_and_tier_a_is_refused_with_the_mechanism(tmp_path):
    assert run("no-cgroup", tmp_path)["tier"] == "B"
    (tmp_path / "x.mp4").unlink()
    error = run("no-cgroup", tmp_path, min_tier="A")["error"]
    assert error["code"] == "sandbox_unavailable" and "cgroup" in error["message"] and len(error["fixes"]) >= 2


@pytest.mark.skipif(cgroup.detect().available, reason="where there is a cgroup, memory need not be watched")
def test_memory_that_can_be_neither_bounded_nor_watched_is_refused(tmp_path):
    error = run("silent-proc", tmp_path)["error"]
    assert error["code"] == "sandbox_unavailable" and "cannot be watched" in error["message"] and error["fixes"]
    assert list(tmp_path.iterdir()) == []
