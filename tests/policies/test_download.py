from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from wan_compat.policies.download import (
    DISK_RESERVE_BYTES,
    MAX_FILES,
    MAX_SMALL_BYTES,
    Listing,
    check_space,
    plan_code,
    plan_download,
    read_listing,
)
from wan_compat.protocol.errors import DiskExceeded, FetchFailed, ModelCorrupt, ModelIndexMissing, PickleRefused

COMMIT = "c" * 40
INDEX: dict[str, Any] = {
    "_class_name": "WanPipeline",
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer_2": [None, None],
}
MODEL = (
    "model_index.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "scheduler/scheduler_config.json",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer_config.json",
)


def listing(paths: Iterable[str], **sizes: int) -> Listing:
    files = [[path, sizes.get(path, 100), "a" * 40, "b" * 64] for path in paths]
    return read_listing("org/name", {"commit": COMMIT, "files": files})


def reasons(plan_or_listing: Any) -> dict[str, str]:
    return {item.path: item.reason for item in plan_or_listing.skipped}


def test_what_a_pipeline_opens_is_fetched_and_the_rest_has_a_reason() -> None:
    others = (
        "README.md",
        "assets/demo.mp4",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer_2/config.json",
        "wan.safetensors",
    )
    plan = plan_download(listing(MODEL + others), INDEX)
    assert [file.path for file in plan.files] == sorted(MODEL)
    assert set(reasons(plan)) == set(others)
    assert plan.bytes == 100  # one content under many names is one blob


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("pipeline.py", "code"),
        ("transformer/model.py", "code"),
        ("transformer/diffusion_pytorch_model.bin", "pickle"),
        ("transformer/diffusion_pytorch_model.safetensors", "duplicate"),
    ],
)
def test_code_pickles_and_duplicates_are_left_out_in_safe_mode(path: str, word: str) -> None:
    plan = plan_download(listing((*MODEL, path)), INDEX)
    assert word in reasons(plan)[path]
    assert path not in {file.path for file in plan.files}


def test_transformers_opens_the_whole_file_so_its_shards_are_the_duplicates() -> None:
    shards = tuple(f"text_encoder/model-0000{n}-of-00002.safetensors" for n in (1, 2))
    plan = plan_download(listing((*MODEL, *shards, "text_encoder/model.safetensors.index.json")), INDEX)
    assert all("duplicate" in reasons(plan)[path] for path in shards)


def test_in_trust_mode_sources_of_bounded_size_come_along() -> None:
    seen = listing((*MODEL, "pipeline.py", "huge.py"), **{"huge.py": 2 << 20})
    plan = plan_download(seen, INDEX, code=True)
    assert "pipeline.py" in {file.path for file in plan.files}
    assert "more than any source" in reasons(plan)["huge.py"]
    assert [file.path for file in plan_code(seen).files] == ["pipeline.py"]


@pytest.mark.parametrize(
    "path",
    [
        "../evil", "/etc/passwd", "a//b", "a/./b", "a\\..\\b", ".git/config", "a/.hidden", "x\x1b[2J", "a/" * 9 + "b",
        "", None, 7, "n" * 300, "\u202egnp.json",
    ],
)  # fmt: skip
def test_names_that_lead_out_or_cannot_be_shown_are_never_fetched(path: Any) -> None:
    seen = read_listing("org/name", {"commit": COMMIT, "files": [[path, 1, "a" * 40, None]]})
    assert not seen.files
    assert len(seen.skipped) == 1


@pytest.mark.parametrize(
    "entry",
    [
        ["a", -1, "a" * 40, None],
        ["a", True, "a" * 40, None],
        ["a", 1, "x", None],
        ["a", 1, "a" * 40, "B" * 64],
        "a",
        [],
    ],
)
def test_files_without_a_size_or_hash_are_never_fetched(entry: Any) -> None:
    assert not read_listing("org/name", {"commit": COMMIT, "files": [entry]}).files


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"commit": "main", "files": []},
        {"commit": COMMIT, "files": None},
        {"commit": COMMIT, "files": [[]] * (MAX_FILES + 1)},
    ],
)
def test_what_is_no_listing_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(FetchFailed):
        read_listing("org/name", document)


def test_a_path_listed_twice_keeps_its_first_meaning() -> None:
    files = [["a", 1, "a" * 40, None], ["a", 2, "b" * 40, None]]
    assert read_listing("org/name", {"commit": COMMIT, "files": files}).files["a"].size == 1


def test_weights_only_as_a_pickle_are_refused_before_anything_is_fetched() -> None:
    paths = [path for path in MODEL if not path.startswith("text_encoder/")]
    with pytest.raises(PickleRefused, match=r"text_encoder/pytorch_model\.bin"):
        plan_download(listing((*paths, "text_encoder/config.json", "text_encoder/pytorch_model.bin")), INDEX)


def test_a_configuration_of_gigabytes_is_refused() -> None:
    with pytest.raises(ModelCorrupt, match="limit"):
        plan_download(listing(MODEL, **{"transformer/config.json": MAX_SMALL_BYTES + 1}), INDEX)


def test_without_an_index_a_single_weight_file_is_fetched_and_many_are_not_guessed_among() -> None:
    assert [f.path for f in plan_download(listing(("lora.safetensors", "config.json", "x.png")), None).files] == [
        "config.json",
        "lora.safetensors",
    ]
    with pytest.raises(ModelIndexMissing, match="2 weight files"):
        plan_download(listing(("a.safetensors", "b.gguf")), None)
    with pytest.raises(ModelIndexMissing, match="no weight file"):
        plan_download(listing(("a.txt",)), None)


def test_too_little_disk_is_told_before_the_download() -> None:
    check_space("org/name", 0, 0, "/cache")
    check_space("org/name", 1 << 30, (1 << 30) + DISK_RESERVE_BYTES, "/cache")
    with pytest.raises(DiskExceeded, match=r"/cache has 1\.07 GB left"):
        check_space("org/name", 1 << 30, 1 << 30, "/cache")
