"""`wan-compat check --repair DIR`: a diff, a mended copy beside the original, and a second check."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.cli.conftest import RunCli
from tests.cli.test_check import run
from tests.supervisor.test_check import edit, snapshot


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A tiny model that runs, but for its index."""
    path = tmp_path / "broken"
    shutil.copytree(tiny_model("t2v"), path)
    (path / "model_index.json").write_text('{"_class_name": "WanPipel')
    return path


def test_without_repair_the_diff_is_shown_and_nothing_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, broken: Path
) -> None:
    before = snapshot(tmp_path)
    code, out, _ = run(capsys, "check", broken)
    assert code == 4 and '+  "_class_name": "WanPipeline",' in out and "--repair DIR" in out
    assert snapshot(tmp_path) == before


def test_a_mended_copy_runs(cli: RunCli, tmp_path: Path, broken: Path) -> None:
    before = snapshot(broken)
    ended = cli("check", broken, "--repair", tmp_path / "copy")
    assert ended.code == 0, ended
    assert "It can run here" in ended.out and "is rebuilt from" in ended.out and "+++ model_index.json" in ended.err
    assert snapshot(broken) == before


def test_with_json_there_is_one_document_of_the_copy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, broken: Path
) -> None:
    code, out, _ = run(capsys, "check", broken, "--repair", tmp_path / "copy", "--json")
    document = json.loads(out)
    assert code == 0 and document["model"] == str(tmp_path / "copy") and document["compatible_here"] is True
    assert document["repaired"]["original"] == str(broken) and document["repaired"]["changes"]


def test_a_taken_folder_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, broken: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    before = snapshot(tmp_path)
    code, _, err = run(capsys, "check", broken, "--repair", tmp_path / "taken")
    assert code == 2 and "Output exists" in err and snapshot(tmp_path) == before


def test_a_sound_model_is_not_copied(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "check", tiny_model("t2v"), "--repair", tmp_path / "copy")
    assert code == 0 and "Nothing that --repair can mend" in err and not (tmp_path / "copy").exists()


def test_what_cannot_be_mended_keeps_its_code(capsys: pytest.CaptureFixture[str], tmp_path: Path, broken: Path) -> None:
    edit(broken / "vae/config.json", _class_name="Evil")
    code, out, err = run(capsys, "check", broken, "--repair", tmp_path / "copy", "--json")
    assert code == 4 and json.loads(out)["repaired"] is None and "not written" in err
    assert not (tmp_path / "copy").exists()
