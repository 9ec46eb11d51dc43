from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Supervisor
from wan_compat.policies.facts import FileFact
from wan_compat.supervisor import job_run, job_worker
from wan_compat.supervisor.admitted_files import check_unchanged
from wan_compat.supervisor.hashing import FileChanged
from wan_compat.supervisor.inspection import read_facts

# Rewrites a file in place, byte for byte another one of the same size; "quietly" sets the mtime back.
REWRITE = """
import os, sys
path = sys.argv[1]
info = os.stat(path)
with open(path, "r+b") as file:
    file.seek(-1, 2)
    last = file.read(1)
    file.seek(-1, 2)
    file.write(bytes([last[0] ^ 1]))
if "quietly" in sys.argv:
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
"""


def rewrite(path: Path, *how: str) -> None:
    subprocess.run([sys.executable, "-I", "-c", REWRITE, str(path), *how], check=True, timeout=30)


@pytest.fixture
def listed(tmp_path: Path) -> tuple[Path, tuple[FileFact, ...]]:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path, tuple(read_facts(str(tmp_path)).files.values())


def test_files_that_nobody_touched_are_unchanged(listed: tuple[Path, tuple[FileFact, ...]]) -> None:
    path, facts = listed
    path.read_bytes()
    assert check_unchanged(facts) == ()


def _grow(path: Path) -> None:
    path.write_bytes(b"weights and more")


def _replace(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    os.replace(other, path)


def _link(path: Path) -> None:
    target = path.with_name("elsewhere")
    os.rename(path, target)
    path.symlink_to(target)


@pytest.mark.parametrize("change", [_grow, _replace, _link, Path.unlink, rewrite])
def test_a_file_that_was_written_to_replaced_or_removed_is_named(
    change: Callable[[Path], None], listed: tuple[Path, tuple[FileFact, ...]]
) -> None:
    path, facts = listed
    change(path)
    with pytest.raises(FileChanged, match=r"model\.safetensors changed while it was being used"):
        check_unchanged(facts)


def test_a_time_that_was_set_back_shows_in_the_ctime(listed: tuple[Path, tuple[FileFact, ...]]) -> None:
    path, facts = listed
    rewrite(path, "quietly")
    assert check_unchanged(facts) == ("model.safetensors",)


def request_for(model: Path, output: Path) -> GenerationRequest:
    size = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1}
    return GenerationRequest(model=str(model), prompt="a", seed=1, output=str(output), overwrite=True, **size)


def test_weights_rewritten_in_place_while_a_worker_uses_them_make_no_video(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, output = tmp_path / "model", tmp_path / "video.mp4"
    shutil.copytree(tiny_model("t2v"), model)
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"

    def before(kind: type, name: str) -> None:
        """Rewrite the weights when the job is about to take this step: the worker has them mapped already."""
        original = getattr(kind, name)

        def step(self: Any, *arguments: Any) -> Any:
            rewrite(weights)
            return original(self, *arguments)

        monkeypatch.setattr(kind, name, step)

    for kind, name in ((job_worker.JobWorker, "load"), (job_run.JobRun, "_stream")):
        with monkeypatch.context():
            before(kind, name)
            with pytest.raises(FileChanged, match="transformer") as caught:
                supervisor.generate(request_for(model, output))
            assert caught.value.exit_code == 4
            monkeypatch.undo()
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert supervisor.generate(request_for(model, output)).success
