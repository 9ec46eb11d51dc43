"""Whatever the facts hold, `detect` answers, its answers are consistent, and it is quick about it."""

from __future__ import annotations

import copy
import time
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.assets.corpus.tables import recorded_tensors
from tests.policies.detection.drafts import diffusers, facts, header, one_file, original
from wan_compat.policies.architecture import Architecture, ArchitectureType, Layout
from wan_compat.policies.detection import detect, traits_of
from wan_compat.policies.detection.contract import signature_of, vae_type, validate_components
from wan_compat.policies.facts import TensorFact, WeightFile
from wan_compat.policies.variants import VARIANTS

TYPES, LAYOUTS = typing.get_args(ArchitectureType), typing.get_args(Layout)

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=12),
    st.sampled_from(["WanTransformer3DModel", "AutoencoderKLWan", "diffusers", "16", "i2v", "WanPipeline", "1e9"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    ["_class_name", "in_channels", "out_channels", "num_layers", "num_attention_heads", "attention_head_dim", "image_dim",
     "dim", "in_dim", "num_heads", "ffn_dim", "freq_dim", "model_type", "vace_layers", "pos_embed_seq_len", "z_dim",
     "patch_size", "architectures", "auto_map", "action_dim", "temperal_downsample", "flow_shift", "d_model", "add_img_emb"]
)  # fmt: skip
configs = st.dictionaries(fields | st.text(max_size=6), values, max_size=12)
names = st.sampled_from(
    ["patch_embedding.weight", "head.modulation", "head.head.weight", "proj_out.bias", "blocks.0.self_attn.q.weight",
     "blocks.0.cross_attn.q.weight", "blocks.0.attn1.to_q.weight", "blocks.3.attn2.to_q.bias", "blocks.0.ffn.0.bias",
     "condition_embedder.text_embedder.linear_1.weight", "vace_blocks.0.after_proj.bias", "encoder.conv1.weight",
     "decoder.conv_in.weight", "shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight", "scaled_fp8",
     "blocks.0.self_attn.q.lora_A.weight", "lora_unet_blocks_0_self_attn_q.lora_down.weight", "transformer_blocks.0.x",
     "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight", "..", ".", "a..b"]
)  # fmt: skip
shapes = st.lists(st.integers(0, 1 << 40), max_size=6).map(tuple)
tensors = st.dictionaries(
    st.tuples(st.sampled_from(["", "model.diffusion_model.", "net.", "vae.", "model.model."]), names | st.text(max_size=20)).map("".join),
    st.builds(TensorFact, st.sampled_from(["BF16", "F32", "Q4_K", "F8_E4M3", "I8", ""]), shapes, st.integers(0, 1 << 40)),
    max_size=14,
)  # fmt: skip
folders = st.sampled_from(
    ["", "transformer/", "transformer_2/", "vae/", "high_noise_model/", "low_noise_model/", "x/y/"]
)
weights = st.builds(
    lambda folder, stem, suffix, table, metadata: WeightFile(
        f"{folder}{stem}.{suffix}", "gguf" if suffix == "gguf" else "safetensors", table, metadata, 0
    ),
    folders,
    st.sampled_from(["diffusion_pytorch_model", "a-00001-of-00002", "a-00002-of-00002", "high", "low", "x"]),
    st.sampled_from(["safetensors", "gguf"]),
    tensors,
    st.dictionaries(
        st.sampled_from(["general.architecture", "x"]), st.sampled_from(["wan", "flux", 3, True, 1.5]), max_size=2
    ),
)
paths = st.sampled_from(
    ["model_index.json", "modular_model_index.json", "modular_config.json", "config.json", "transformer/config.json",
     "transformer_2/config.json", "vae/config.json", "high_noise_model/config.json", "scheduler/scheduler_config.json"]
)  # fmt: skip
index_keys = st.sampled_from(
    ["_class_name", "transformer", "transformer_2", "vae", "unet", "boundary_ratio", "expand_timesteps", "is_distilled"]
)
documents = st.dictionaries(paths, configs | st.dictionaries(index_keys, values, max_size=6), max_size=6)


def check(found: Architecture) -> None:
    assert found.is_wan in (True, False, None)
    assert found.architecture_type in TYPES
    assert found.layout in LAYOUTS
    assert found.vae_dimensions in (0, 2, 3)
    assert 0 <= found.confidence <= 1
    assert found.evidence
    assert found.variant is None or found.variant in VARIANTS
    assert len(found.candidates) != 1
    assert set(found.candidates) <= VARIANTS.keys()
    if found.candidates:
        assert found.variant in found.candidates
    if found.is_wan is not True:
        assert (found.variant, found.candidates, found.pipeline_class, found.capabilities) == (None, (), None, ())
        assert found.architecture_type in ("unknown", "stable_diffusion")
    else:
        assert found.architecture_type.startswith("wan_")
    for name, component in found.components.items():
        assert component.name == name
        assert component.parameters >= 0
        assert component.bytes >= 0


@settings(max_examples=250, deadline=None)
@given(
    st.lists(weights, max_size=4),
    documents,
    st.sampled_from(["/m/thing", "/m/a.gguf", "/", "/m/Wan2.1_I2V.safetensors"]),
)
def test_any_facts_get_a_consistent_answer(files, found_documents, root):
    source = facts(*files, documents=found_documents, root=root, others=("Wan2.1_VAE.pth", "x.bin"))
    check(detect(source))
    for part in traits_of(source).values():
        list(part.disagreements())


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["transformer", "vae", "model_index"]),
    st.dictionaries(fields | index_keys, values, min_size=1, max_size=4),
)
def test_damaged_fields_beside_a_header_change_nothing_of_what_it_is(document, damage):
    source = diffusers("wan-t2v-1.3b")
    documents = copy.deepcopy(dict(source.documents))
    path = "model_index.json" if document == "model_index" else f"{document}/config.json"
    keep = {"_class_name", "transformer", "transformer_2", "vae", "unet", "action_dim", "auto_map", "architectures"}
    documents[path] = {**documents[path], **{name: value for name, value in damage.items() if name not in keep}}
    found = detect(facts(*source.weights.values(), documents=documents))
    check(found)
    assert (found.is_wan, found.variant, found.layout) == (True, "wan2.1-t2v-1.3b", "diffusers")


