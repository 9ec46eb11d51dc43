"""LoRAs at their real sizes: every spelling finds its layers, what is for another model is refused, nothing is lost."""

from __future__ import annotations

import pytest

from tests.assets.corpus.tables import recorded_tensors
from tests.assets.corpus.tensors import lora, original_names
from tests.policies.detection import drafts as d
from wan_compat.policies.sources.lora import match_lora
from wan_compat.protocol.errors import InvalidRequest, ModelInvalid, ModelNotCompatible, PickleRefused
from wan_compat.protocol.sources import LoraLayer
from wan_compat.protocol.values import LoraRequest

LINEAR = 400  # linear layers in the blocks of the 14B model: ten in each of forty


def experts(name="wan-t2v-14b", count=1):
    tensors = d.header("x", recorded_tensors(name)).tensors
    return dict.fromkeys(("transformer", "transformer_2")[:count], tensors)


def match(shapes, model=None, name="lora.safetensors", **wanted):
    request = LoraRequest(path=f"/models/{name}", **wanted)
    return match_lora(d.one_file(name, shapes), request, "loras/1.safetensors", model or experts())


SPELLINGS = {
    "diffusers": lora(recorded_tensors("wan-t2v-14b"), rank=16, style="peft", prefix="transformer."),
    "peft": lora(recorded_tensors("wan-t2v-14b"), rank=16, style="peft", prefix="base_model.model."),
    "original": lora(original_names("wan-t2v-14b"), rank=16, style="peft", prefix="diffusion_model."),
    "lightx2v": lora(original_names("wan-t2v-14b"), rank=16, style="lightx2v", prefix="diffusion_model."),
    "kohya": lora(original_names("wan-t2v-14b"), rank=16, style="kohya", prefix=""),
    "kohya of diffusers": lora(recorded_tensors("wan-t2v-14b"), rank=16, style="kohya", prefix=""),
    "bare": lora(original_names("wan-t2v-14b"), rank=16, style="peft", prefix=""),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_finds_every_layer_and_travels_as_a_few_templates(spelling):
    (found,) = match(SPELLINGS[spelling])
    assert (found.report.matched, found.report.unmatched) == (LINEAR, 0)
    assert found.spec.layers == LINEAR and len(found.spec.adapted) == 10
    assert {layer.target for layer in found.spec.adapted} >= {"blocks.*.attn1.to_q", "blocks.*.ffn.net.0.proj"}


def test_differences_of_weights_biases_and_norms_are_layers_too():
    shapes = SPELLINGS["lightx2v"] | {
        "diffusion_model.blocks.0.self_attn.q.diff_b": (5120,),
        "diffusion_model.blocks.0.norm3.diff": (5120,),
        "diffusion_model.patch_embedding.diff": (5120, 16, 1, 2, 2),
        "diffusion_model.head.modulation.diff": (1, 2, 5120),
    }
    (found,) = match(shapes)
    assert (found.report.matched, found.report.unmatched) == (LINEAR + 3, 0)
    assert (
        LoraLayer(target="scale_shift_table", difference="diffusion_model.head.modulation.diff") in found.spec.adapted
    )


def test_names_that_belong_to_nothing_are_counted_and_named():
    image = {"diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight": (16, 5120), "note": (1,)}
    (found,) = match(SPELLINGS["original"] | image)
    assert (found.report.matched, found.report.unmatched) == (LINEAR, 2)
    assert found.report.unmatched_names == list(image)


def test_half_of_a_pair_is_no_layer():
    shapes = dict(SPELLINGS["original"])
    del shapes["diffusion_model.blocks.3.self_attn.q.lora_B.weight"]
    (found,) = match(shapes)
    assert (found.report.matched, found.report.unmatched) == (LINEAR - 1, 1)
    # The template of these queries would take the lone half along, so that they are written out.
    assert (
        LoraLayer(
            target="blocks.4.attn1.to_q",
            down="diffusion_model.blocks.4.self_attn.q.lora_A.weight",
            up="diffusion_model.blocks.4.self_attn.q.lora_B.weight",
        )
        in found.spec.adapted
    )


@pytest.mark.parametrize(
    ("name", "wanted", "on"),
    [
        ("wan2.2_high_noise_lora.safetensors", {}, ["transformer"]),
        ("Lightning-LOW-noise.safetensors", {}, ["transformer_2"]),
        ("wan2.2_high_noise_lora.safetensors", {"expert": "low"}, ["transformer_2"]),
        ("style.safetensors", {}, ["transformer", "transformer_2"]),
        ("highway_following.safetensors", {}, ["transformer", "transformer_2"]),
        ("high_and_low.safetensors", {}, ["transformer", "transformer_2"]),
    ],
)
def test_expert_is_told_by_the_user_else_by_the_name_else_both(name, wanted, on):
    found = match(SPELLINGS["original"], experts(count=2), name, **wanted)
    assert [item.spec.component for item in found] == on


def test_file_with_both_experts_is_divided():
    shapes = lora(recorded_tensors("wan-t2v-14b"), rank=4, style="peft", prefix="transformer.")
    shapes |= lora(recorded_tensors("wan-t2v-14b"), rank=8, style="peft", prefix="transformer_2.")
    first, second = match(shapes, experts(count=2))
    assert {first.report.matched, second.report.matched} == {LINEAR}
    assert all(layer.down.startswith("transformer_2.") for layer in second.spec.adapted)
    assert not any(layer.down.startswith("transformer_2.") for layer in first.spec.adapted)


SMALL = lora(original_names("wan-t2v-1.3b"), rank=16, style="peft", prefix="diffusion_model.")


@pytest.mark.parametrize(
    ("shapes", "error", "words"),
    [
        (SMALL, ModelInvalid, r"has matrices of shapes \(1536, 16\) and \(16, 1536\)"),
        ({"lora_unet_down_blocks_0_attn.lora_down.weight": (4, 320), "lora_unet_down_blocks_0_attn.lora_up.weight": (320, 4)}, ModelInvalid, "no layer of the LoRA"),
        ({"blocks.0.self_attn.q.lokr_w1": (4, 4)}, ModelNotCompatible, "is a LoKr"),
        ({"blocks.0.self_attn.q.lora_A.weight": (4, 5120), "blocks.0.self_attn.q.dora_scale": (5120,)}, ModelNotCompatible, "is a DoRA"),
        ({"blocks.0.self_attn.q.diff_b": (3,)}, ModelInvalid, "a difference of shape"),
        ({"head.modulation.lora_A.weight": (4, 5120), "head.modulation.lora_B.weight": (2, 4)}, ModelInvalid, "not there"),
        (original_names("wan-t2v-14b"), ModelInvalid, "no layer of the LoRA"),
    ],
)  # fmt: skip
def test_lora_for_another_model_or_of_another_kind_is_refused(shapes, error, words):
    with pytest.raises(error, match=words):
        match(shapes)


def test_expert_of_a_model_that_has_one_transformer_is_a_mistake():
    with pytest.raises(InvalidRequest, match="has one transformer"):
        match(SPELLINGS["original"], expert="low")


def test_pickled_lora_is_never_opened():
    request = LoraRequest(path="/models/lora.pt")
    with pytest.raises((ModelInvalid, PickleRefused), match="no LoRA in safetensors"):
        match_lora(d.facts(others=("lora.pt",), root="/models/lora.pt"), request, "loras/1.safetensors", experts())
