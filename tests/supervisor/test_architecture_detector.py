"""The detector as embedding programs use it: any path, and the same requirements that `check` tells."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.assets.corpus.repositories import BUILDERS
from wan_compat.protocol.errors import ModelNotFound
from wan_compat.supervisor import ArchitectureDetector
from wan_compat.supervisor.check import check_model


@pytest.mark.parametrize("form", [str, Path])
def test_a_model_is_detected_with_what_it_needs(tmp_path: Path, form: type) -> None:
    model = BUILDERS["Wan-AI/Wan2.1-T2V-1.3B-Diffusers"](tmp_path)
    found = ArchitectureDetector().detect_model_architecture(form(model))
    assert (found.architecture_type, found.version, found.capabilities) == ("wan_t2v", "2.1", ["text_to_video"])
    assert found.components["transformer"].class_name == "WanTransformer3DModel"
    needs = found.requirements
    assert min(needs.min_vram_mb, needs.recommended_vram_mb, needs.min_ram_mb, needs.disk_mb) > 0
    assert needs.min_diffusers_version == "0.33.0"
    report = check_model(form(model))
    assert report.to_json()["requirements"] == dataclasses.asdict(needs)
    assert report.model == str(model)


def test_nothing_at_all_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        ArchitectureDetector().detect_model_architecture(tmp_path / "none")
