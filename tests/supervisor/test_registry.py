"""The user's registry: nothing half written, nothing trusted that others could have written, floors hold on disk too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.assets.fake_packages import write_diffusers
from wan_compat.policies.architecture import PipelineRequirements
from wan_compat.policies.registry_document import RegistryDocument, parse_document
from wan_compat.protocol.errors import InvalidRequest, RefusedByPolicy, StateCorrupt, StateUnsafe
from wan_compat.supervisor.registry import CompatibilityRegistry, shipped_registry

A14B = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
WRITER = Path(__file__).parents[1] / "programs" / "registry_writer.py"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "registry.json"


def write(path: Path, document: dict[str, Any] | bytes) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    path.chmod(0o600)


def requirements(**fields: Any) -> PipelineRequirements:
    return PipelineRequirements(
        **{
            "required_args": ["prompt"],
            "optional_args": ["seed"],
            "dependencies": ["diffusers>=0.50"],
            "min_vram_mb": 9000,
            "supports_cpu_offload": True,
            **fields,
        }
    )


# -- reading --------------------------------------------------------------------------------------------------------------


def test_without_an_overlay_the_package_s_copy_is_known_and_nothing_is_made(path: Path) -> None:
    registry = CompatibilityRegistry(path)
    assert registry.document == shipped_registry()
    entry = registry.registry[A14B]
    assert (entry["pipeline_class"], entry["min_diffusers_version"]) == ("WanPipeline", "0.35.0")
    assert not path.parent.exists()
    assert (registry.problems, registry.adjustments) == ((), ())


def test_the_default_path_is_in_the_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert CompatibilityRegistry().registry_path == tmp_path / "wan-compat" / "compatibility_registry.json"
    assert CompatibilityRegistry("compatibility_registry.json").registry_path.parent == tmp_path / "wan-compat"


def test_a_model_s_requirements_are_known_by_any_of_its_names(path: Path) -> None:
    registry = CompatibilityRegistry(path)
    found = registry.get_pipeline_requirements(A14B)
    assert found is not None and found == registry.get_pipeline_requirements("wan2.2-t2v-a14b")
    assert found.required_args == ["prompt"] and "guidance_scale_2" in found.optional_args
    assert registry.get_pipeline_requirements("no/such-model") is None


def test_a_lowered_floor_in_the_overlay_is_raised_when_read(path: Path) -> None:
    write(path, {"schema_version": 1, "models": {A14B: {"required_dependencies": ["diffusers>=0.1", "evil>=1"]}}})
    registry = CompatibilityRegistry(path)
    found = registry.get_pipeline_requirements(A14B)
    assert found is not None and found.dependencies == list(shipped_registry().models[A14B].required_dependencies)
    assert {item.kind for item in registry.adjustments} == {"raised", "refused"}


@pytest.mark.parametrize("raw", [b"", b"{", b'{"schema_version": 9}', b'{"schema_version": 1, "x": 1}', b"\0" * 100])
def test_a_damaged_overlay_is_not_used_and_not_overwritten(path: Path, raw: bytes) -> None:
    write(path, raw)
    registry = CompatibilityRegistry(path)
    assert registry.document == shipped_registry()
    (problem,) = registry.problems
    assert isinstance(problem, StateCorrupt) and problem.hint and f"mv {path}" in problem.hint
    with pytest.raises(StateCorrupt):
        registry.register_model_compatibility("a/b", requirements())
    assert path.read_bytes() == raw


@pytest.mark.parametrize("where", ["file", "folder"])
def test_an_overlay_that_others_can_write_is_not_used(path: Path, where: str) -> None:
    write(path, {"schema_version": 1, "models": {"evil/model": {}}})
    (path if where == "file" else path.parent).chmod(0o777)
    registry = CompatibilityRegistry(path)
    assert registry.entry("evil/model") is None
    (problem,) = registry.problems
    assert isinstance(problem, StateUnsafe) and problem.hint and "chmod go-w" in problem.hint
    with pytest.raises(StateUnsafe):
        registry.register_model_compatibility("a/b", requirements())


def test_an_overlay_that_is_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    write(path, {"schema_version": 1})
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    assert isinstance(CompatibilityRegistry(path).problems[0], StateUnsafe)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_an_overlay_of_another_user_is_not_used(path: Path) -> None:
    write(path, {"schema_version": 1, "models": {"evil/model": {}}})
    os.chown(path, 12345, 12345)
    registry = CompatibilityRegistry(path)
    assert registry.entry("evil/model") is None and isinstance(registry.problems[0], StateUnsafe)


def test_a_folder_that_the_user_named_keeps_its_mode(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    path.parent.chmod(0o755)
    CompatibilityRegistry(path).register_model_compatibility("a/b", requirements())
    assert path.parent.stat().st_mode & 0o777 == 0o755


# -- writing --------------------------------------------------------------------------------------------------------------


def test_what_was_registered_is_known_to_the_next_one(path: Path) -> None:
    CompatibilityRegistry(path).register_model_compatibility("me/model", requirements())
    found = CompatibilityRegistry(path).get_pipeline_requirements("me/model")
    assert found == requirements()
    assert path.stat().st_mode & 0o777 == 0o600


def test_registering_a_known_model_cannot_lower_it(path: Path) -> None:
    registry = CompatibilityRegistry(path)
    registry.update_registry({"wan2.2-t2v-a14b": requirements(dependencies=["torch>=1.0", "wan-pipeline"])})
    for seen in (registry, CompatibilityRegistry(path)):
        found = seen.get_pipeline_requirements(A14B)
        assert found is not None and "torch>=2.10" in found.dependencies
        assert not any("wan-pipeline" in text for text in found.dependencies)
        assert found.min_vram_mb == 9000
        assert seen.registry[A14B]["pipeline_class"] == "WanPipeline"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("../../etc/passwd", {}),
        ("a/b/c", {}),
        ("a b", {}),
        ("ok/ok", {"min_vram_mb": -5}),
        ("ok/ok", {"required_args": ["not an argument"]}),
        ("ok/ok", {"dependencies": ["x" * 500]}),
        ("ok/ok", {"min_vram_mb": "many"}),
    ],
)
def test_what_no_registry_has_is_refused_and_nothing_is_written(path: Path, name: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        CompatibilityRegistry(path).update_registry({"fine/model": requirements(), name: requirements(**fields)})
    assert not path.exists()


def test_a_dry_run_tells_the_changes_and_makes_nothing(path: Path) -> None:
    update = parse_document(b'{"schema_version": 1, "models": {"a/b": {"variant": "wan2.1-t2v-14b"}}}', "update")
    done = CompatibilityRegistry(path).apply(update, dry_run=True)
    assert [(change.kind, change.name) for change in done.changes] == [("added", "a/b")]
    assert not done.written and not path.parent.exists()


def test_an_update_that_changes_nothing_writes_nothing(path: Path) -> None:
    registry = CompatibilityRegistry(path)
    assert not registry.apply(shipped_registry()).written
    assert not path.exists()
    registry.register_model_compatibility("a/b", requirements())
    before = path.stat().st_ino
    registry.register_model_compatibility("a/b", requirements())
    assert path.stat().st_ino == before


def test_an_older_signed_update_is_not_taken_again(path: Path) -> None:
    registry = CompatibilityRegistry(path)
    registry.apply(RegistryDocument(serial=7))
    with pytest.raises(RefusedByPolicy, match="serial 6"):
        registry.apply(RegistryDocument(serial=6))
    registry.apply(RegistryDocument(serial=7))


def test_a_full_disk_leaves_the_old_overlay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CompatibilityRegistry(path)
    registry.register_model_compatibility("a/b", requirements())
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StateUnsafe, match="No space left"):
            registry.register_model_compatibility("c/d", requirements())
    assert path.read_bytes() == before
    assert registry.entry("c/d") is None


def start_writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    writer = subprocess.Popen([sys.executable, WRITER, path, name, str(count)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    return writer


def test_processes_that_write_at_once_lose_nothing(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    writers = [start_writer(path, name, 15) for name in ("one", "two")]
    for writer in writers:
        with writer:
            assert writer.wait(60) == 0
    models = CompatibilityRegistry(path).document.models
    assert {f"{name}/m{number}" for name in ("one", "two") for number in range(15)} <= set(models)


def test_a_writer_that_is_killed_leaves_the_old_or_the_new(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    for delay_ms in (1, 7, 19, 31):
        with start_writer(path, "killed", 1_000_000) as writer:
            time.sleep(delay_ms / 1000)
            writer.send_signal(signal.SIGKILL)
            writer.wait(30)
        registry = CompatibilityRegistry(path)
        assert registry.problems == ()
        if path.exists():
            parse_document(path.read_bytes(), "whole")
        registry.apply(RegistryDocument(serial=delay_ms))  # the dead one's lock is free
    assert path.exists()


# -- judging --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "model", "pipeline", "says"),
    [
        ("0.33.1", A14B, "WanPipeline", "needs diffusers >= 0.35.0, you have 0.33.1: pip install --upgrade"),
        (
            "0.33.1",
            "wan2.1-t2v-1.3b",
            "WanPipeline",
            "needs diffusers >= 0.38.0 for its security fixes, you have 0.33.1",
        ),
        (None, A14B, "WanPipeline", None),
        (None, "wan2.2-ti2v-5b", "WanImageToVideoPipeline", None),
        (None, A14B, "StableDiffusionPipeline", f"{A14B} needs WanPipeline, not StableDiffusionPipeline"),
        (None, "wan2.2-s2v-14b", "WanPipeline", "no pipeline of diffusers runs Wan-AI/Wan2.2-S2V-14B"),
        (None, "Wan-AI/Wan2.2-T2V-A14B", "WanPipeline", f"use {A14B}: the same model in diffusers layout"),
        (None, "no/such", "WanPipeline", "not in the registry"),
    ],
)
def test_model_and_pipeline_are_judged_with_a_reason(
    path: Path, tmp_path: Path, release: str | None, model: str, pipeline: str, says: str | None
) -> None:
    site = None
    if release is not None:
        write_diffusers(tmp_path / "site", release)
        site = str(tmp_path / "site")
    check = CompatibilityRegistry(path, site_packages=site).validate_model_pipeline_compatibility(model, pipeline)
    assert check.is_compatible == (says is None)
    assert check.available_pipeline == pipeline
    if says is not None:
        assert says in " ".join(check.reasons)


def test_no_model_code_is_imported_on_the_way(path: Path) -> None:
    code = (
        "import sys\n"
        "from wan_compat.supervisor.registry import CompatibilityRegistry\n"
        f"registry = CompatibilityRegistry({str(path)!r})\n"
        f"assert registry.validate_model_pipeline_compatibility({A14B!r}, 'WanPipeline').is_compatible\n"
        "heavy = {name.partition('.')[0] for name in sys.modules} & {'torch', 'diffusers', 'transformers', 'numpy'}\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_model_that_a_program_registered_is_not_said_to_be_without_pipeline(tmp_path: Path) -> None:
    registry = CompatibilityRegistry(tmp_path / "overlay.json")
    registry.register_model_compatibility("me/model", requirements())
    check = registry.validate_model_pipeline_compatibility("me/model", "WanPipeline")
    assert not check.is_compatible
    assert "does not say which pipeline runs me/model" in " ".join(check.reasons)
