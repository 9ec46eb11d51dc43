"""The tiny checkpoints: complete, small, and the same every time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.assets.tiny_wan import build, tiny_model


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("kind", "pipeline"),
    [
        ("t2v", "WanPipeline"),
        ("a14b", "WanPipeline"),
        ("ti2v", "WanPipeline"),
        ("i2v", "WanImageToVideoPipeline"),
        ("i2v22", "WanImageToVideoPipeline"),
        ("vace", "WanVACEPipeline"),
    ],
)
def test_each_kind_is_a_folder_in_the_official_layout_below_four_megabytes(kind: str, pipeline: str) -> None:
    folder = tiny_model(kind)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == pipeline
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert index[part][0] is not None and (folder / part).is_dir()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 4 << 20


@pytest.mark.long
def test_the_same_kind_is_built_to_the_same_bytes(tmp_path: Path) -> None:
    build("t2v", tmp_path / "again")
    assert digests(tmp_path / "again") == digests(tiny_model("t2v"))
