"""T18: whatever a scan or RestrictedPython says, what is refused stays refused, and what loads does not ask them."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Supervisor
from wan_compat.policies.scan import risk
from wan_compat.policies.scan.pickle_opcodes import PickleReport
from wan_compat.protocol.errors import PickleRefused
from wan_compat.supervisor.scanner import scan_model

# Everything between a request and a worker.
ACTS = (
    "policies/models.py",
    "policies/policy.py",
    "policies/confinement.py",
    "supervisor/job_run.py",
    "supervisor/worker.py",
    "supervisor/worker_pool.py",
    "supervisor/zygote.py",
)


@pytest.mark.parametrize("module", ACTS)
def test_what_decides_and_loads_imports_no_scanner(module: str, repository: Path) -> None:
    tree = ast.parse((repository / "wan_compat" / module).read_text())
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    scanners = ("wan_compat.policies.scan", "wan_compat.supervisor.scan", "RestrictedPython")
    assert [name for name in imported if name.startswith(scanners)] == []


def test_a_pickle_that_a_scan_calls_safe_is_refused_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model("t2v"), model)
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(b"\x80\x02}.")
    # As blind as a scanner can be.
    empty = PickleReport(protocol=2, names=(), calls=0, call_text=(), opcodes=1, end=4, stopped=True)
    monkeypatch.setattr("wan_compat.policies.scan.pickle_opcodes.walk", lambda *_, **__: empty)
    monkeypatch.setattr("wan_compat.policies.scan.pickle_opcodes.is_pickle", lambda _: False)
    monkeypatch.setattr(risk, "_is_refused", lambda _: False)
    monkeypatch.setattr("wan_compat.policies.scan.report.risk_level", lambda _: "low")
    assert scan_model(str(model)).is_safe
    with Supervisor() as supervisor, pytest.raises(PickleRefused):
        supervisor.generate(
            GenerationRequest(
                model=str(model),
                prompt="x",
                height=64,
                width=96,
                num_frames=9,
                num_inference_steps=1,
                output=str(tmp_path / "x.mp4"),
            )
        )
