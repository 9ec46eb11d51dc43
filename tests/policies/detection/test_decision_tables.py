"""Every row of the two decision tables: configurations with and without headers, and tensor names alone."""

from __future__ import annotations

import pytest

from tests.assets.corpus.tables import recorded_config, recorded_tensors
from tests.assets.corpus.tensors import animate_2_original, fp8_scaled, lora, with_control_adapter, with_ref_conv
from tests.policies.detection.drafts import diffusers, facts, header, one_file, original
from wan_compat.policies.detection import detect
from wan_compat.policies.variants import VARIANTS

I2V = "WanImageToVideoPipeline"

# table, experts, pipeline class of the index, VAE -> variant, type, pipeline class, candidates
ROWS = {
    "2.1 T2V-1.3B": ("wan-t2v-1.3b", 1, "WanPipeline", "wan2.1-t2v-1.3b", "wan_t2v", 0),
    "2.1 T2V-14B": ("wan-t2v-14b", 1, "WanPipeline", "wan2.1-t2v-14b", "wan_t2v", 4),
    "2.2 T2V-A14B": ("wan-t2v-14b", 2, "WanPipeline", "wan2.2-t2v-a14b", "wan_t2v", 0),
    "2.1 I2V-14B": ("wan-i2v-14b", 1, I2V, "wan2.1-i2v-14b-480p", "wan_i2v", 4),
    "2.1 FLF2V-14B": ("wan-flf2v-14b", 1, I2V, "wan2.1-flf2v-14b-720p", "wan_flf2v", 0),
    "2.2 I2V-A14B": ("wan-i2v-a14b", 2, I2V, "wan2.2-i2v-a14b", "wan_i2v", 0),
    "2.2 I2V, one expert": ("wan-i2v-a14b", 1, I2V, "wan2.2-i2v-a14b", "wan_i2v", 0),
    "2.2 TI2V-5B": ("wan-ti2v-5b", 1, "WanPipeline", "wan2.2-ti2v-5b", "wan_ti2v", 2),
    "2.2 TI2V-5B saved for images": ("wan-ti2v-5b", 1, I2V, "wan2.2-ti2v-5b", "wan_ti2v", 2),
    "Lucy-Edit": ("wan-lucy-edit", 1, "LucyEditPipeline", "lucy-edit-dev", "wan_family", 0),
    "Fun-InP-5B": ("wan-fun-5b-inp", 1, I2V, "wan2.2-fun-5b-inp", "wan_i2v", 0),
    "Fun-Control": ("wan-fun-14b-control", 1, "WanPipeline", "wan2.1-fun-14b-control", "wan_family", 0),
    "VACE-1.3B": ("wan-vace-1.3b", 1, "WanVACEPipeline", "wan2.1-vace-1.3b", "wan_vace", 0),
    "VACE-14B": ("wan-vace-14b", 1, "WanVACEPipeline", "wan2.1-vace-14b", "wan_vace", 2),
    "VACE-Fun": ("wan-vace-14b", 2, "WanVACEPipeline", "wan2.2-vace-fun-14b", "wan_vace", 0),
    "Animate": ("wan-animate-14b", 1, "WanAnimatePipeline", "wan2.2-animate-14b", "wan_animate", 0),
    "SkyReels DF-1.3B": (
        "skyreels-df-1.3b", 1, "SkyReelsV2DiffusionForcingPipeline", "skyreels-v2-df-1.3b-540p", "wan_family", 0,
    ),
    "SkyReels DF-14B": (
        "skyreels-14b", 1, "SkyReelsV2DiffusionForcingPipeline", "skyreels-v2-df-14b-540p", "wan_family", 4,
    ),
    "SkyReels T2V-14B": ("skyreels-14b", 1, "SkyReelsV2Pipeline", "skyreels-v2-t2v-14b-540p", "wan_family", 4),
    "SkyReels I2V-14B": (
        "skyreels-i2v-14b", 1, "SkyReelsV2ImageToVideoPipeline", "skyreels-v2-i2v-14b-540p", "wan_family", 2,
    ),
    "SkyReels I2V-1.3B": (
        "skyreels-i2v-1.3b", 1, "SkyReelsV2ImageToVideoPipeline", "skyreels-v2-i2v-1.3b-540p", "wan_family", 0,
    ),
    "ChronoEdit's own class": ("chronoedit-14b", 1, "ChronoEditPipeline", "chronoedit-14b", "wan_family", 0),
    "AnyFlow": ("anyflow-14b", 1, "AnyFlowPipeline", "anyflow-wan2.1-t2v-14b", "wan_family", 0),
    "AnyFlow-FAR": ("anyflow-far-1.3b", 1, "AnyFlowFARPipeline", "anyflow-far-wan2.1-1.3b", "wan_family", 0),
    "Helios": ("helios-14b", 1, "HeliosPipeline", "helios-base", "wan_family", 0),
}  # fmt: skip