@settings(max_examples=100, deadline=None)
@given(configs, st.dictionaries(st.text(max_size=8), scalars.map(str), max_size=5))
def test_contract_functions_take_anything(config, classes):
    signature_of(config, config, config).is_wan_architecture()
    vae_type(config)
    validate_components(classes)


def test_answer_about_a_14b_pair_takes_milliseconds():
    source = diffusers("wan-i2v-14b", experts=2)
    encoder = header("text_encoder/model.safetensors", recorded_tensors("umt5-xxl"))
    source = facts(*source.weights.values(), encoder, documents=source.documents)
    times = []
    for _ in range(5):
        started = time.process_time()
        detect(source)
        times.append(time.process_time() - started)
    assert min(times) < 0.1  # 14 ms on the machine it was written on


def test_twenty_thousand_odd_names_take_no_more_than_their_number():
    odd = {
        ".".join(["model"] * (number % 50) + ["blocks", "9" * (number % 40), f"x{number}"]): (1,)
        for number in range(20_000)
    }
    odd |= {f"blocks.{number}.lora.{number}": (1,) for number in range(5_000)}
    started = time.process_time()
    found = detect(one_file("odd.safetensors", odd))
    assert time.process_time() - started < 5  # tenths; minutes, if each were compared with all
    check(found)


def test_index_of_ten_thousand_components_is_cut():
    index = {f"part{number}": ["diffusers", "WanTransformer3DModel"] for number in range(10_000)}
    found = detect(facts(documents={"model_index.json": index}))
    check(found)
    assert len(found.components) <= 100


def test_text_of_the_repository_is_clean_in_the_answer():
    evil = "Wan\x1b[2J\u202eTransformer"
    found = detect(facts(documents={"model_index.json": {"_class_name": evil, "transformer\x07": [evil, evil]}}))
    texts = [item.fact + item.source for item in found.evidence]
    texts += [f"{part.name}{part.library}{part.class_name}" for part in found.components.values()]
    assert not {"\x1b", "\u202e", "\x07"} & set("".join(texts))


@pytest.mark.parametrize("table", ["wan-t2v-14b", "wan-i2v-14b", "wan-vace-1.3b"])
def test_missing_shard_lowers_confidence_and_keeps_the_answer(table):
    tensors = original(table)
    half = {name: shape for name, shape in tensors.items() if not name.startswith(("head.", "blocks.1"))}
    found = detect(one_file("half.safetensors", half))
    check(found)
    assert found.is_wan
    assert found.confidence < 0.95
