"""What the registry learns from the installed diffusers and from the models in the local cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.assets.corpus.files import as_cache_snapshot
from tests.assets.corpus.repositories import BUILDERS
from tests.assets.fake_packages import write_diffusers
from wan_compat.supervisor.registry import CompatibilityRegistry, shipped_registry
from wan_compat.supervisor.registry_update import from_cache, from_installed

COMMIT, LATER = "a" * 40, "b" * 40


def cached(tmp_path: Path, built: str, name: str, commit: str = COMMIT) -> Path:
    """Put a repository of the corpus into a cache under another name; returns the cache."""
    folder = tmp_path / "built"
    folder.mkdir()
    BUILDERS[built](folder)
    as_cache_snapshot(folder, tmp_path / "hub", name, commit)
    return tmp_path / "hub"


# -- the installed diffusers ------------------------------------------------------------------------------------------------


def test_the_release_that_the_package_was_made_from_says_nothing_new(tmp_path: Path) -> None:
    source = from_installed()
    assert source.document is not None
    if source.document.diffusers_version == shipped_registry().diffusers_version:
        assert CompatibilityRegistry(tmp_path / "r.json").apply(source.document).changes == ()
    assert set(source.document.pipelines) >= set(shipped_registry().pipelines)


def test_an_older_release_changes_arguments_and_no_minimum(tmp_path: Path) -> None:
    write_diffusers(tmp_path, "0.33.1")
    source = from_installed(str(tmp_path))
    assert source.document is not None and source.status == "used"
    registry = CompatibilityRegistry(tmp_path / "r.json", site_packages=str(tmp_path))
    done = registry.apply(source.document)
    assert {change.name for change in done.changes} == {"WanPipeline", "WanImageToVideoPipeline"}
    pipeline = CompatibilityRegistry(tmp_path / "r.json").document.pipelines["WanPipeline"]
    assert "guidance_scale_2" not in pipeline.optional_args
    assert pipeline.min_diffusers_version == "0.33.0"


def test_a_class_that_the_package_does_not_know_is_recorded_with_its_version(tmp_path: Path) -> None:
    root = write_diffusers(tmp_path, "0.35.0")
    for table in (root / "__init__.py", root / "pipelines" / "__init__.py", root / "pipelines" / "wan" / "__init__.py"):
        table.write_text(table.read_text().replace("WanVACEPipeline", "WanSpeechToVideoPipeline"))
    vace = root / "pipelines" / "wan" / "pipeline_wan_vace.py"
    vace.write_text(vace.read_text().replace("WanVACEPipeline", "WanSpeechToVideoPipeline"))
    source = from_installed(str(tmp_path))
    assert source.document is not None
    assert source.document.pipelines["WanSpeechToVideoPipeline"].observed_in == "0.35.0"
    registry = CompatibilityRegistry(tmp_path / "r.json", site_packages=str(tmp_path))
    done = registry.apply(source.document)
    assert ("added", "WanSpeechToVideoPipeline") in {(change.kind, change.name) for change in done.changes}
    assert done.adjustments == ()
    assert registry.document.models["Wan-AI/Wan2.2-S2V-14B"].pipeline_class is None, "a class is no promise for a model"


def test_without_diffusers_the_source_is_absent(tmp_path: Path) -> None:
    assert from_installed(str(tmp_path)).status == "absent"


# -- the local cache ----------------------------------------------------------------------------------------------------------


def test_a_known_repository_is_recorded_with_its_revisions(tmp_path: Path) -> None:
    name = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
    source = from_cache(str(cached(tmp_path, name, name)))
    assert source.document is not None
    assert source.document.models[name].model_dump(exclude_unset=True) == {"revisions": (COMMIT,)}


@pytest.mark.parametrize(
    ("built", "variant", "pipeline"),
    [
        ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "wan2.2-ti2v-5b", "WanPipeline"),
        ("Wan-AI/Wan2.1-VACE-1.3B-diffusers", "wan2.1-vace-1.3b", "WanVACEPipeline"),
        ("Wan-AI/Wan2.1-T2V-1.3B", "wan2.1-t2v-1.3b", None),
    ],
)
def test_an_unknown_repository_is_recorded_as_what_its_files_are(
    tmp_path: Path, built: str, variant: str, pipeline: str | None
) -> None:
    source = from_cache(str(cached(tmp_path, built, "me/my-tune")))
    assert source.document is not None
    registry = CompatibilityRegistry(tmp_path / "r.json")
    registry.apply(source.document)
    found = registry.entry("me/my-tune")
    assert found is not None
    assert (found[1].variant, found[1].pipeline_class, found[1].revisions) == (variant, pipeline, (COMMIT,))
    if pipeline is None:
        assert found[1].alternative is not None, "an original layout: the -Diffusers repository instead"


def test_other_families_broken_and_odd_folders_are_passed_by(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    for name in ("models--a", "models--..--..--etc", "models--x--y", "datasets--a--b", "models--s--p"):
        (hub / name / "snapshots" / COMMIT).mkdir(parents=True)
    (hub / "models--x--y" / "snapshots" / COMMIT / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (hub / "models--s--p" / "snapshots" / "main").mkdir()
    (hub / "models--f--f").write_text("a file")
    source = from_cache(str(hub))
    assert source.document is not None and source.document.models == {}
    assert source.status == "used"


def test_no_cache_is_absent(tmp_path: Path) -> None:
    assert from_cache(str(tmp_path / "none")).status == "absent"
