"""Containment is a change of one line: a diffusers script gets the same frames from SandboxedPipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.assets.tiny_wan import tiny_models

pytestmark = pytest.mark.timeout(300)  # the first run on a machine builds the tiny models

SCRIPT = Path(__file__).resolve().parent / "programs" / "drop_in_script.py"
CASES = ["text", "negative, two prompts", "pictures", "image, tensors", "video"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    models = tiny_models(["t2v", "i2v22"])
    out = tmp_path_factory.mktemp("drop-in") / "report.json"
    command = [sys.executable, str(SCRIPT), *(str(models[kind]) for kind in ("t2v", "i2v22")), str(out)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", CASES)
def test_the_same_script_gets_the_same_frames(case: str, report: Any) -> None:
    found = report[case]
    assert found["ours"] == found["theirs"]
    least, most = found["difference"]
    # A float of a batch differs in its last bits; of PIL pictures, which diffusers rounds, one in three by a whole step.
    assert least >= -1e-6 and most <= 1 / 255 + 1e-6
    assert found["warnings"] == []


@pytest.mark.parametrize("case", [case for case in CASES if case != "negative, two prompts"])
def test_a_callback_hears_the_steps_and_timesteps_of_diffusers(case: str, report: Any) -> None:
    assert report[case]["our_steps"] == report[case]["their_steps"] != []


def test_a_generator_gives_its_seed_once(report: Any) -> None:
    """Its seed; then nothing, because a call uses it up; nothing, because it was used elsewhere; then its new seed."""
    assert report["generators"] == [[7], "pipeline_feature_missing", "pipeline_feature_missing", [9]]
