"""Parts that do not fit together, and configurations that do not fit their weights."""

from __future__ import annotations

import pytest

from tests.assets.corpus.tables import recorded_config
from tests.assets.corpus.tensors import fp8_scaled, prefixed
from tests.policies.judgement.drafts import Change, Draft, codes, image_to_video, tensors, text_to_video, the
from wan_compat.policies.facts import TensorFact
from wan_compat.policies.findings import Severity


def take(component: str, table: str) -> Change:
    """Replace a component, configuration and weights, by another model's."""

    def change(draft: Draft) -> None:
        path = next(path for path in draft.weights if path.startswith(f"{component}/"))
        draft.documents[f"{component}/config.json"] = recorded_config(table)
        draft.weights[path] = tensors(table)

    return change


def set_config(component: str, **changes: object) -> Change:
    return lambda draft: draft.config(component).update(changes)


def drop_field(component: str, name: str) -> Change:
    return lambda draft: draft.config(component).pop(name)


ROWS: list[tuple[str, Change, str, str, tuple[str, ...]]] = [
    ("a VAE of 2.2 under 2.1", take("vae", "vae-wan2.2"), "transformer_vae_mismatch", "vae", ("16", "48", "2.2's VAE")),
    ("another text encoder", lambda d: (d.drop("text_encoder/model"), d.config("text_encoder").update(d_model=2048)), "text_encoder_mismatch", "text_encoder", ("4096", "2048")),
    ("weights of another model", lambda d: d.weights.update({"transformer/diffusion_pytorch_model.safetensors": tensors("wan-t2v-14b")}), "header_against_config", "transformer", ("5120", "1536")),
    ("another in_channels", set_config("transformer", in_channels=36), "header_against_config", "transformer", ("in_channels is 36", "have 16")),
    ("no ffn_dim", drop_field("transformer", "ffn_dim"), "header_against_config", "transformer", ("leaves ffn_dim at 13824", "8960")),
    ("an image embedder on paper", set_config("transformer", image_dim=1280, added_kv_proj_dim=1536), "header_against_config", "transformer", ("image embedder",)),
    ("another z_dim", set_config("vae", z_dim=48), "header_against_config", "vae", ("48", "16")),
    ("weights of a VAE as transformer", lambda d: d.weights.update({"transformer/diffusion_pytorch_model.safetensors": tensors("vae-wan2.1")}), "header_against_config", "transformer", ("weights of a vae",)),
    ("a boundary without an expert", lambda d: d.index.update(boundary_ratio=0.875), "boundary_without_second_expert", "transformer_2", ("0.875",)),
    ("an image encoder for nobody", lambda d: d.index.update(image_encoder=["transformers", "CLIPVisionModel"]), "image_encoder_mismatch", "image_encoder", ("no image embedder",)),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "component", "words"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_what_does_not_fit_is_told_with_both_values(
    change: Change, code: str, component: str, words: tuple[str]
) -> None:
    draft = text_to_video()
    change(draft)
    matching = [item for item in draft.judged() if item.code == code]
    assert matching and all(item.component == component for item in matching), codes(draft.judged())
    assert all(word in " | ".join(item.message for item in matching) for word in words), matching


def test_a_second_expert_needs_its_boundary() -> None:
    draft = text_to_video("wan-t2v-14b", experts=2)
    draft.index["boundary_ratio"] = None
    found = the(draft.judged(), "second_expert_without_boundary")
    assert found.severity is Severity.ERROR and "--repair" in found.fix


def test_experts_of_two_models_differ() -> None:
    draft = text_to_video("wan-t2v-14b", experts=2)
    take("transformer_2", "wan-t2v-1.3b")(draft)
    messages = [item.message for item in draft.judged() if item.code == "experts_differ"]
    assert any("5120 in transformer and 1536 in transformer_2" in message for message in messages), messages
    take("transformer_2", "wan-i2v-14b")(draft)
    messages = [item.message for item in draft.judged() if item.code == "experts_differ"]
    assert any("only transformer_2 has an image embedder" in message for message in messages), messages


def test_an_image_embedder_needs_an_image_encoder_of_its_width() -> None:
    draft = image_to_video()
    draft.config("image_encoder")["hidden_size"] = 1024
    draft.drop("image_encoder/model")
    assert "image_encoder_mismatch" in codes(draft.judged())
    draft = image_to_video()
    del draft.index["image_encoder"]
    found = the(draft.judged(), "image_encoder_mismatch")
    assert found.severity is Severity.ERROR and "names no image_encoder" in found.message


def test_fields_of_another_program_are_told() -> None:
    draft = text_to_video()
    config = draft.config("transformer")
    for name in ("num_attention_heads", "in_channels", "ffn_dim", "num_layers"):
        config.pop(name, None)
    config |= {"dim": 1536, "num_heads": 12, "in_dim": 16, "model_type": "t2v"}
    found = the(draft.judged(), "config_fields_ignored")
    assert found.severity is Severity.WARNING and "dim" in found.message


def typed(names: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, TensorFact]:
    return {name: TensorFact(dtype, shape, 1) for name, (dtype, shape) in names.items()}


def test_scaled_fp8_cannot_be_loaded_and_plain_fp8_can() -> None:
    from tests.assets.corpus.tensors import original_names

    path = "transformer/diffusion_pytorch_model.safetensors"
    draft = text_to_video()
    draft.weights[path] = typed(fp8_scaled(original_names("wan-t2v-1.3b")))
    assert the(draft.judged(), "fp8_scaled").severity is Severity.ERROR
    draft.weights[path] = tensors("wan-t2v-1.3b", "F8_E4M3")
    judged = draft.judged()
    assert the(judged, "quantized").severity is Severity.INFO and "not_runnable_yet" not in codes(judged)


def test_packed_weights_cannot_be_run_here() -> None:
    draft = text_to_video()
    found = draft.tensors("transformer")
    for name in [name for name in found if name.endswith("to_q.weight")]:
        found[f"{name}.absmax"] = TensorFact("U8", (100,), 100)
    judged = draft.judged()
    assert (
        "bitsandbytes" in the(judged, "quantized").message and "bitsandbytes" in the(judged, "not_runnable_yet").message
    )


def test_a_prefix_is_an_error_in_a_component_and_a_warning_in_a_file() -> None:
    from tests.assets.corpus.tables import recorded_tensors

    named = {
        name: TensorFact("BF16", shape, 1)
        for name, shape in prefixed(recorded_tensors("wan-t2v-1.3b"), "model.diffusion_model.").items()
    }
    draft = text_to_video()
    draft.weights["transformer/diffusion_pytorch_model.safetensors"] = named
    assert the(draft.judged(), "key_prefix_unusual").severity is Severity.ERROR
    alone = Draft({}, {"wan.safetensors": named}, set(), is_file=True)
    alone.known_as(layout="single_file")
    found = the(alone.judged(), "key_prefix_unusual")
    assert found.severity is Severity.WARNING and "model.diffusion_model." in found.message


def test_names_of_the_original_program_in_a_component_are_another_layout() -> None:
    from tests.assets.corpus.tensors import original_names

    draft = text_to_video()
    draft.weights["transformer/diffusion_pytorch_model.safetensors"] = {
        name: TensorFact("BF16", shape, 1) for name, shape in original_names("wan-t2v-1.3b").items()
    }
    assert the(draft.judged(), "layout_not_diffusers").component == "transformer"


def test_several_precisions_are_noted() -> None:
    draft = text_to_video()
    found = draft.tensors("transformer")
    name = next(iter(found))
    found[name] = TensorFact("F32", found[name].shape, 4 * found[name].bytes)
    assert "F32" in the(draft.judged(), "dtype_mixed").message
