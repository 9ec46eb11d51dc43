"""A model that does not fit: a plain script dies under a limit on memory, a planned worker finishes with the same frames.

The limit is RLIMIT_DATA, the kernel's own for both: what tier B enforces, and `ulimit -d` for the script.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.assets.tiny_wan import tiny_model
from tests.workers.harness import ZygoteProcess, parameters, pipeline_spec
from tests.workers.test_generation import PLAIN_SCRIPT
from wan_compat.protocol import messages as m
from wan_compat.protocol.plan import GroupOffload, PlanSpec

# Between what a worker takes by the plan and what the script takes: libraries, threads' stacks and activations fit,
# 165 MB of two experts do not.
LIMIT_BYTES = 600 << 20
IN_FILES = PlanSpec(offload="group", group=GroupOffload(disk=True))


@pytest.fixture(scope="module")
def two_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """t2v_mid, with its transformer a second time as the expert for low noise."""
    folder = tmp_path_factory.mktemp("capped") / "model"
    shutil.copytree(tiny_model("t2v_mid"), folder)
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"transformer_2": index["transformer"], "boundary_ratio": 0.5}
    (folder / "model_index.json").write_text(json.dumps(index))
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def plain_script(model: Path, output: Path, limit_bytes: int | None) -> subprocess.CompletedProcess[str]:
    params = parameters()
    request = params.model_dump(exclude={"frames", "task", "media", "videos_at_once"}, exclude_none=True)
    request |= params.frames.model_dump() | {"threads": 1}

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

    command = [sys.executable, str(PLAIN_SCRIPT), str(model), json.dumps(request), str(output)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, preexec_fn=limit)


@pytest.mark.long
def test_two_experts_under_a_limit_that_kills_a_plain_script(
    zygote: ZygoteProcess, confined: bool, tmp_path: Path, two_experts: Path
) -> None:
    if not confined:
        pytest.skip("without the sandbox nothing limits the worker")
    died = plain_script(two_experts, tmp_path / "dead.npy", LIMIT_BYTES)
    assert died.returncode != 0 and "memory" in died.stderr.lower(), died.stderr[-2000:]
    with zygote.spawn(two_experts, confined=True, memory_bytes=LIMIT_BYTES) as worker:
        worker.start(two_experts, conv3d="default", plan=IN_FILES)
        result = worker.generate(parameters())
        worker.kill()
    assert isinstance(result.end, m.Generated), result.end
    whole = plain_script(two_experts, tmp_path / "whole.npy", None)
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert np.array_equal(result.pixels, np.load(tmp_path / "whole.npy"))


def test_without_the_plan_the_worker_says_that_memory_was_short(
    zygote: ZygoteProcess, confined: bool, two_experts: Path
) -> None:
    if not confined:
        pytest.skip("without the sandbox nothing limits the worker")
    with zygote.spawn(two_experts, confined=True, memory_bytes=LIMIT_BYTES) as worker:
        worker.handshake()
        answer = worker.load(pipeline_spec(two_experts))
        if isinstance(answer, m.ModelLoaded):
            answer = worker.generate(parameters()).end
        worker.kill()
    assert isinstance(answer, m.Failed) and answer.code == "memory_exceeded", answer
