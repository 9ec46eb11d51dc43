"""`wan-compat convert`: what a shell sees of a conversion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.assets.original_layout import original_model
from tests.assets.tiny_wan import tiny_model
from tests.cli.conftest import command


@pytest.mark.long
def test_converted_folder_is_named_and_passes_check(cli, tmp_path: Path) -> None:
    ended = cli("convert", original_model("t2v")[0], "--output", tmp_path / "model")
    assert ended.code == 0, ended
    assert f"Wrote {tmp_path / 'model'}: WanPipeline, 3 weight files" in ended.out
    assert "Next: wan-compat generate" in ended.out
    assert cli("check", tmp_path / "model").code == 0


def test_json_document_has_every_file_and_nothing_else_on_stdout(cli, tmp_path: Path) -> None:
    ended = cli("convert", original_model("t2v")[0], "--output", tmp_path / "model", "--dry-run", "--json")
    assert ended.code == 0, ended
    document = ended.document
    assert document["schema_version"] == 1 and document["dry_run"] is True
    assert {file["path"] for file in document["files"]} >= {"vae/diffusion_pytorch_model.safetensors"}
    assert not (tmp_path / "model").exists()


def test_refusals_end_with_their_exit_codes_before_a_worker_starts(cli, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for model, output, code in (
        (tiny_model("t2v"), tmp_path / "a", 1),
        (original_model("t2v")[0], taken, 2),
        (tmp_path / "absent", tmp_path / "b", 4),
    ):
        ended = cli("convert", model, "--output", output, "--json")
        assert ended.code == code, ended
        assert "error" in json.loads(ended.out)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name in "ab") == []


def test_interrupted_conversion_leaves_nothing(environment, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    process = subprocess.Popen(
        command("convert", original_model("t2v")[0], "--output", output / "model"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        assert "Starting worker" in process.stderr.readline()
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    assert list(output.iterdir()) == []
