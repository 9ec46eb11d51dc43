"""Single files at their real sizes: what they are, which configuration fits, what each tensor becomes; and refusals."""

from __future__ import annotations

import pytest

from tests.assets.corpus.tables import recorded_config, recorded_tensors
from tests.assets.corpus.tensors import original_names, prefixed
from tests.policies.detection import drafts as d
from wan_compat.policies.facts import WeightFile
from wan_compat.policies.sources.compose import Given, compose
from wan_compat.policies.sources.single import read_single, role_in
from wan_compat.protocol.codec import to_worker_codec
from wan_compat.protocol.errors import InvalidRequest, ModelInvalid, ModelNotCompatible, PickleRefused
from wan_compat.protocol.messages import LoadModel
from wan_compat.protocol.sources import looked_up
from wan_compat.protocol.values import ComponentSpec, PipelineSpec

TRANSFORMERS = ["wan-t2v-1.3b", "wan-t2v-14b", "wan-ti2v-5b", "wan-i2v-14b", "wan-flf2v-14b", "wan-vace-14b"]
# Filled in by the class when the tables were recorded, or said by nobody's shapes.
FREE = {"latents_mean", "latents_std", "is_encoder_decoder", "use_cache"}


def single(shapes, dtype="BF16", config=None, name="x.safetensors"):
    return read_single("x", {name: d.header(name, shapes, dtype)}, config)


def agrees(config, recorded):
    return {k: (v, recorded[k]) for k, v in config.items() if k in recorded.keys() - FREE and recorded[k] != v} == {}


def becomes(found, shapes):
    """Every name in the file, through the table that is sent, is a name of the model."""
    ignored = {name: name for name in found.ignored}
    for name in shapes:
        if (
            looked_up(name, ignored) is None
            and name not in found.splits
            and looked_up(name, dict.fromkeys(found.splits, "x")) is None
        ):
            assert (looked_up(name, found.renames) or name) in found.tensors
    return {name: tensor.shape for name, tensor in found.tensors.items()}


