"""`wan-compat test-load` as a shell sees it: verdict, document, exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import RunCli
from tests.workers import broken
from wan_compat.supervisor.demo import demo_model

MODEL = demo_model()


def test_a_model_that_loads_and_generates_exits_with_0(cli: RunCli, cwd: Path, tmp_path: Path) -> None:
    ended = cli("test-load", MODEL, "--smoke-test", "--runs", "2", "--json")
    assert ended.code == 0, ended
    document = ended.document
    assert (document["verdict"], document["success"], document["output"]) == ("generates", True, None)
    assert document["smoke_test"]["output_shape"] == [5, 64, 96, 3] and document["smoke_test"]["errors"] == []
    assert len(document["memory_test"]["samples"]) == 2 and document["performance"]["seconds"] > 0
    assert document["timings"]["load_s"] > 0 and document["sandbox"]["self_test"]
    assert not list(cwd.iterdir()), "nothing is written where it was called"
    assert (tmp_path / "state" / "wan-compat" / "performance.json").is_file()


@pytest.mark.long
def test_loading_alone_is_one_line(cli: RunCli) -> None:
    ended = cli("test-load", MODEL)
    assert ended.code == 0, ended
    assert ended.out.startswith("It loads: WanPipeline loaded in ") and len(ended.out.splitlines()) == 1


def test_no_usable_clip_is_a_failed_generation(cli: RunCli, tmp_path: Path) -> None:
    model = broken.copy("t2v", tmp_path)
    broken.fill(model, "vae", "decoder.conv_out.bias", float("nan"))
    ended = cli("test-load", model, "--smoke-test", "--runs", "1", "--json")
    assert ended.code == 7, ended
    assert ended.document["error"]["code"] == "unusable_frames"


@pytest.mark.parametrize(
    ("arguments", "code", "name"),
    [
        (["nowhere"], 4, "model_not_found"),
        ([MODEL, "--runs", "2"], 2, "invalid_request"),
        ([MODEL, "--smoke-test", "--runs", "0"], 2, "invalid_request"),
        ([MODEL, "--task", "animate"], 2, "invalid_request"),
        ([MODEL, "--mode", "trust"], 5, "trust_refused"),
        ([MODEL, "--memory-limit", "500GiB"], 6, "memory_exceeded"),
        ([MODEL, "--min-tier", "E"], 5, "refused_by_policy"),
    ],
)
def test_refusals_have_the_codes_of_generate(arguments: list[str], code: int, name: str, cli: RunCli) -> None:
    ended = cli("test-load", *arguments, "--json")
    assert (ended.code, ended.document["error"]["code"]) == (code, name), ended
