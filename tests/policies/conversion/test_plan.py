"""Real checkpoints by name and shape become exactly what diffusers' classes have; whatever is off is refused by name."""

from __future__ import annotations

import json

import pytest

from tests.assets.corpus.tables import recorded_config, recorded_tensors
from tests.assets.corpus.tensors import original_names, prefixed
from tests.policies.conversion import drafts as d
from wan_compat.policies.conversion import choose_sources, plan_conversion
from wan_compat.policies.detection import detect
from wan_compat.policies.facts import TensorFact
from wan_compat.protocol import errors

VAES = {"vae-wan2.1": "original-vae-wan2.1", "vae-wan2.2": "original-vae-wan2.2"}
# Differs on purpose: what is written is the configuration of an encoder alone.
FREE = {"is_encoder_decoder", "use_cache"}
# Was recorded with what the class fills in, which is Wan 2.1's.
LATENTS = {"latents_mean", "latents_std"}


def config_of(plan, path):
    return json.loads(plan.documents[path])


def says(config, recorded):
    """Every field that we write is the recorded class's own."""
    return {k: v for k, v in config.items() if k not in FREE | LATENTS and recorded.get(k, v) != v} == {}


@pytest.mark.parametrize(
    ("name", "vae", "pipeline"),
    [
        ("wan-t2v-1.3b", "vae-wan2.1", "WanPipeline"),
        ("wan-t2v-14b", "vae-wan2.1", "WanPipeline"),
        ("wan-ti2v-5b", "vae-wan2.2", "WanPipeline"),
        ("wan-i2v-14b", "vae-wan2.1", "WanImageToVideoPipeline"),
        ("wan-flf2v-14b", "vae-wan2.1", "WanImageToVideoPipeline"),
        ("wan-vace-1.3b", "vae-wan2.1", "WanVACEPipeline"),
        ("wan-vace-14b", "vae-wan2.1", "WanVACEPipeline"),
    ],
)
def test_real_checkpoint_becomes_what_the_classes_of_diffusers_have(name, vae, pipeline):
    listed = d.t2v(name, VAES[vae])
    if pipeline == "WanImageToVideoPipeline":
        listed[d.CLIP] = d.clip()
    plan = d.planned(listed)
    assert plan.pipeline_class == pipeline
    assert d.shapes_of(plan, "transformer") == recorded_tensors(name)
    assert d.shapes_of(plan, "vae") == recorded_tensors(vae)
    assert d.shapes_of(plan, "text_encoder") == recorded_tensors("umt5-xxl")
    assert says(config_of(plan, "transformer/config.json"), recorded_config(name))
    assert says(config_of(plan, "vae/config.json"), recorded_config(vae))
    assert says(config_of(plan, "text_encoder/config.json"), recorded_config("umt5-xxl"))
    index = config_of(plan, "model_index.json")
    assert index["transformer"][1] == recorded_config(name)["_class_name"]
    latents = {len(values) for name, values in config_of(plan, "vae/config.json").items() if name in LATENTS}
    assert latents == ({48} if name == "wan-ti2v-5b" else set())
    assert index.get("expand_timesteps", False) == (name == "wan-ti2v-5b")
    assert [target for _, target in plan.copies] == [
        "tokenizer/tokenizer.json", "tokenizer/spiece.model", "tokenizer/tokenizer_config.json",
    ]  # fmt: skip
    if d.CLIP in listed:
        clip = recorded_tensors("clip-vision")
        assert d.shapes_of(plan, "image_encoder") == {f"vision_model.{name}": shape for name, shape in clip.items()}
        assert plan.dropped == {d.CLIP: ("log_scale", "textual.token_embedding.weight", "visual.head")}
        assert config_of(plan, "image_encoder/config.json")["num_attention_heads"] == 16


def test_two_experts_become_two_transformers_with_the_boundary_between_them():
    listed = d.t2v()
    expert = listed.pop(d.TRANSFORMER)
    listed |= {f"{folder}/{d.TRANSFORMER}": expert for folder in ("high_noise_model", "low_noise_model")}
    plan = d.planned(listed)
    index = config_of(plan, "model_index.json")
    assert (index["transformer"], index["transformer_2"]) == (["diffusers", "WanTransformer3DModel"],) * 2
    assert index["boundary_ratio"] == 0.875
    sources = {
        tensor.source for file in plan.files if file.path.startswith("transformer_2/") for tensor in file.tensors
    }
    assert sources == {f"low_noise_model/{d.TRANSFORMER}"}


