"""For each card and each official model: a plan that fits, never a slower one with more memory, and why."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from wan_compat.policies.planning.candidates import Wishes, candidates
from wan_compat.policies.planning.choice import choose, require_fit
from wan_compat.policies.planning.contract import plan_of
from wan_compat.policies.planning.courses import Job
from wan_compat.policies.planning.machine import GpuFacts, MachineFacts
from wan_compat.protocol.errors import InvalidRequest, MemoryExceeded
from wan_compat.protocol.sources import Quantization

GB = 10**9
SMALL = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
LARGE = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
TWO = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
FIVE = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
PICTURE = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
CONTROL = "Wan-AI/Wan2.1-VACE-14B-diffusers"

P480, P720, P704 = Job(480, 832, 81), Job(720, 1280, 81), Job(704, 1280, 121)
# Of the way that is taken on a card of so many GB with 100 GB of main memory.
CARDS = (4, 8, 12, 16, 24, 48, 80)
WAYS = {
    (SMALL, P480): ("disk-tiled-whole", "group-tiled-whole", "group", "model", "model", "none", "none"),
    (LARGE, P480): (None, "group-tiled-whole", "group", "group", "group", "model", "none"),
    (LARGE, P720): (None, None, "leaf-tiled-whole", "group-tiled-whole", "group", "model", "none"),
    (TWO, P720): (None, None, "leaf-tiled-whole", "group-tiled-whole", "group", "model", "model"),
    (FIVE, P704): (None, None, "group-tiled-whole", "group-tiled-whole", "model-tiled", "model", "none"),
}


def machine(vram=None, ram=100, capability=(8, 9)):
    gpus = () if vram is None else (GpuFacts("card", vram * GB, vram * GB, capability),)
    return MachineFacts(ram * GB, ram * GB, ram * GB, 8, gpus)


@pytest.mark.parametrize(("case", "card"), [(case, card) for case in WAYS for card in range(len(CARDS))])
def test_each_card_gets_the_cheapest_way_that_fits(case, card, official):
    name, job = case
    choice = choose(official(name), job, machine(CARDS[card]))
    expected = WAYS[case][card]
    if expected is None:  # nothing on the GPU but single layers at a time, or not even that
        assert choice.chosen.candidate.cost.factor > 2
    else:
        assert choice.fits and choice.chosen.candidate.name == expected
        assert choice.chosen.vram_bytes <= CARDS[card] * GB


@pytest.mark.parametrize(
    ("name", "ram", "way"),
    [
        (SMALL, 64, "cpu"),
        (SMALL, 32, "cpu-text-leaves"),
        (SMALL, 16, "cpu-text-leaves-bf16"),
        (LARGE, 128, "cpu"),
        (LARGE, 64, "cpu-bf16"),
        (LARGE, 32, "disk"),
        (TWO, 128, "cpu-bf16"),
        (TWO, 16, "disk"),
    ],
)
def test_on_a_cpu_precision_goes_before_disk_and_the_text_encoder_before_precision(name, ram, way, official):
    choice = choose(official(name), P480 if name != LARGE else P720, machine(ram=ram))
    assert choice.fits
    assert choice.chosen.candidate.name.startswith(way)


@pytest.mark.parametrize("name", [SMALL, LARGE, TWO, FIVE, PICTURE, CONTROL])
def test_more_memory_never_gives_a_slower_plan(name, official):
    job = P480
    for amounts in ([machine(vram) for vram in CARDS], [machine(ram=ram) for ram in (8, 16, 24, 48, 96, 192, 384)]):
        costs = [
            choice.chosen.candidate.cost.factor
            for item in amounts
            if (choice := choose(official(name), job, item)).fits
        ]
        assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("name", [SMALL, TWO, FIVE, PICTURE, CONTROL])
def test_more_frames_and_larger_ones_never_take_less(name, official):
    sizes = [Job(height, width, frames) for height, width, frames in
             ((256, 256, 5), (256, 256, 81), (480, 832, 81), (480, 832, 121), (704, 1280, 121))]  # fmt: skip
    for before, after in itertools.pairwise(sizes):
        first = {item.candidate.name: item for item in choose(official(name), before, machine(24)).weighed}
        for item in choose(official(name), after, machine(24)).weighed:
            if item.candidate.name in first:
                assert item.vram_bytes >= first[item.candidate.name].vram_bytes
                assert item.ram_bytes >= first[item.candidate.name].ram_bytes


@pytest.mark.parametrize("name", [SMALL, TWO, FIVE, PICTURE, CONTROL])
def test_an_estimate_is_never_below_the_weights(name, official):
    weights = sum(part.bytes_in("bfloat16") for part in official(name).weights.values())
    for item in choose(official(name), P480, machine(80)).weighed:
        if item.candidate.name == "none":
            assert item.vram_bytes > weights
        if item.candidate.name == "model":
            assert item.ram_bytes > weights


@pytest.mark.parametrize(
    ("name", "job", "way", "reported_gb"),
    [
        (SMALL, P480, "model", 11),  # diffusers' documentation, 0.33
        (LARGE, P480, "model", 35),  # the same
        (LARGE, P480, "group", 13),  # the same
        (FIVE, P704, "model", 26),  # diffusers issue 12097: the VAE's decode
        (TWO, P480, "none", 80),  # Wan2.2's README
    ],
)
def test_estimates_are_near_to_what_people_report(name, job, way, reported_gb, official):
    weighed = {item.candidate.name: item for item in choose(official(name), job, machine(80)).weighed}
    assert weighed[way].vram_bytes == pytest.approx(reported_gb * GB, rel=0.25)


def test_what_does_not_fit_names_the_nearest_that_does(official):
    asked = choose(official(TWO), P720, machine(ram=6))
    assert not asked.fits and asked.nearest is not None
    assert choose(official(TWO), asked.nearest, machine(ram=6)).fits
    with pytest.raises(MemoryExceeded) as caught:
        require_fit(asked, "model")
    assert caught.value.exit_code == 6
    assert f"--num-frames {asked.nearest.num_frames}" in caught.value.fixes[0]


def test_nothing_fits_where_not_even_one_frame_does(official):
    assert choose(official(TWO), P720, machine(ram=1)).nearest is None


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_moving_models_to_a_gpu_means_nothing_without_one(offload, official):
    with pytest.raises(InvalidRequest, match="no GPU"):
        choose(official(SMALL), P480, machine(), Wishes(offload=offload))


def test_wishes_are_kept(official):
    wishes = Wishes(
        precision="float32", offload="group", vae_tiling=True, cache="first_block", attention_backend="native"
    )
    plan = plan_of(choose(official(SMALL), P480, machine(24), wishes))
    assert (plan.dtype, plan.offload_strategy, plan.changes_pixels) == ("float32", "group", ["cache"])
    assert plan.spec.tiling is not None and plan.spec.attention_backend == "native"


def test_caches_and_storage_in_8_bits_are_in_no_plan_that_nobody_asked_for(official):
    for vram in CARDS:
        for item in choose(official(TWO), P720, machine(vram)).weighed:
            assert item.candidate.setting.plan.cache is None
            assert item.candidate.setting.plan.layerwise_casting is None


@pytest.mark.parametrize(("vram", "name"), [(16, SMALL), (48, LARGE), (None, LARGE)])
def test_storage_in_8_bits_halves_transformers_and_is_named(vram, name, official):
    plain, cast = (
        choose(official(name), P480, machine(vram), Wishes(precision="bfloat16", layerwise_casting=wish))
        for wish in (None, "float8_e4m3fn")
    )
    plan = plan_of(cast)
    assert plan.changes_pixels == ["layerwise_casting"] and any("float8_e4m3fn" in why for why in plan.reasons)
    before, after = ({item.candidate.name: item for item in choice.weighed} for choice in (plain, cast))
    assert before.keys() - after.keys() == {way for way in before if way.startswith("disk")}
    way = "cpu-bf16" if vram is None else "model"
    expert = official(name).weights["transformer"].bytes_in("bfloat16")
    saved = before[way].phases["denoise_high"].weights - after[way].phases["denoise_high"].weights
    assert 0.47 * expert < saved < 0.5 * expert
    # The transformer is there in full once, when it is loaded.
    assert after[way].ram_bytes > sum(part.bytes_in("bfloat16") for part in official(name).weights.values())


def test_what_ends_on_the_gpu_has_to_be_made_in_main_memory_first(official):
    shape = official(LARGE)
    stored = {fact.dtype for fact in shape.weights["transformer"].tensors.values()}
    made = shape.weights["transformer"].made_in("bfloat16")
    assert stored == {"F32"} and made > 0.9 * shape.weights["transformer"].bytes_in("bfloat16")
    assert shape.weights["text_encoder"].made_in("bfloat16") == 0  # mapped as it lies there
    assert choose(shape, P480, machine(80, ram=64)).chosen.candidate.name == "none"
    short = {
        item.candidate.name: item.short
        for item in choose(shape, P480, machine(80, ram=24), Wishes(offload="none")).weighed
    }
    assert short["none"][0].startswith("loading takes")


def test_two_experts_in_8_bits_take_turns_in_being_loaded_in_full(official):
    def ram(**wishes):
        chosen = choose(official(TWO), P480, machine(48, ram=200), Wishes(offload="model", **wishes)).weighed
        return next(item for item in chosen if item.candidate.name == "model").phases

    before, after = ram(), ram(layerwise_casting="float8_e5m2")
    expert = official(TWO).weights["transformer"].bytes_in("bfloat16")
    assert before["text_encode"].ram_bytes - after["text_encode"].ram_bytes == pytest.approx(expert / 2, rel=0.05)
    assert before["denoise_low"].ram_bytes - after["denoise_low"].ram_bytes == pytest.approx(expert, rel=0.05)


def test_storage_in_8_bits_is_proposed_where_it_would_fit_and_never_done_by_itself(official):
    choice = choose(official(TWO), P720, machine(8, ram=64))
    assert not choice.fits and choice.fits_in_8_bits
    with pytest.raises(MemoryExceeded) as caught:
        require_fit(choice, "m")
    assert any("--layerwise-casting float8_e4m3fn, which fits" in fix for fix in caught.value.fixes)
    assert not choose(official(TWO), P720, machine(1, ram=4)).fits_in_8_bits
    assert not choose(official(SMALL), P480, machine(24)).fits_in_8_bits  # as it fits without


def test_storage_in_8_bits_is_refused_where_weights_have_to_stay_as_they_are(official):
    shape = official(SMALL)
    with pytest.raises(InvalidRequest, match="stay in their files") as caught:
        choose(shape, P480, machine(), Wishes(offload="group", layerwise_casting="float8_e4m3fn"))
    assert "--layerwise-casting" in caught.value.fixes[0]
    assert choose(shape, P480, machine(24), Wishes(offload="group", layerwise_casting="float8_e4m3fn")).fits
    folded = dataclasses.replace(
        shape.weights["transformer"], quantization=Quantization(backend="torchao", kind="int8")
    )
    shape = dataclasses.replace(shape, weights={**shape.weights, "transformer": folded})
    with pytest.raises(InvalidRequest, match="transformer is quantised"):
        choose(shape, P480, machine(24), Wishes(layerwise_casting="float8_e4m3fn"))


def test_any_wishes_end_in_a_plan_or_in_what_is_wrong_with_them(official):
    offloads = (None, "none", "model", "group", "sequential", "full")
    for here in (machine(), machine(24), machine(24, capability=(7, 5))):
        for offload, precision, tiling, on_gpu in itertools.product(
            offloads, ("auto", "float32", "bfloat16", "float16"), (None, True, False), (False, True)
        ):
            wishes = Wishes(precision=precision, offload=offload, vae_tiling=tiling, on_gpu=on_gpu)
            try:
                found = candidates(official(SMALL), P480, here, wishes)
            except InvalidRequest as error:
                assert error.fixes
                continue
            assert found and (not on_gpu or {item.setting.device for item in found} == {"cuda"})


def test_a_gpu_that_was_asked_for_is_not_replaced_by_the_processor(official):
    assert choose(official(LARGE), P720, machine(4)).chosen.candidate.setting.device == "cpu"
    choice = choose(official(LARGE), P720, machine(4), Wishes(on_gpu=True))
    with pytest.raises(MemoryExceeded, match="VRAM"):
        require_fit(choice, "m")


def test_old_gpus_get_float16(official):
    choice = choose(official(SMALL), P480, machine(24, capability=(7, 5)))
    assert choice.chosen.candidate.setting.dtype == "float16"


@pytest.mark.parametrize(
    ("pipeline", "cache", "instead"),
    [
        ("WanVideoToVideoPipeline", "taylorseer", "leave --cache out"),
        ("WanAnimatePipeline", "first_block", "pyramid_attention or taylorseer"),
        ("SkyReelsV2DiffusionForcingPipeline", "pyramid_attention", "--cache taylorseer"),
        ("HeliosPyramidPipeline", "pyramid_attention", "--cache taylorseer"),
        ("AnyFlowFARPipeline", "taylorseer", "leave --cache out"),
    ],
)
def test_caches_that_fail_in_a_pipeline_are_refused_with_those_that_do_not(pipeline, cache, instead, official):
    shape = dataclasses.replace(official(SMALL), pipeline_class=pipeline)
    with pytest.raises(InvalidRequest, match=pipeline) as caught:
        choose(shape, P480, machine(0), Wishes(cache=cache))
    assert instead in caught.value.fixes[0]


def test_attention_backends_are_refused_where_a_mask_needs_its_own(official):
    shape = dataclasses.replace(official(SMALL), pipeline_class="AnyFlowFARPipeline")
    with pytest.raises(InvalidRequest, match="flex alone"):
        choose(shape, P480, machine(0), Wishes(attention_backend="native"))
    assert choose(shape, P480, machine(0), Wishes(attention_backend="flex")).weighed


def test_lucys_vae_stays_in_float32(official):
    shape = dataclasses.replace(official(SMALL), pipeline_class="LucyEditPipeline")
    choice = choose(shape, P480, machine(0), Wishes(precision="bfloat16"))
    assert {item.candidate.setting.vae_dtype for item in choice.weighed} == {"float32"}


def test_videos_that_are_denoised_together_are_planned_for_and_others_take_no_more(official):
    together = dataclasses.replace(P480, at_once=4)
    one, four = (choose(official(SMALL), job, machine()).chosen.phases for job in (P480, together))
    assert four["denoise_high"].work > 3 * one["denoise_high"].work
    assert four["decode"].work < 1.2 * one["decode"].work  # one by one
    with pytest.raises(MemoryExceeded, match="16 videos at once of 81 frames of 832x480") as caught:
        require_fit(choose(official(SMALL), dataclasses.replace(P480, at_once=16), machine(ram=10)), "m")
    assert "leave --videos-at-once out" in caught.value.fixes[0]
