"""The contract's methods as pure functions."""

from __future__ import annotations

import pytest

from tests.assets.corpus.tables import recorded_config
from tests.policies.detection.drafts import diffusers
from wan_compat.policies.architecture import ModelRequirements, VAEType
from wan_compat.policies.detection import detect
from wan_compat.policies.detection.contract import signature_of, to_model_architecture, vae_type, validate_components

T2V = {
    "scheduler": "UniPCMultistepScheduler",
    "text_encoder": "UMT5EncoderModel",
    "tokenizer": "T5TokenizerFast",
    "transformer": "WanTransformer3DModel",
    "vae": "AutoencoderKLWan",
}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (recorded_config("vae-wan2.1"), VAEType.THREE_D),
        (recorded_config("vae-wan2.2"), VAEType.THREE_D),
        (recorded_config("vae-ltx"), VAEType.THREE_D),
        (recorded_config("vae-hunyuan-video"), VAEType.THREE_D),
        (recorded_config("vae-allegro"), VAEType.THREE_D),
        (recorded_config("vae-qwen-image"), VAEType.THREE_D),
        (recorded_config("vae-sd"), VAEType.TWO_D),
        (recorded_config("vae-dc"), VAEType.TWO_D),
        ({"_class_name": "AutoencoderTiny"}, VAEType.TWO_D),
        ({"_class_name": "AutoencoderOobleck"}, VAEType.UNKNOWN),
        ({"z_dim": 16, "temperal_downsample": [False, True, True]}, VAEType.THREE_D),
        ({"latent_channels": 4, "down_block_types": ["DownEncoderBlock2D"]}, VAEType.TWO_D),
        ({"latent_channels": 16, "down_block_types": ["CogVideoXDownBlock3D"]}, VAEType.THREE_D),
        ({"dimensions": 3}, VAEType.UNKNOWN),
        ({}, VAEType.UNKNOWN),
        ({"_class_name": ["x", "y"], "down_block_types": [None, 3]}, VAEType.UNKNOWN),
    ],
)
def test_vae_is_told_by_class_then_by_fields(config, kind):
    assert vae_type(config) is kind


def test_signature_counts_values_not_keys():
    index = dict(diffusers("wan-t2v-14b").index, transformer_2=[None, None], boundary_ratio=None)
    signature = signature_of(index)
    assert (signature.has_transformer_2, signature.has_boundary_ratio, signature.vae_dimensions) == (False, False, 3)
    assert signature.is_wan_architecture()
    both = signature_of(dict(index, transformer_2=["diffusers", "WanTransformer3DModel"], boundary_ratio=0.875))
    assert (both.has_transformer_2, both.has_boundary_ratio) == (True, True)
    assert both.is_wan_architecture()


def test_signature_of_a_look_alike_is_not_wan():
    gen3r = {"_class_name": "Gen3RPipeline", "transformer": ["gen3r.models", "WanTransformer3DModel"]}
    assert signature_of(gen3r).component_classes == {"transformer": "gen3r.models.WanTransformer3DModel"}
    kiwi = {
        "_class_name": ["pipeline_kiwi_edit", "KiwiEditPipeline"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
    }
    cosmos = {"transformer": ["diffusers", "CosmosTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"]}
    only_vae = {"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"], "boundary_ratio": 0.9}
    for index in (gen3r, kiwi, cosmos, only_vae, {}):
        assert not signature_of(index).is_wan_architecture()


def test_components_of_one_repository_fit():
    report = validate_components(T2V)
    assert (report.is_compatible, report.architecture, report.issues, report.warnings) == (True, "wan", [], [])
    assert validate_components(T2V | {"transformer_2": "WanTransformer3DModel"}).is_compatible


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"vae": "AutoencoderKL"}, "AutoencoderKLWan"),
        ({"vae": "AutoencoderKLQwenImage"}, "other latents"),
        ({"vae": "UMT5EncoderModel"}, "no VAE"),
        ({"text_encoder": "CLIPTextModel"}, "UMT5EncoderModel"),
        ({"transformer": "FluxTransformer2DModel"}, "Flux"),
        ({"transformer": "SomethingElse"}, "no transformer"),
        ({"transformer_2": "WanVACETransformer3DModel"}, "experts"),
        ({"transformer_2": "FluxTransformer2DModel"}, "different families"),
        ({"transformer": "WanAnimateTransformer3DModel"}, "image encoder"),
        ({"transformer": "gen3r.models.WanTransformer3DModel"}, "another library"),
    ],
)
def test_components_that_do_not_fit_are_named(change, word):
    report = validate_components(T2V | change)
    assert not report.is_compatible
    assert any(word in issue for issue in report.issues)


def test_stable_diffusion_is_named():
    report = validate_components({"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"})
    assert (report.is_compatible, report.architecture) == (False, "stable_diffusion")


def test_model_architecture_carries_what_was_detected():
    requirements = ModelRequirements(disk_mb=7)
    found = to_model_architecture(detect(diffusers("wan-ti2v-5b", vae="vae-wan2.2")), requirements)
    assert (found.architecture_type, found.version) == ("wan_ti2v", "2.2")
    assert found.capabilities == ["text_to_video", "image_to_video"]
    assert found.requirements is requirements
    assert found.components["transformer"].class_name == "WanTransformer3DModel"
    assert found.components["transformer"].dependencies == ["diffusers"]
    assert found.components["tokenizer"].weight_path == ""


def test_components_may_be_given_as_entries_of_an_index():
    entries = {name: ["diffusers" if name in ("transformer", "vae") else "transformers", T2V[name]] for name in T2V}
    report = validate_components(
        entries | {"scheduler": ["diffusers", T2V["scheduler"]], "image_encoder": [None, None]}
    )
    assert (report.is_compatible, report.architecture, report.issues) == (True, "wan", [])
    report = validate_components(entries | {"transformer": ["gen3r.models", "WanTransformer3DModel"]})
    assert any("another library" in issue for issue in report.issues)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, None),
        ({"vae": "vae-wan2.2"}, "16 latent channels, vae gives 48"),
        ({"vae": "vae-sd"}, "AutoencoderKLWan"),
        ({"transformer_2": "wan-i2v-a14b"}, "differ in shape"),
    ],
)
def test_configurations_tell_shapes_too(change, word):
    configs = {"transformer": "wan-t2v-14b", "vae": "vae-wan2.1"} | change
    report = validate_components(T2V | {name: recorded_config(value) for name, value in configs.items()})
    assert report.is_compatible is (word is None)
    assert word is None or any(word in issue for issue in report.issues)


@pytest.mark.parametrize("value", [None, 7, {}, [], ["diffusers"], {"_class_name": 3}, [[], {}]])
def test_values_of_no_meaning_are_no_denoiser(value):
    assert not validate_components({"transformer": value}).is_compatible
