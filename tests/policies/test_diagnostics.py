"""The diagnostics document and its summary, from values alone."""

from __future__ import annotations

import json
import re

import pytest

from wan_compat.policies.diagnostics import DIAGNOSTIC_TEMPLATE, ModelDiagnostics, file_name, from_template, summarize


def diagnostics(**changes: object) -> ModelDiagnostics:
    values: dict[str, object] = {
        "model_path": "~/m",
        "model_name": "org/m",
        "timestamp": "2026-11-23T00:00:00+00:00",
        "system_info": from_template("system_info", {"python_version": "3.11.7"}),
        "model_analysis": from_template(
            "model_analysis", {"architecture_detected": "wan_t2v", "variant": "wan2.1-t2v-1.3b"}
        ),
        "pipeline_attempt": from_template("pipeline_attempt", {"attempted_pipeline": "WanPipeline"}),
        **changes,
    }
    return ModelDiagnostics(**values)  # type: ignore[arg-type]


def test_the_template_has_the_keys_that_every_report_has() -> None:
    assert {name: set(keys) for name, keys in DIAGNOSTIC_TEMPLATE.items()} == {
        "system_info": {"gpu", "vram_total", "vram_available", "python_version", "torch_version", "diffusers_version"},
        "model_analysis": {
            "architecture_detected", "has_model_index", "model_index_valid", "components_found", "vae_dimensions", "custom_attributes",
        },
        "pipeline_attempt": {
            "attempted_pipeline", "pipeline_available", "trust_remote_code", "remote_code_fetched", "load_success", "error_type",
        },
    }  # fmt: skip


def test_a_section_never_shares_its_values_with_the_template() -> None:
    from_template("model_analysis", {})["components_found"].append("vae")
    assert DIAGNOSTIC_TEMPLATE["model_analysis"]["components_found"] == []


def test_the_document_has_a_version_and_no_character_that_a_terminal_obeys() -> None:
    text = diagnostics(model_name="b\u202ead\x1b[2J").to_json()
    assert json.loads(text)["schema_version"] == 1
    assert text.isascii() and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "Wan-AI_Wan2.2-T2V-A14B-Diffusers_compat.json"),
        ("../../etc/passwd", "etc_passwd_compat.json"),
        (".hidden", "hidden_compat.json"),
        ("", "model_compat.json"),
        ("\x00\n…/", "model_compat.json"),
        ("x" * 500, "x" * 120 + "_compat.json"),
    ],
)
def test_the_files_name_is_never_a_path_hidden_or_too_long(name: str, expected: str) -> None:
    assert file_name(name) == expected


def test_the_summary_says_what_it_is_what_is_wrong_and_what_to_do() -> None:
    text = summarize(diagnostics(errors=["no vae"], warnings=["tight"], recommendations=["download it again"]))
    for part in (
        "org/m",
        "wan_t2v (wan2.1-t2v-1.3b), WanPipeline",
        "no GPU",
        "torch missing",
        "1. no vae",
        "1. tight",
        "1. download",
    ):
        assert part in text, text
    assert "Nothing stands in the way" in summarize(diagnostics())


def test_the_summary_tells_an_attempt_that_failed() -> None:
    attempt = from_template("pipeline_attempt", {"load_success": False, "error_type": "model_corrupt"})
    assert "failed (model_corrupt)" in summarize(diagnostics(pipeline_attempt=attempt))