@pytest.mark.parametrize("weights", [True, False], ids=["with header", "configuration alone"])
@pytest.mark.parametrize("row", ROWS)
def test_diffusers_repository_is_recognised(row, weights):
    table, experts, pipeline, variant, kind, candidates = ROWS[row]
    vae = "vae-wan2.2" if "5b" in table or "lucy" in table else "vae-wan2.1"
    found = detect(diffusers(table, pipeline=pipeline, experts=experts, weights=weights, vae=vae))
    assert (found.variant, found.architecture_type) == (variant, kind)
    assert (found.is_wan, found.layout, found.vae_dimensions) == (True, "diffusers", 3)
    assert len(found.candidates) == candidates
    assert found.pipeline_class == (pipeline if VARIANTS[variant].pipeline_class else None)
    assert found.confidence == (0.99 if weights else 0.9)
    assert found.version == VARIANTS[variant].version
    assert found.evidence


@pytest.mark.parametrize(
    "named", ["SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline", "SkyReelsV2DiffusionForcingPipeline"]
)
def test_a_relative_of_a_size_of_its_own_runs_in_the_class_that_its_index_names(named):
    size = {"num_layers": 3, "num_attention_heads": 2, "ffn_dim": 64}
    found = detect(diffusers("skyreels-14b", pipeline=named, config=size, weights=False))
    assert (found.variant, found.architecture_type, found.pipeline_class) == (None, "wan_family", named)
    assert found.capabilities == next(item.capabilities for item in VARIANTS.values() if item.pipeline_class == named)


# tensors of one file, prefix -> variant, type, pipeline class that would run it
FILES = {
    "T2V-14B": (original("wan-t2v-14b"), "wan2.1-t2v-14b", "WanPipeline"),
    "T2V-1.3B": (original("wan-t2v-1.3b"), "wan2.1-t2v-1.3b", "WanPipeline"),
    "I2V-14B": (original("wan-i2v-14b"), "wan2.1-i2v-14b-480p", I2V),
    "FLF2V by img_emb.emb_pos": (original("wan-flf2v-14b"), "wan2.1-flf2v-14b-720p", I2V),
    "in 36 without img_emb": (original("wan-i2v-a14b"), "wan2.2-i2v-a14b", I2V),
    "dim 3072, 48/48": (original("wan-ti2v-5b"), "wan2.2-ti2v-5b", "WanPipeline"),
    "VACE": (original("wan-vace-14b"), "wan2.1-vace-14b", "WanVACEPipeline"),
    "Animate": (recorded_tensors("original-animate"), "wan2.2-animate-14b", "WanAnimatePipeline"),
    "S2V": (recorded_tensors("original-s2v"), "wan2.2-s2v-14b", None),
    "in 36, dim 1536": (original("wan-fun-1.3b-inp"), "wan2.1-fun-1.3b-inp", None),
    "in 48, dim 1536": (original("wan-fun-1.3b-control"), "wan2.1-fun-1.3b-control", None),
    "in 48, ref_conv": (with_ref_conv(original("wan-fun-14b-control")), "wan2.1-fun-v1.1-14b-control", None),
    "in 52, ref_conv": (with_ref_conv(original("wan-fun-a14b-control")), "wan2.2-fun-a14b-control", None),
    "in 32, control_adapter": (
        with_control_adapter(original("wan-fun-14b-camera"), 8), "wan2.1-fun-v1.1-14b-control-camera", None,
    ),
    "in 36, control_adapter": (
        with_control_adapter(original("wan-i2v-a14b"), 8), "wan2.2-fun-a14b-control-camera", None,
    ),
    "in 100, control_adapter": (
        with_control_adapter(original("wan-fun-5b-inp"), 16), "wan2.2-fun-5b-control-camera", None,
    ),
    "in 148": (original("wan-fun-5b-control"), "wan2.2-fun-5b-control", None),
    "Animate-2, official": (animate_2_original(), "wan2.2-animate-2-14b", "WanAnimate2ModularPipeline"),
    "Animate-2, diffusers": (
        recorded_tensors("wan-animate-2-14b"), "wan2.2-animate-2-14b", "WanAnimate2ModularPipeline",
    ),
    "T2V-1.3B in diffusers' names": (recorded_tensors("wan-t2v-1.3b"), "wan2.1-t2v-1.3b", "WanPipeline"),
}  # fmt: skip