@pytest.mark.parametrize("style", ["diffusers", "original", "comfyui"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformer_in_any_spelling_is_the_class_of_diffusers(name, style):
    recorded = recorded_tensors(name)
    shapes = {"diffusers": recorded, "original": original_names(name)}.get(style)
    shapes = shapes or prefixed(original_names(name), "model.diffusion_model.")
    found = single(shapes)
    assert becomes(found, shapes) == {key: tuple(shape) for key, shape in recorded.items()}
    assert agrees(found.config, recorded_config(name))
    assert len(found.renames) <= 150  # forty blocks are one template each


@pytest.mark.parametrize(
    ("shapes", "recorded", "role"),
    [
        ("original-vae-wan2.1", "vae-wan2.1", "vae"),
        ("original-vae-wan2.2", "vae-wan2.2", "vae"),
        ("vae-wan2.1", "vae-wan2.1", "vae"),
        ("vae-wan2.2", "vae-wan2.2", "vae"),
        ("original-umt5", "umt5-xxl", "text_encoder"),
        ("umt5-xxl", "umt5-xxl", "text_encoder"),
        ("clip-vision", "clip-vision", "image_encoder"),
    ],
)
def test_other_parts_in_both_spellings(shapes, recorded, role):
    given = recorded_tensors(shapes)
    found = single(given)
    assert found.role == role == role_in({"x": d.header("x", given)})
    made, wanted = becomes(found, given), {key: tuple(shape) for key, shape in recorded_tensors(recorded).items()}
    if role == "image_encoder":  # transformers 5 saves it without this, and reads both
        made = {key.removeprefix("vision_model."): shape for key, shape in made.items()}
        wanted = {key.removeprefix("vision_model."): shape for key, shape in wanted.items()}
    if role == "text_encoder":
        wanted.pop("encoder.embed_tokens.weight", None)  # shared.weight under its other name
    assert made == wanted
    assert agrees(found.config, recorded_config(recorded))


def test_whole_message_stays_below_what_a_worker_accepts():
    parts = {
        "transformer": original_names("wan-vace-14b"),
        "transformer_2": original_names("wan-vace-14b"),
        "vae": recorded_tensors("original-vae-wan2.2"),
        "text_encoder": recorded_tensors("original-umt5"),
    }
    components = tuple(
        ComponentSpec(
            name=name,
            library=found.library,
            class_name=found.class_name,
            subfolder=name,
            dtype="float32",
            source=found.source((f"{name}/x.safetensors",)),
        )
        for name, shapes in parts.items()
        for found in [single(shapes)]
    )
    message = LoadModel(pipeline=PipelineSpec(pipeline_class="WanPipeline", components=components, threads=1))
    codec = to_worker_codec()
    assert codec.decode(codec.encode(message, 1)) == (1, message)


def test_configuration_of_the_folder_is_taken_only_where_every_shape_is_its_own():
    recorded = dict(recorded_config("wan-t2v-14b"), eps=1e-5, num_attention_heads=20, attention_head_dim=256)
    shapes = original_names("wan-t2v-14b")
    assert single(shapes, config=recorded).config["num_attention_heads"] == 20
    assert single(shapes, config=recorded).config["eps"] == 1e-5
    other = single(shapes, config=recorded_config("wan-t2v-1.3b")).config
    assert (other["num_attention_heads"], other["num_layers"]) == (40, 40)
    assert "auto_map" not in single(shapes, config=recorded | {"auto_map": {"AutoModel": "x--y"}}).config


SCALED = {"blocks.0.self_attn.q.scale_weight": (1,), "blocks.0.self_attn.q.scale_input": (1,)}


def scaled(scale_shape=(1,), dtype="F32"):
    weights = d.header("x.safetensors", original_names("wan-t2v-1.3b"), "F8_E4M3")
    scales = d.header("x.safetensors", {"blocks.0.self_attn.q.scale_weight": scale_shape}, dtype)
    return {"x.safetensors": WeightFile("x.safetensors", "safetensors", {**weights.tensors, **scales.tensors}, {}, 0)}


def test_scales_are_told_to_the_worker_and_are_no_tensors_of_the_model():
    for shape in ((), (1,), (1536, 1)):
        found = read_single("x", scaled(shape), None)
        assert looked_up("blocks.0.self_attn.q.weight", found.scales) == "blocks.0.self_attn.q.scale_weight"
        assert set(found.tensors) == set(recorded_tensors("wan-t2v-1.3b"))


def without(name):
    return {key: shape for key, shape in original_names("wan-t2v-1.3b").items() if key != name}


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        (lambda: scaled((12, 12)), ModelNotCompatible, "scales for blocks"),
        (lambda: scaled((1,), "U8"), ModelNotCompatible, "scales for blocks"),
        (lambda: {"x": d.header("x.safetensors", original_names("wan-t2v-1.3b"), "U8")}, ModelNotCompatible, "packed"),
        (lambda: {"x": d.header("x", without("head.head.bias"))}, ModelInvalid, "lacks head.head.bias"),
        (
            lambda: {"x": d.header("x", original_names("wan-t2v-1.3b") | {"blocks.7.extra.weight": (3,)})},
            ModelInvalid,
            "no place for blocks.7.extra.weight",
        ),
        (
            lambda: {"x": d.header("x", original_names("wan-t2v-1.3b") | {"blocks.7.self_attn.q.weight": (3, 1536)})},
            ModelInvalid,
            "has the shape",
        ),
        (lambda: {"x": d.header("x", {"a.weight": (3,)})}, ModelInvalid, "is no transformer"),
        (
            lambda: {
                "x": d.header(
                    "x", prefixed(original_names("wan-t2v-1.3b"), "model.diffusion_model.") | {"vae.conv1.weight": (1,)}
                )
            },
            ModelNotCompatible,
            "more than the transformer",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(files, error, words):
    with pytest.raises(error, match=words):
        read_single("x", files(), None)


def given(name, shapes, flag="--transformer", component=None):
    return Given(d.one_file(name, shapes), flag, component)


def test_composed_model_has_the_files_where_a_worker_sees_them_and_nothing_of_what_they_replace():
    base = d.diffusers("wan-t2v-14b", experts=2, index={"boundary_ratio": 0.875})
    made = compose(base, [given("low.safetensors", original_names("wan-t2v-14b"), component="transformer_2")])
    (path,) = [path for path in made.facts.files if path.startswith("transformer_2/")]
    assert made.facts.files[path].real_path.startswith("/models/low.safetensors")
    assert made.facts.sources["transformer_2"].files == (path,)
    assert made.facts.tensors["transformer_2"].keys() == base.tensors["transformer_2"].keys()
    assert made.facts.tensors["transformer"] == base.tensors["transformer"]
    assert any("--transformer /models/low.safetensors" in reason for reason in made.reasons)


def test_class_of_the_index_follows_the_file():
    made = compose(d.diffusers("wan-t2v-1.3b"), [given("vace.safetensors", original_names("wan-vace-1.3b"))])
    assert made.facts.index["transformer"] == ["diffusers", "WanVACETransformer3DModel"]


@pytest.mark.parametrize(
    ("base", "items", "error", "words"),
    [
        (None, [given("x.safetensors", original_names("wan-t2v-1.3b"))], InvalidRequest, "is the transformer alone"),
        ("wan-t2v-14b", [given("x.safetensors", recorded_tensors("umt5-xxl"), "--vae", "vae")], InvalidRequest, "is a text encoder"),
        (
            "wan-t2v-14b",
            [given(f"{n}.safetensors", original_names("wan-t2v-14b")) for n in "xy"],
            InvalidRequest,
            "two files were given",
        ),
        ("wan-t2v-14b", [given("flux.safetensors", recorded_tensors("transformer-flux"))], ModelInvalid, "is Flux"),
        ("wan-t2v-14b", [given("s2v.safetensors", recorded_tensors("original-s2v"))], ModelNotCompatible, "wan2.2-s2v-14b"),
        ("wan-t2v-14b", [Given(d.facts(others=("x.pth",), root="/x.pth"), "--vae", "vae")], PickleRefused, "is a pickle"),
        ("wan-t2v-14b", [Given(d.facts(root="/empty"), "--vae", "vae")], ModelInvalid, "no weights"),
        (
            "wan-t2v-14b",
            [Given(d.facts(d.header("a.safetensors", {"x": (1,)}), d.header("b.safetensors", {"y": (1,)})), "--vae", "vae")],
            InvalidRequest,
            "2 weight files",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_put_together_says_why(base, items, error, words):
    with pytest.raises(error, match=words):
        compose(None if base is None else d.diffusers(base), items)