def test_large_parts_are_cut_into_shards_with_an_index_that_names_every_tensor():
    plan = d.planned(d.t2v())
    shards = [file for file in plan.files if file.path.startswith("transformer/")]
    assert len(shards) == 6 and all(file.data_bytes <= 5_000_000_000 for file in shards)
    index = config_of(plan, "transformer/diffusion_pytorch_model.safetensors.index.json")
    assert index["weight_map"] == {t.name: file.path.partition("/")[2] for file in shards for t in file.tensors}
    assert index["metadata"]["total_size"] == sum(file.data_bytes for file in shards)


def test_bytes_of_every_tensor_come_from_its_own_place():
    plan = d.planned({**d.t2v("wan-i2v-14b"), d.CLIP: d.clip()})
    for file in plan.files:
        for tensor in file.tensors:
            assert tensor.size == d.tensors({"x": tensor.shape}, tensor.dtype)["x"].bytes
    qkv = {
        tensor.name.rpartition("self_attn.")[2]: tensor.offset // tensor.size
        for file in plan.files
        for tensor in file.tensors
        if tensor.source_name == "visual.transformer.3.attn.to_qkv.weight"
    }
    assert qkv == {"q_proj.weight": 0, "k_proj.weight": 1, "v_proj.weight": 2}


def test_single_file_becomes_one_component_with_its_prefix_taken_off():
    shapes = prefixed(original_names("wan-t2v-1.3b"), "model.diffusion_model.")
    plan = d.planned({"wan.safetensors": d.tensors(shapes, "F16")}, others=(), root="/m/wan.safetensors", is_file=True)
    assert plan.pipeline_class is None and not plan.copies
    assert [file.path for file in plan.files] == ["diffusion_pytorch_model.safetensors"]
    assert d.shapes_of(plan, "") == recorded_tensors("wan-t2v-1.3b")
    assert plan.files[0].tensors[0].source_name.startswith("model.diffusion_model.")


def test_sampling_shift_is_the_familys():
    plan = d.planned(d.t2v("wan-ti2v-5b", "original-vae-wan2.2"))
    assert config_of(plan, "scheduler/scheduler_config.json")["flow_shift"] == 5.0
    assert any("flow_shift 5" in reason for reason in plan.reasons)


# ---- refusals -------------------------------------------------------------------------------------------------------


def changed(path, **changes):
    listed = d.t2v("wan-t2v-1.3b")
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del listed[path][name]
        else:
            listed[path][name] = tensor
    return listed


def refused(kind, match, listed, **options):
    with pytest.raises(kind, match=match):
        d.planned(listed, **options)


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        (d.T5, {"blocks__7__attn__q__weight": None}, "it lacks blocks.7.attn.q.weight"),
        (d.T5, {"decoder__weight": TensorFact("BF16", (4,), 8)}, "without a place: decoder.weight"),
        (d.T5, {"norm__weight": TensorFact("BF16", (5,), 10)}, r"another shape: norm.weight \(5,\) for \(4096,\)"),
        (d.VAE, {"decoder__upsamples__3__time_conv__weight": None}, "lacks decoder.upsamples.3.time_conv.weight"),
        (d.VAE, {"encoder__conv1__weight": TensorFact("F32", (97, 3, 3, 3, 3), 0)}, "make no sense|another shape"),
        (d.TRANSFORMER, {"blocks__3__norm3__bias": None}, "lacks blocks.3.norm3.bias"),
        (d.TRANSFORMER, {"blocks__99__norm3__bias": TensorFact("BF16", (1536,), 3072)}, "lacks blocks.30"),
        (d.TRANSFORMER, {"patch_embedding__weight": TensorFact("BF16", (1536,), 3072)}, "5 dimensions are known"),
    ],
)  # fmt: skip
def test_missing_extra_or_misshapen_tensor_is_refused_by_name(path, change, words):
    refused(errors.ModelInvalid, words, changed(path, **change))