@pytest.mark.parametrize(
    "prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer.", "net.", "module."]
)
@pytest.mark.parametrize("row", FILES)
def test_single_file_is_recognised_behind_any_prefix(row, prefix):
    tensors, variant, pipeline = FILES[row]
    found = detect(one_file("model.safetensors", {prefix + name: shape for name, shape in tensors.items()}))
    assert found.variant == variant
    assert found.architecture_type == VARIANTS[variant].architecture_type
    assert (found.is_wan, found.layout, found.pipeline_class) == (True, "single_file", pipeline)
    assert found.confidence == 0.95


def test_audio_drivers_without_a_name_in_the_vocabulary_are_relatives():
    for extra in ("audio_proj.audio_proj_glob_1.layer.weight", "audio_proj.proj1.weight"):
        found = detect(one_file("humo.safetensors", original("wan-t2v-14b") | {extra: (8, 8)}))
        assert (found.is_wan, found.architecture_type, found.variant, found.pipeline_class) == (
            True, "wan_family", None, None,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("wan2.1_t2v_14B_fp16.safetensors", "wan2.1-t2v-14b"),
        ("wan2.2_t2v_high_noise_14B_fp16.safetensors", "wan2.2-t2v-a14b"),
        ("Wan2_2-T2V-A14B-LOW_fp8.safetensors", "wan2.2-t2v-a14b"),
        ("krea_realtime_video_14B.safetensors", "krea-realtime-video"),
        ("SkyReels-V2-DF-14B-720P.safetensors", "skyreels-v2-df-14b-720p"),
        ("pornstar_of_the_north.safetensors", "wan2.1-t2v-14b"),
        ("wan2.1_i2v_720p_14B.safetensors", "wan2.1-t2v-14b"),
    ],
)
def test_file_name_chooses_among_candidates_and_never_outside_of_them(name, variant):
    found = detect(one_file(name, original("wan-t2v-14b")))
    assert found.variant == variant
    assert {"wan2.1-t2v-14b", "wan2.2-t2v-a14b"} <= set(found.candidates)
    assert found.variant in found.candidates


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("wan2.1_i2v_480p_14B_fp16.safetensors", "wan2.1-i2v-14b-480p"),
        ("wan2.1_i2v_720p_14B_fp16.safetensors", "wan2.1-i2v-14b-720p"),
        ("chrono_edit_14B_fp16.safetensors", "chronoedit-14b"),
        ("Wan2.1-Fun-14B-InP.safetensors", "wan2.1-fun-14b-inp"),
        ("my_fun_clips_kreative.safetensors", "wan2.1-i2v-14b-480p"),
    ],
)
def test_four_models_of_one_shape_are_chosen_by_name(name, variant):
    found = detect(one_file(name, original("wan-i2v-14b")))
    assert found.variant == variant
    assert set(found.candidates) == {
        "wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p", "chronoedit-14b", "wan2.1-fun-14b-inp",
    }  # fmt: skip


def test_chronoedit_under_its_hub_tag_is_told_by_its_repository_only():
    plain = detect(diffusers("wan-i2v-14b", pipeline=I2V))
    named = detect(diffusers("wan-i2v-14b", pipeline=I2V, repository="nvidia/ChronoEdit-14B-Diffusers"))
    assert plain.variant == "wan2.1-i2v-14b-480p"
    assert (named.variant, named.pipeline_class) == ("chronoedit-14b", "ChronoEditPipeline")
    assert set(named.candidates) == set(plain.candidates)


def test_scheduler_shift_tells_720p_from_480p():
    more = {"scheduler/scheduler_config.json": {"flow_shift": 5.0}}
    assert detect(diffusers("wan-i2v-14b", pipeline=I2V, more=more)).variant == "wan2.1-i2v-14b-720p"


@pytest.mark.parametrize(
    ("pipeline", "index", "variant"),
    [
        ("WanAnimate2ModularPipeline", {}, "wan2.2-animate-2-14b"),
        ("WanAnimate2DistilledModularPipeline", {}, "wan2.2-animate-2-14b-distilled"),
    ],
)
def test_index_class_tells_animate_2_from_its_distillation(pipeline, index, variant):
    source = diffusers("wan-animate-2-14b", pipeline=pipeline, index=index)
    documents = dict(source.documents)
    documents["modular_model_index.json"] = documents.pop("model_index.json")
    found = detect(facts(*source.weights.values(), documents=documents))
    assert (found.variant, found.candidates, found.layout) == (variant, (), "modular")
    assert found.pipeline_class == pipeline


