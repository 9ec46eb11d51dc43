"""What to do about a model that does not run: by the kind of failure, and what else fits."""

from __future__ import annotations

import pytest

from wan_compat.policies.fallback import AlternativeModel, alternatives, strategy_for
from wan_compat.policies.registry_document import RegistryEntry, VramRequirements
from wan_compat.protocol import errors

STRATEGIES = {
    "component_isolation": (
        errors.ModelCorrupt("vae: cut off"),
        errors.UnusableFrames("NaN"),
        errors.GenerationFailed("?"),
        ValueError("?"),
    ),
    "alternative_model": (
        errors.ModelNotCompatible("no pipeline"),
        errors.RemoteCodeRefused("code"),
        errors.PickleRefused("pickle"),
    ),
    "reduced_functionality": (
        errors.MemoryExceeded("24 GB"),
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        errors.EncodingFailed("x264"),
        errors.JobTimeout("60 s"),
    ),
}


@pytest.mark.parametrize(
    ("expected", "error"),
    [(name, error) for name, found in STRATEGIES.items() for error in found],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_the_kind_of_failure_chooses_the_strategy(expected, error):
    strategy = strategy_for("WanPipeline", error)
    assert strategy.strategy_type == expected
    assert "WanPipeline" in strategy.description
    assert strategy.implementation_steps and strategy.expected_limitations
    assert not any("remote-code" in step or "--mode trust" in step for step in strategy.implementation_steps)


def entry(variant: str, pipeline: str | None, min_mb: int, weights_gb: int) -> RegistryEntry:
    return RegistryEntry(
        pipeline_class=pipeline,
        variant=variant,
        vram_requirements=VramRequirements(min_mb=min_mb, plan="group"),
        bytes={"transformer": weights_gb * 10**9},
    )


MODELS = {
    "a/Large": entry("wan2.1-t2v-14b", "WanPipeline", 9000, 40),
    "a/Small": entry("wan2.1-t2v-1.3b", "WanPipeline", 2600, 15),
    "a/Pictures": entry("wan2.1-i2v-14b-480p", "WanImageToVideoPipeline", 9500, 45),
    "a/Nowhere": entry("wan2.1-t2v-14b", None, 100, 1),
}


def named(found: tuple[AlternativeModel, ...]) -> list[str]:
    return [model.model_name for model in found]


def test_alternatives_do_the_same_and_fit_the_largest_first():
    assert named(alternatives("wan_t2v", MODELS, vram_mb=24_000, ram_mb=64_000)) == ["a/Large", "a/Small"]
    assert named(alternatives("wan_t2v", MODELS, vram_mb=8_000, ram_mb=64_000)) == ["a/Small"]
    assert named(alternatives("text_to_video", MODELS, vram_mb=0, ram_mb=32_000)) == ["a/Small"]
    assert named(alternatives("wan_i2v", MODELS, vram_mb=24_000, ram_mb=64_000)) == ["a/Pictures"]
    assert alternatives("wan_t2v", MODELS, vram_mb=1_000, ram_mb=64_000) == ()


def test_a_model_is_no_alternative_to_itself():
    assert named(alternatives("wan2.1-t2v-1.3b", MODELS, vram_mb=24_000, ram_mb=0)) == ["a/Large"]


def test_an_alternative_names_memory_and_pipeline():
    (found,) = alternatives("wan_t2v", MODELS, vram_mb=8_000, ram_mb=0)
    assert found.min_vram_mb == 2600
    assert "WanPipeline" in found.reason and "2600 MB" in found.reason
