"""What model_index.json may look like, and what its schema concludes from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from wan_compat.policies.model_index import ModelIndexSchema, is_absent, is_component_entry

T2V: dict[str, Any] = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.35.0.dev0",
    "boundary_ratio": None,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
A14B = T2V | {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}
FLUX = {
    "_class_name": "FluxPipeline",
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SD = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
}


def parse(index: dict[str, Any]) -> ModelIndexSchema:
    return ModelIndexSchema.from_document(json.loads(json.dumps(index)))


def test_the_files_names_are_the_aliases_of_ours() -> None:
    schema = parse(A14B)
    assert (schema.class_name, schema.diffusers_version) == ("WanPipeline", "0.35.0.dev0")
    assert schema.transformer_2 == ["diffusers", "WanTransformer3DModel"] and schema.boundary_ratio == 0.875
    assert ModelIndexSchema(class_name="WanPipeline").class_name == "WanPipeline"
    assert ModelIndexSchema(**{"_class_name": "WanPipeline"}).class_name == "WanPipeline"


def test_everything_without_a_field_is_a_custom_attribute() -> None:
    schema = parse(T2V | {"image_encoder": ["transformers", "CLIPVisionModel"], "_name_or_path": "x"})
    assert schema.custom_attributes == {
        "expand_timesteps": False,
        "image_encoder": ["transformers", "CLIPVisionModel"],
        "_name_or_path": "x",
    }
    assert ModelIndexSchema().custom_attributes == {}


def test_keys_that_look_like_our_fields_do_not_pose_as_the_files() -> None:
    schema = parse({"class_name": "WanPipeline", "diffusers_version": "9", "custom_attributes": {"a": 1}})
    assert schema.class_name is None and schema.diffusers_version is None
    assert schema.custom_attributes == {
        "class_name": "WanPipeline",
        "diffusers_version": "9",
        "custom_attributes": {"a": 1},
    }


@pytest.mark.parametrize("index", [T2V, A14B, FLUX | {"transformer": ["diffusers", "SkyReelsV2Transformer3DModel"]}])
def test_a_wan_transformer_of_diffusers_is_wan(index: dict[str, Any]) -> None:
    assert parse(index).validate_wan_architecture()


@pytest.mark.parametrize(
    "index",
    [
        {},
        FLUX,
        SD,
        {"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]},
        FLUX | {"vae": ["diffusers", "AutoencoderKLWan"], "boundary_ratio": 0.9},
        FLUX | {"transformer_2": ["diffusers", "FluxTransformer2DModel"]},
        T2V | {"_class_name": "KiwiEditPipeline"},
        T2V | {"_class_name": ["pipeline_kiwi_edit", "KiwiEditPipeline"]},
        {"_class_name": "Gen3RPipeline", "transformer": ["gen3r.models", "WanTransformer3DModel"]},
        T2V | {"transformer_2": ["diffusers", "FluxTransformer2DModel"]},
    ],
)
def test_nothing_else_is_wan(index: dict[str, Any]) -> None:
    assert not parse(index).validate_wan_architecture()


@pytest.mark.parametrize("index", [T2V, A14B, FLUX, T2V | {"_class_name": "ChronoEditPipeline"}])
def test_sound_indexes_have_no_errors(index: dict[str, Any]) -> None:
    assert parse(index).get_schema_validation_errors() == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "Wan components (transformer WanTransformer3DModel)"),
        ({"_class_name": "StableDiffusionPipeline"}, "but the pipeline class does not start with Wan"),
        ({"_class_name": None}, "_class_name is missing"),
        ({"_class_name": ["pipeline", "MyPipeline"]}, "['pipeline', 'MyPipeline']"),
        ({"vae": ["my_vae", "VAE"]}, "vae comes from 'my_vae'"),
        ({"vae": ["diffusers", None]}, "both be there"),
        ({"vae": ["diffusers"]}, "not a pair"),
        ({"boundary_ratio": 1.5}, "outside of 0 to 1"),
        ({"boundary_ratio": 0.9}, "no transformer_2 to switch to"),
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "the second expert would never run"),
        ({"image_encoder": ["evil", "Net"]}, "image_encoder comes from 'evil'"),
    ],
)
def test_what_makes_no_sense_is_told_with_its_value(change: dict[str, Any], expected: str) -> None:
    errors = parse(T2V | change).get_schema_validation_errors()
    assert any(expected in error for error in errors), errors


@pytest.mark.parametrize(
    "change",
    [
        {"vae": "AutoencoderKLWan"},
        {"vae": ["diffusers", 5]},
        {"vae": {"a": 1}},
        {"vae": ["diffusers"] * 5},
        {"boundary_ratio": "0.9"},
        {"boundary_ratio": True},
        {"boundary_ratio": float("nan")},
        {"_class_name": 7},
        {"_class_name": "W" * 301},
        {"_diffusers_version": 0.35},
        {f"x{number}": number for number in range(201)},
    ],
)
def test_wrong_types_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse(T2V | change)


def test_entries_of_every_form_are_understood() -> None:
    schema = parse(
        {
            "_class_name": "WanModularPipeline",
            "transformer": ["diffusers", "WanTransformer3DModel", {"repo": "a/b", "subfolder": "transformer"}],
            "vae": [None, None, {"repo": "a/b"}],
            "transformer_2": [None, None],
            "image_encoder": None,
        }
    )
    assert [name for name, _ in schema.components()] == ["vae", "transformer"]
    assert schema.get_schema_validation_errors() == [] and schema.validate_wan_architecture()


def test_a_reference_is_no_absence() -> None:
    assert is_absent([None, None]) and is_absent([None, None, {}]) and not is_absent([None, None, {"repo": "a/b"}])
    assert not is_component_entry(["a"]) and not is_component_entry("ab") and not is_component_entry(["a", "b", "c"])
