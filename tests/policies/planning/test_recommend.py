"""A plan from a registry's figures alone."""

from __future__ import annotations

import pytest

from wan_compat.policies.architecture import ModelRequirements
from wan_compat.policies.planning.contract import SystemResources, machine_of, resources_of
from wan_compat.policies.planning.recommend import recommend

NEEDS = ModelRequirements(min_vram_mb=13_000, recommended_vram_mb=35_000, min_ram_mb=40_000)


def resources(vram_mb, ram_mb=100_000, capability="8.9"):
    gpus = ["card"] if vram_mb else []
    return SystemResources(gpus, vram_mb, vram_mb, ram_mb, ram_mb, compute_capability=capability, cpu_count=8)


@pytest.mark.parametrize(
    ("vram_mb", "offload"), [(80_000, "none"), (48_000, "model"), (16_000, "group"), (8_000, "full"), (0, "none")]
)
def test_the_cheapest_plan_whose_figures_fit(vram_mb, offload):
    plan = recommend(NEEDS, resources(vram_mb))
    assert plan.offload_strategy == plan.spec.offload == offload
    assert plan.device == ("cuda" if vram_mb >= 13_000 else "cpu")
    assert plan.enable_cpu_offload == (offload in ("model", "group"))


def test_memory_that_does_not_hold_the_weights_leaves_them_on_disk():
    plan = recommend(NEEDS, resources(16_000, ram_mb=8_000))
    assert plan.spec.group is not None and plan.spec.group.disk
    assert recommend(NEEDS, resources(0, ram_mb=8_000)).spec.group.disk


def test_a_model_of_unknown_needs_is_moved_and_tiled():
    plan = recommend(ModelRequirements(), resources(16_000))
    assert plan.spec.offload == "model" and plan.spec.tiling is not None


@pytest.mark.parametrize("vram_mb", [80_000, 48_000, 16_000, 8_000, 0])
def test_frames_leave_one_latent_frame_at_a_time_with_tiles_and_without(vram_mb):
    for plan in (recommend(NEEDS, resources(vram_mb)), recommend(ModelRequirements(), resources(vram_mb))):
        assert plan.streaming and plan.chunk_frames and plan.max_chunk_size == 4


def test_resources_and_machine_are_two_words_for_one_thing():
    given = resources(16_000)
    assert resources_of(machine_of(given)).vram_free_mb == 16_000
    assert resources_of(machine_of(given)).compute_capability == "8.9"
