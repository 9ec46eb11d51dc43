"""DiagnosticCollector on real folders: complete, redacted, whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.assets.corpus.repositories import BUILDERS
from tests.assets.tiny_wan import tiny_model
from wan_compat.policies.diagnostics import DIAGNOSTIC_TEMPLATE
from wan_compat.protocol.errors import MemoryExceeded, ModelNotFound, OutputNotWritable
from wan_compat.supervisor.diagnostics import DiagnosticCollector, diagnose_failure

TOKEN = "hf_" + "Zz9" * 12


def test_making_a_collector_makes_no_folder(tmp_path: Path) -> None:
    collector = DiagnosticCollector(str(tmp_path / "reports"))
    assert collector.diagnostics_dir == tmp_path / "reports"
    collector.collect_model_diagnostics(str(tiny_model("t2v")))
    assert not (tmp_path / "reports").exists()


def test_the_report_has_every_key_and_is_written_under_the_models_name(tmp_path: Path) -> None:
    collector = DiagnosticCollector(str(tmp_path / "a" / "b"))
    found = collector.collect_model_diagnostics(str(tiny_model("t2v")), None)
    path = collector.write_compatibility_report("org/name", found)
    assert path == str(tmp_path / "a" / "b" / "org_name_compat.json")
    document = json.loads(Path(path).read_text())
    for section, keys in DIAGNOSTIC_TEMPLATE.items():
        assert set(keys) <= set(document[section]), section
    assert document["model_analysis"]["architecture_detected"] == "wan_t2v"
    assert document["model_analysis"]["has_model_index"] and document["model_analysis"]["model_index_valid"]
    assert document["pipeline_attempt"]["attempted_pipeline"] == "WanPipeline"
    assert document["pipeline_attempt"]["pipeline_available"] is True
    assert document["pipeline_attempt"]["load_success"] is None
    assert document["timestamp"].endswith("+00:00") and document["errors"] == []
    assert os.listdir(tmp_path / "a" / "b") == ["org_name_compat.json"]


def test_writing_again_replaces_the_report(tmp_path: Path) -> None:
    collector = DiagnosticCollector(tmp_path)
    found = collector.collect_model_diagnostics(str(tiny_model("t2v")))
    first = collector.write_compatibility_report("m", found)
    found.warnings.append("second")
    assert collector.write_compatibility_report("m", found) == first
    assert "second" in Path(first).read_text()


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    collector = DiagnosticCollector(tmp_path / "file" / "reports")
    found = collector.collect_model_diagnostics(str(tiny_model("t2v")))
    with pytest.raises(OutputNotWritable, match="cannot be made") as error:
        collector.write_compatibility_report("m", found)
    assert error.value.fixes


def test_a_failed_attempt_stands_first_with_its_fixes(tmp_path: Path) -> None:
    error = MemoryExceeded("the worker used 9 GB of 8", hint="raise --memory-limit")
    found = DiagnosticCollector(tmp_path).collect_model_diagnostics(str(tiny_model("t2v")), error)
    assert found.errors[0] == "the worker used 9 GB of 8" and found.recommendations[0] == "raise --memory-limit"
    assert found.pipeline_attempt["load_success"] is False
    assert found.pipeline_attempt["error_type"] == "memory_exceeded"


def test_a_model_without_a_pipeline_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    model = BUILDERS["Wan-AI/Wan2.2-S2V-14B"](folder)
    found = DiagnosticCollector(tmp_path).collect_model_diagnostics(str(model))
    assert found.model_analysis["architecture_detected"] == "wan_s2v"
    assert found.pipeline_attempt["pipeline_available"] is False and found.errors and found.recommendations


def test_homes_tokens_and_prompts_are_in_no_part_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "people" / "ann"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    model = home / "my-model"
    model.mkdir()
    (model / "model_index.json").write_text(
        json.dumps(
            {"_class_name": "WanPipeline", "note": f"token={TOKEN}", "prompt": "a secret garden", "at": str(home)}
        )
    )
    error = RuntimeError(f"could not read {home}/x with Bearer {TOKEN}")
    collector = DiagnosticCollector(tmp_path / "reports")
    found = collector.collect_model_diagnostics(str(model), error)
    path = collector.write_compatibility_report(found.model_name, found)
    for text in (Path(path).read_text(), collector.generate_diagnostic_summary(found), found.to_json()):
        assert TOKEN not in text and str(home) not in text and "garden" not in text, text
    assert found.model_path == "~/my-model"


def test_nothing_is_written_into_the_models_folder_and_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        DiagnosticCollector(tmp_path).collect_model_diagnostics(str(tmp_path / "absent"))


def test_a_report_about_a_failure_never_hides_the_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = MemoryExceeded("too much")
    assert diagnose_failure(str(tmp_path / "absent"), error, tmp_path) is None
    assert diagnose_failure(str(tiny_model("t2v")), error, tmp_path / "file") is None
    written = diagnose_failure(str(tiny_model("t2v")), error, tmp_path / "reports")
    assert written is not None and "too much" in Path(written).read_text()
