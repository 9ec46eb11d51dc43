"""Arguments are judged by the diffusers that is installed, and an old one is named with what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.assets.fake_packages import RELEASES, write_diffusers
from wan_compat.policies.architecture import ArchitectureSignature
from wan_compat.protocol.errors import ModelNotCompatible
from wan_compat.supervisor.pipeline_manager import PipelineManager
from wan_compat.supervisor.registry import CompatibilityRegistry


@pytest.fixture
def manager(tmp_path: Path) -> PipelineManager:
    return PipelineManager(CompatibilityRegistry(tmp_path / "registry.json"))


@pytest.fixture
def old(tmp_path: Path) -> Any:
    """A manager that judges by one of the fake releases."""

    def make(release: str) -> PipelineManager:
        site = tmp_path / release
        write_diffusers(site, release)
        return PipelineManager(CompatibilityRegistry(tmp_path / "registry.json"), site_packages=str(site))

    return make


def test_a_model_s_marks_choose_its_pipeline(manager: PipelineManager) -> None:
    signature = ArchitectureSignature(True, True, 3, {"transformer": "WanTransformer3DModel"}, "WanPipeline")
    assert manager.select_pipeline_class(signature) == "WanPipeline"
    signature.component_classes["transformer"] = "UNet2DConditionModel"
    with pytest.raises(ModelNotCompatible, match="neither Wan's nor a relative's"):
        manager.select_pipeline_class(signature)


def test_complete_arguments_are_valid(manager: PipelineManager) -> None:
    result = manager.validate_pipeline_args(
        "WanPipeline", {"prompt": "a fox", "num_frames": 81, "guidance_scale_2": 3.0}
    )
    assert (result.is_valid, result.errors, result.missing, result.unknown, result.warnings) == (True, [], [], [], [])


@pytest.mark.parametrize(
    ("pipeline", "given", "missing"),
    [
        ("WanPipeline", {}, ["prompt"]),
        ("WanPipeline", {"prompt": None}, ["prompt"]),
        ("WanPipeline", {"prompt_embeds": object()}, []),
        ("WanImageToVideoPipeline", {"prompt": "x"}, ["image"]),
        ("WanAnimatePipeline", {"image": 1, "prompt": "x"}, ["pose_video", "face_video"]),
        ("WanVideoToVideoPipeline", {"prompt": "x"}, ["video"]),
        ("WanVideoToVideoPipeline", {"prompt": "x", "latents": 1}, []),
        ("WanAnimate2ModularPipeline", {"prompt": "x"}, ["image", "driving_video"]),
        ("SkyReelsV2DiffusionForcingPipeline", {}, ["prompt"]),
    ],
)
def test_missing_arguments_are_named(
    manager: PipelineManager, pipeline: str, given: dict[str, Any], missing: list[str]
) -> None:
    result = manager.validate_pipeline_args(pipeline, given)
    assert (result.missing, result.is_valid) == (missing, not missing)
    assert len(result.errors) == len(missing)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"guidance_scal": 5}, "did you mean guidance_scale"),
        ({"frames": 5}, "WanPipeline takes no frames"),
        ({"transformer_2": 1}, "when it is loaded"),
        ({"a\x1b[31m": 1}, "\\x1b"),
    ],
)
def test_unknown_arguments_are_named(manager: PipelineManager, given: dict[str, Any], says: str) -> None:
    result = manager.validate_pipeline_args("WanPipeline", {"prompt": "x", **given})
    assert result.unknown == list(given) and not result.is_valid
    assert says in result.errors[0]


def test_an_argument_that_is_younger_than_the_installed_version_says_so(old: Any) -> None:
    result = old("0.33.1").validate_pipeline_args("WanPipeline", {"prompt": "x", "guidance_scale_2": 3.0})
    assert result.unknown == ["guidance_scale_2"]
    assert result.errors == [
        'guidance_scale_2 of WanPipeline needs diffusers >= 0.35.0, you have 0.33.1: pip install --upgrade "diffusers>=0.38.0"'
    ]
    assert "security" in result.warnings[0]
    assert old("0.35.0").validate_pipeline_args("WanPipeline", {"prompt": "x", "guidance_scale_2": 3.0}).is_valid


@pytest.mark.parametrize(
    ("release", "pipeline", "says"),
    [
        ("0.32.2", "WanPipeline", "WanPipeline needs diffusers >= 0.33.0, you have 0.32.2: pip install --upgrade"),
        ("0.33.1", "WanVACEPipeline", "WanVACEPipeline needs diffusers >= 0.34.0, you have 0.33.1"),
        ("0.35.0", "WanAnimatePipeline", "WanAnimatePipeline needs diffusers >= 0.36.0, you have 0.35.0"),
    ],
)
def test_a_class_that_the_installed_version_lacks_names_the_release(
    old: Any, release: str, pipeline: str, says: str
) -> None:
    result = old(release).validate_pipeline_args(pipeline, {"prompt": "x"})
    assert not result.is_valid and result.errors[0].startswith(says)


def test_without_diffusers_the_registry_s_table_judges(tmp_path: Path) -> None:
    manager = PipelineManager(CompatibilityRegistry(tmp_path / "registry.json"), site_packages=str(tmp_path / "empty"))
    assert manager.validate_pipeline_args("WanPipeline", {"prompt": "x"}).is_valid
    assert manager.validate_pipeline_args("WanPipeline", {"promt": "x"}).unknown == ["promt"]
    needs = manager.get_pipeline_requirements("WanImageToVideoPipeline")
    assert needs.required_args == ["image", "prompt"]


def test_requirements_of_a_class(manager: PipelineManager) -> None:
    needs = manager.get_pipeline_requirements("WanPipeline")
    assert needs.required_args == ["prompt"] and "num_frames" in needs.optional_args
    assert {"diffusers>=0.38.0", "transformers>=5.3.0", "torch>=2.10"} <= set(needs.dependencies)
    assert needs.min_vram_mb > 0 and needs.supports_cpu_offload
    modular = manager.get_pipeline_requirements("WanAnimate2ModularPipeline")
    assert not modular.supports_cpu_offload and "diffusers>=0.40.0" in modular.dependencies


def test_requirements_follow_the_installed_release(old: Any) -> None:
    assert "guidance_scale_2" not in old("0.33.1").get_pipeline_requirements("WanPipeline").optional_args
    assert "last_image" in old("0.35.0").get_pipeline_requirements("WanImageToVideoPipeline").optional_args


@pytest.mark.parametrize("name", ["WanPipelin", "EvilPipeline", "", "os.system", "UNet2DModel", "AutoencoderKLWan"])
def test_an_unknown_class_is_an_error_with_the_known_ones(manager: PipelineManager, name: str) -> None:
    for method in (manager.get_pipeline_requirements, lambda name: manager.validate_pipeline_args(name, {})):
        with pytest.raises(ModelNotCompatible) as caught:
            method(name)
        assert caught.value.hint and "Pipeline" in caught.value.hint


def test_a_pipeline_that_only_the_installed_diffusers_knows_is_judged_by_its_source(manager: PipelineManager) -> None:
    assert manager.validate_pipeline_args("StableDiffusionPipeline", {"prompt": "x"}).is_valid


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_gets_an_answer_for_every_known_class(old: Any, release: str) -> None:
    manager = old(release)
    for name in CompatibilityRegistry("/nonexistent/registry.json").document.pipelines:
        manager.validate_pipeline_args(name, {})
        manager.get_pipeline_requirements(name)


def test_nothing_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from wan_compat.supervisor.pipeline_manager import PipelineManager\n"
        "assert PipelineManager().validate_pipeline_args('WanPipeline', {'prompt': 'x'}).is_valid\n"
        "heavy = {name.partition('.')[0] for name in sys.modules} & {'torch', 'diffusers', 'transformers', 'numpy'}\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
