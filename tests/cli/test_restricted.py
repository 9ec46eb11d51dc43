"""`generate --restricted`: the option, its document, and silence about it in a refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.assets.tiny_wan import tiny_model
from tests.cli.conftest import RunCli

SMALL = ("--width", "96", "--height", "64", "--num-frames", "5", "--num-inference-steps", "1", "--prompt", "x")


def test_a_repository_with_restricted_code_makes_a_video_if_asked_and_only_then(cli: RunCli, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model("t2v"), model)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"_class_name": ["pipeline", "generate"]}))
    (model / "pipeline.py").write_text("def generate(pipe, request):\n    return pipe().flip(-1)\n")
    ended = cli("generate", model, *SMALL, "--restricted", "--json", "--output", "x.mp4")
    assert ended.code == 0, ended
    assert ended.document["code"]["restricted"] and list(ended.document["code"]["files"]) == ["pipeline.py"]
    assert ended.document["output"]["num_frames"] == 5
    refused = cli("generate", model, *SMALL, "--output", "y.mp4")
    assert refused.code == 5 and "restricted" not in refused.err
    both = cli("generate", model, *SMALL, "--restricted", "--mode", "trust", "--output", "y.mp4")
    assert both.code == 2 and "--restricted is of safe mode" in both.err
