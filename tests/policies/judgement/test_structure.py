"""Missing, malformed and misplaced parts: one change to a sound model, one finding."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policies.judgement.drafts import Change, Draft, codes, image_to_video, split, tensors, text_to_video, the
from wan_compat.policies.findings import Severity, finding


@pytest.mark.parametrize(
    "draft",
    [
        text_to_video(),
        image_to_video(),
        text_to_video("wan-t2v-14b", experts=2),
        text_to_video("wan-ti2v-5b", "vae-wan2.2"),
    ],
    ids=["t2v-1.3b", "i2v-14b", "a14b", "ti2v-5b"],
)
def test_sound_models_have_no_errors_but_what_this_version_cannot_run(draft: Draft) -> None:
    errors = [item for item in draft.judged() if item.severity is Severity.ERROR]
    assert {item.code for item in errors} <= {"not_runnable_yet"}, errors


def set_index(**changes: Any) -> Change:
    return lambda draft: draft.index.update(changes)


def set_config(component: str, **changes: Any) -> Change:
    return lambda draft: draft.config(component).update(changes)


ROWS: list[tuple[str, Change, str, str | None, tuple[str, ...]]] = [
    ("no _class_name", lambda d: d.index.pop("_class_name"), "wrong_type", None, ("_class_name",)),
    ("a number as _class_name", set_index(_class_name=7), "wrong_type", None, ("7",)),
    ("a text as vae", set_index(vae="AutoencoderKLWan"), "wrong_type", "vae", ("'AutoencoderKLWan'",)),
    ("half a pair", set_index(transformer=["diffusers"]), "wrong_type", "transformer", ("['diffusers']",)),
    ("a class without library", set_index(vae=[None, "AutoencoderKLWan"]), "wrong_type", "vae", ("both be null",)),
    ("a text as boundary", set_index(boundary_ratio="0.9"), "wrong_type", None, ("'0.9'",)),
    ("true as boundary", set_index(boundary_ratio=True), "wrong_type", None, ("True",)),
    ("a boundary of 90", set_index(boundary_ratio=90), "out_of_range", None, ("90", "0 to 1")),
    ("a text as expand_timesteps", set_index(expand_timesteps="no"), "wrong_type", None, ("'no'",)),
    ("no vae in the index", lambda d: d.index.pop("vae"), "component_missing", "vae", ("names no vae",)),
    ("null vae in the index", set_index(vae=[None, None]), "component_missing", "vae", ("names no vae",)),
    ("no transformer in the index", lambda d: d.index.pop("transformer"), "component_missing", "transformer", ()),
    ("no vae folder", lambda d: d.drop("vae/"), "component_missing", "vae", ("vae/ is missing",)),
    ("no tokenizer folder", lambda d: d.drop("tokenizer/"), "component_missing", "tokenizer", ()),
    ("no config.json", lambda d: d.drop("vae/config"), "component_config_missing", "vae", ("config.json",)),
    ("no scheduler settings", lambda d: (d.drop("scheduler/"), d.others.add("scheduler/x")), "component_config_missing", "scheduler", ("scheduler_config.json",)),
    ("no tokenizer file", lambda d: d.drop("tokenizer/tokenizer.json"), "component_config_missing", "tokenizer", ("spiece.model",)),
    ("no weights", lambda d: d.drop("vae/diffusion"), "weights_missing", "vae", ("no weights",)),
    (
        "weights under another name",
        lambda d: d.rename("transformer/diffusion_pytorch_model.safetensors", "transformer/wan.safetensors"),
        "weights_missing",
        "transformer",
        ("wan.safetensors", "diffusion_pytorch_model.safetensors"),
    ),
    (
        "weights only as a variant",
        lambda d: d.rename(
            "transformer/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.fp16.safetensors"
        ),
        "weights_missing",
        "transformer",
        ("only in another precision",),
    ),
    ("a text as in_channels", set_config("transformer", in_channels="16"), "wrong_type", "transformer", ("'16'",)),
    ("true as z_dim", set_config("vae", z_dim=True), "wrong_type", "vae", ("True",)),
    ("no layers at all", set_config("transformer", num_layers=0), "out_of_range", "transformer", ("num_layers=0",)),
    ("a huge width", set_config("transformer", ffn_dim=1 << 40), "out_of_range", "transformer", ("ffn_dim",)),
    ("two sides of a patch", set_config("transformer", patch_size=[1, 2]), "wrong_type", "transformer", ("[1, 2]",)),
    ("an empty patch", set_config("transformer", patch_size=[1, 0, 2]), "out_of_range", "transformer", ("[1, 0, 2]",)),
    ("a text in a patch", set_config("transformer", patch_size="abc"), "wrong_type", "transformer", ("'abc'",)),
    ("a text as eps", set_config("transformer", eps="small"), "wrong_type", "transformer", ("eps='small'",)),
    ("a negative eps", set_config("transformer", eps=-1.0), "out_of_range", "transformer", ("eps=-1.0",)),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "component", "words"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS])
def test_one_broken_thing_is_one_finding(change: Change, code: str, component: str | None, words: tuple[str]) -> None:
    draft = text_to_video()
    change(draft)
    found = the(draft.judged(), code)
    assert found.component == component and found.severity is Severity.ERROR and found.path and found.fix
    assert all(word in found.message for word in words), found.message


def test_a_second_expert_alone_lacks_the_first() -> None:
    draft = text_to_video("wan-t2v-14b", experts=2)
    draft.index["transformer"] = [None, None]
    draft.drop("transformer/")
    assert "high-noise" in the(draft.judged(), "component_missing").message
    draft.index["boundary_ratio"] = 1.0  # every step is the other expert's
    assert "component_missing" not in codes(draft.judged())


def test_an_unreadable_index_is_told_with_the_parts_that_remain() -> None:
    draft = text_to_video()
    del draft.documents["model_index.json"]
    draft.others.add("model_index.json")
    draft.problems = (finding("json_corrupt", "model_index.json: line 1", path="model_index.json"),)
    judged = draft.judged()
    assert "json_corrupt" in codes(judged)
    found = the(judged, "model_index_corrupt")
    assert "transformer" in found.message and "--repair" in found.fix


def test_a_folder_of_parts_without_index_is_an_error_and_a_lone_part_a_warning() -> None:
    draft = text_to_video()
    del draft.documents["model_index.json"]
    assert the(draft.judged(), "model_index_missing").severity is Severity.ERROR
    alone = Draft({"config.json": {"_class_name": "AutoencoderKLWan"}}, {"x.safetensors": tensors("vae-wan2.1")}, set())
    alone.known_as(layout="component", is_wan=None)
    assert the(alone.judged(), "model_index_missing").severity is Severity.WARNING


def test_an_empty_folder_is_no_model() -> None:
    draft = Draft({}, {}, {"README.md"})
    draft.known_as(is_wan=None, layout="unknown", variant=None, pipeline_class=None)
    assert codes(draft.judged()) == ["empty_model"]


def test_the_original_layout_names_the_repository_to_use() -> None:
    draft = Draft(
        {"config.json": {"model_type": "t2v", "dim": 1536}}, {"m.safetensors": tensors("wan-t2v-1.3b")}, set()
    )
    draft.known_as(layout="original")
    found = the(draft.judged(), "layout_not_diffusers")
    assert "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in found.message and "convert" in found.fix
    draft.known_as(variant=None)
    assert "same model" in the(draft.judged(), "layout_not_diffusers").fix


def shard_rows() -> list[tuple[str, Change, str, tuple[str, ...]]]:
    def lose(draft: Draft) -> None:
        del draft.weights[split(draft, "transformer", 3)[1]]

    def lose_without_index(draft: Draft) -> None:
        del draft.weights[split(draft, "transformer", 3, index=False)[2]]

    def no_index(draft: Draft) -> None:
        split(draft, "transformer", 3, index=False)

    def elsewhere(draft: Draft) -> None:
        split(draft, "transformer", 2)
        draft.documents["transformer/diffusion_pytorch_model.safetensors.index.json"]["weight_map"]["x.y"] = (
            "other.safetensors"
        )

    def lying(draft: Draft) -> None:
        first, second = split(draft, "transformer", 2)
        name = next(iter(draft.weights[first]))
        weight_map = draft.documents["transformer/diffusion_pytorch_model.safetensors.index.json"]["weight_map"]
        weight_map[name] = second.rpartition("/")[2]

    def no_map(draft: Draft) -> None:
        split(draft, "transformer", 2)
        draft.documents["transformer/diffusion_pytorch_model.safetensors.index.json"]["weight_map"] = [1]

    def escaping(draft: Draft) -> None:
        split(draft, "transformer", 2)
        weight_map = draft.documents["transformer/diffusion_pytorch_model.safetensors.index.json"]["weight_map"]
        weight_map["evil"] = "../../../etc/passwd"

    def twice(draft: Draft) -> None:
        first, second = split(draft, "transformer", 2, index=False)
        name = next(iter(draft.weights[first]))
        draft.weights[second][name] = draft.weights[first][name]

    def beside_whole(draft: Draft) -> None:
        whole = dict(draft.tensors("transformer"))
        split(draft, "transformer", 2)
        draft.weights["transformer/diffusion_pytorch_model.safetensors"] = whole

    def too_many(draft: Draft) -> None:
        draft.rename(
            "transformer/diffusion_pytorch_model.safetensors",
            "transformer/diffusion_pytorch_model-00001-of-99999.safetensors",
        )

    return [
        ("a shard is gone", lose, "shard_missing", ("1 of 3 shards", "00002-of-00003")),
        ("the last shard is gone", lose_without_index, "shard_missing", ("00003-of-00003",)),
        ("no index", no_index, "shard_index_mismatch", ("no diffusion_pytorch_model.safetensors.index.json",)),
        ("the index names a file that is not there", elsewhere, "shard_missing", ("other.safetensors",)),
        ("the index puts a tensor elsewhere", lying, "shard_index_mismatch", ("lacks",)),
        ("no weight_map", no_map, "wrong_type", ("weight_map",)),
        ("a way out", escaping, "path_escape", ("../../../etc/passwd",)),
        ("a tensor in two shards", twice, "tensors_duplicate", ("1 tensor in two files",)),
        ("a whole file beside shards", beside_whole, "tensors_duplicate", ("in two files",)),
        ("99999 shards", too_many, "shard_index_mismatch", ("99999",)),
    ]


@pytest.mark.parametrize(("change", "code", "words"), [r[1:] for r in shard_rows()], ids=[r[0] for r in shard_rows()])
def test_shards_that_are_not_whole_are_told(change: Change, code: str, words: tuple[str]) -> None:
    draft = text_to_video()
    change(draft)
    matching = [item for item in draft.judged() if item.code == code]
    assert matching and all(item.severity is Severity.ERROR and item.path for item in matching)
    assert all(word in " ".join(item.message for item in matching) for word in words), matching


def test_a_variant_beside_the_default_is_no_duplicate() -> None:
    draft = text_to_video()
    draft.weights["vae/diffusion_pytorch_model.fp16.safetensors"] = tensors("vae-wan2.1", "F16")
    assert "tensors_duplicate" not in codes(draft.judged())