@pytest.mark.parametrize(
    ("left", "named"), [(d.T5, "the text encoder"), (d.VAE, "the VAE"), (d.TRANSFORMER, "the transformer")]
)
def test_missing_part_is_named_with_the_file_that_has_it(left, named):
    listed = {path: found for path, found in d.t2v("wan-t2v-1.3b").items() if path != left}
    refused(errors.ModelCorrupt, f"lacks {named} \\(", listed)


def test_missing_tokenizer_and_image_encoder_are_named():
    refused(errors.ModelCorrupt, "the tokenizer", d.t2v("wan-t2v-1.3b"), others=())
    refused(errors.ModelCorrupt, "the image encoder", d.t2v("wan-i2v-14b"))


def test_one_expert_without_the_other_is_not_a_model():
    listed = d.t2v()
    listed[f"high_noise_model/{d.TRANSFORMER}"] = listed.pop(d.TRANSFORMER)
    refused(errors.ModelCorrupt, "low-noise transformer", listed)


def test_two_files_for_one_part_are_ambiguous():
    listed = d.t2v("wan-t2v-1.3b")
    listed["vae.safetensors"] = listed[d.VAE]
    refused(errors.ModelInvalid, "two files that could be its vae", listed)


def test_vae_of_another_generation_does_not_fit_the_transformer():
    refused(errors.ModelInvalid, "16 latent channels, its VAE on 48", d.t2v("wan-t2v-1.3b", "original-vae-wan2.2"))


@pytest.mark.parametrize("name", ["original-s2v", "original-animate"])
def test_kind_that_no_conversion_helps_is_refused_before_a_worker_starts(name):
    listed = {d.TRANSFORMER: d.tensors(recorded_tensors(name))}
    refused(errors.ModelNotCompatible, "s2v|animate", listed)


def test_control_models_are_refused():
    listed = d.t2v("wan-fun-1.3b-control")
    refused(errors.ModelNotCompatible, "no class|no pipeline", listed)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I64"])
def test_numbers_that_cannot_be_kept_are_refused(dtype):
    listed = d.t2v("wan-t2v-1.3b")
    listed[d.T5] = d.tensors(recorded_tensors("original-umt5"), dtype)
    refused(errors.ModelNotCompatible, dtype, listed)


def test_fp8_with_scales_is_refused():
    listed = d.t2v("wan-t2v-1.3b")
    listed[d.TRANSFORMER]["scaled_fp8"] = TensorFact("F8_E4M3", (2,), 2)
    refused(errors.ModelNotCompatible, "scales", listed)


def test_claims_of_more_bytes_than_the_files_have_are_refused():
    listed = d.t2v("wan-t2v-1.3b")
    model = d.facts({path: {} if path == d.T5 else found for path, found in listed.items()})
    sources = choose_sources(model, detect(model))
    with pytest.raises(errors.ModelInvalid, match="claims to hold"):
        plan_conversion(model, sources, listed, {})


def test_heads_that_do_not_divide_the_width_are_refused():
    documents = {"config.json": {"_class_name": "WanModel", "dim": 1536, "num_heads": 7}}
    refused(errors.ModelInvalid, "cannot have 7 heads", d.t2v("wan-t2v-1.3b"), documents=documents)


def test_configuration_of_another_model_is_refused():
    documents = {"config.json": {"_class_name": "WanModel", "dim": 5120, "num_heads": 40}}
    refused(errors.ModelInvalid, "dim=5120, the tensors say 1536|heads", d.t2v("wan-t2v-1.3b"), documents=documents)


def test_diffusers_folder_with_safetensors_has_nothing_to_convert():
    listed = {"transformer/diffusion_pytorch_model.safetensors": d.tensors(recorded_tensors("wan-t2v-1.3b"))}
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    refused(errors.ModelNotCompatible, "nothing to convert", listed, documents={"model_index.json": index})


def test_other_models_are_refused():
    listed = {"model.safetensors": d.tensors(recorded_tensors("transformer-flux"))}
    refused(errors.ModelNotCompatible, "not a Wan model|no part of", listed, others=())