@pytest.mark.parametrize(("distilled", "variant"), [(True, "helios-distilled"), (False, "helios-mid")])
def test_index_tells_helios_pyramids_apart(distilled, variant):
    found = detect(diffusers("helios-14b", pipeline="HeliosPyramidPipeline", index={"is_distilled": distilled}))
    assert (found.variant, found.candidates) == (variant, ())


def test_gguf_is_recognised_with_quantised_types_and_squeezed_shapes():
    tensors = original("wan-i2v-14b")
    for shape in ((5120, 36, 1, 2, 2), (5120, 36, 2, 2), (5120, 144), (5120 * 36, 1, 2, 2)):
        found = detect(one_file("wan.gguf", tensors | {"patch_embedding.weight": shape}, "Q4_K"))
        assert (found.layout, found.variant) == ("gguf", "wan2.1-i2v-14b-480p"), shape
    assert found.components["transformer"].dtype == "Q4_K"


def test_scaled_fp8_changes_nothing_about_what_it_is():
    typed = fp8_scaled(original("wan-i2v-a14b"))
    found = detect(one_file("wan.safetensors", {name: shape for name, (_, shape) in typed.items()}))
    assert found.variant == "wan2.2-i2v-a14b"


@pytest.mark.parametrize(
    ("table", "style", "prefix", "variant"),
    [
        ("wan-t2v-14b", "peft", "transformer.", "wan2.1-t2v-14b"),
        ("wan-t2v-14b", "kohya", "", "wan2.1-t2v-14b"),
        ("wan-t2v-14b", "lightx2v", "diffusion_model.", "wan2.1-t2v-14b"),
        ("wan-t2v-1.3b", "peft", "base_model.model.", "wan2.1-t2v-1.3b"),
        ("wan-ti2v-5b", "lightx2v", "diffusion_model.", "wan2.2-ti2v-5b"),
        ("wan-i2v-14b", "kohya", "", "wan2.1-i2v-14b-480p"),
    ],
)
def test_lora_is_wans_and_its_width_tells_the_base(table, style, prefix, variant):
    names = recorded_tensors(table) if style == "peft" else original(table)
    found = detect(one_file("style.safetensors", lora(names, rank=32, style=style, prefix=prefix)))
    assert (found.is_wan, found.layout, found.variant, found.pipeline_class) == (True, "lora", variant, None)
    assert len(found.candidates) > 1


def test_lora_of_a_distillation_is_told_by_its_name_among_its_bases():
    name = "wan2.2_i2v_A14b_high_noise_lora_rank64_lightx2v_4step_1022.safetensors"
    found = detect(one_file(name, lora(original("wan-i2v-a14b"), rank=64, style="lightx2v", prefix="diffusion_model.")))
    assert found.variant == "wan2.2-i2v-a14b"


def test_parts_alone_are_judged_as_nothing():
    for table, name, dimensions in (
        ("vae-wan2.1", "vae", 3), ("original-vae-wan2.1", "vae", 3), ("vae-wan2.2", "vae", 3),
        ("original-vae-wan2.2", "vae", 3), ("vae-sd", "vae", 2), ("umt5-xxl", "text_encoder", 0),
        ("original-umt5", "text_encoder", 0), ("clip-vision", "image_encoder", 0),
    ):  # fmt: skip
        found = detect(one_file("part.safetensors", recorded_tensors(table)))
        assert (found.is_wan, found.variant, found.pipeline_class) == (None, None, None), table
        assert list(found.components) == [name], table
        assert found.vae_dimensions == dimensions, table


@pytest.mark.parametrize(
    ("table", "config", "layout"),
    [("wan-t2v-1.3b", True, "component"), ("wan-t2v-1.3b", False, "component"), ("vae-wan2.2", True, "component")],
)
def test_component_folder_alone_is_a_component(table, config, layout):
    weights = header("diffusion_pytorch_model.safetensors", recorded_tensors(table))
    documents = {"config.json": recorded_config(table)} if config else {}
    found = detect(facts(weights, documents=documents))
    assert found.layout == layout
    assert found.variant == ("wan2.1-t2v-1.3b" if table.startswith("wan") else None)
