"""`wan-compat diagnose`, and the report that a failed generate names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.cli.conftest import RunCli
from wan_compat.supervisor.cli.main import main


def test_the_summary_is_printed_and_the_report_lies_where_it_says(cli: RunCli, tmp_path: Path) -> None:
    ended = cli("diagnose", tiny_model("t2v"))
    assert ended.code == 0 and ended.err == "", ended
    report = Path(ended.out.rsplit("Report:", 1)[1].strip())
    assert report.parent == tmp_path / "cwd" / "diagnostics" and json.loads(report.read_text())["schema_version"] == 1
    assert "Detected:   wan_t2v" in ended.out


def test_with_json_stdout_has_the_report_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["diagnose", str(tiny_model("t2v")), "--output", str(tmp_path / "r"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    written = json.loads(Path(document.pop("report")).read_text())
    assert written == document


def test_a_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["diagnose", str(tiny_model("t2v")), "--output", str(tmp_path / "r"), "--dry-run"]) == 0
    assert "Nothing was written" in capsys.readouterr().out and not (tmp_path / "r").exists()


def test_a_broken_model_ends_with_its_code_and_still_has_a_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model_index.json").write_text("{")
    assert main(["diagnose", str(tmp_path / "m"), "--output", str(tmp_path / "r")]) == 4
    assert "Errors:" in capsys.readouterr().out and (tmp_path / "r" / "m_compat.json").exists()
    assert main(["diagnose", str(tmp_path / "absent"), "--output", str(tmp_path / "x")]) == 4
    assert not (tmp_path / "x").exists()


def test_a_generate_that_fails_names_its_report(cli: RunCli, tmp_path: Path) -> None:
    model = tmp_path / "broken"
    model.mkdir()
    (model / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    ended = cli("generate", model, "--prompt", "my secret garden", "--json")
    report = Path(ended.document["error"]["diagnostic"])
    assert ended.code == 4 and report.parent == tmp_path / "state" / "wan-compat" / "diagnostics", ended
    assert "garden" not in report.read_text()
    ended = cli("generate", model, "--prompt", "x")
    assert f"Diagnostic: {report}" in ended.err.replace("\n", ""), ended


def test_with_parts_each_is_loaded_by_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["diagnose", str(tiny_model("t2v")), "--parts", "--output", str(tmp_path / "r")]) == 0
    out = capsys.readouterr().out
    assert "Parts, each loaded by itself:" in out and "transformer: usable" in out
    assert "Models that could be used instead" not in out  # it runs here
