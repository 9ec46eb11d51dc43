"""`wan-compat plan`: before anything is loaded, without torch, in a moment."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.assets import single_files as made
from tests.assets.corpus.repositories import BUILDERS
from tests.assets.tiny_wan import tiny_model
from wan_compat.policies.planning.contract import OptimizationPlan
from wan_compat.policies.policy import Policy
from wan_compat.protocol.plan import Cache, LayerwiseCasting, Offload
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor import installed
from wan_compat.supervisor.cli import plan_options
from wan_compat.supervisor.cli.main import main
from wan_compat.supervisor.plan_report import plan_model

CONTRACT = (
    "use_mixed_precision",
    "enable_cpu_offload",
    "offload_strategy",
    "chunk_frames",
    "max_chunk_size",
    "estimated_vram_reduction",
)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(scope="module")
def a14b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a14b") / "model"
    BUILDERS["Wan-AI/Wan2.2-T2V-A14B-Diffusers"](folder)
    return folder


def test_the_document_has_phases_plan_and_verdict(a14b, capsys):
    code, out, err = run(capsys, "plan", a14b, "--vram", "24GB", "--ram", "100GB", "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert set(document["phases"]) == {"text_encode", "denoise_high", "denoise_low", "decode"}
    for phase in document["phases"].values():
        assert 0 < phase["vram_bytes"] <= 24e9 and 0 < phase["ram_bytes"] <= 100e9
    assert document["fits"] is True and document["reasons"]
    assert set(CONTRACT) <= set(document["plan"]) and document["plan"]["offload"] == "group"
    assert document["remarks"] and "untested" in document["remarks"][0]


def test_what_does_not_fit_ends_with_6_and_names_what_would(a14b, capsys):
    code, out, _ = run(capsys, "plan", a14b, "--vram", "0", "--ram", "4GB")
    assert code == 6
    assert "does not fit" in out and "Instead: ask for --num-frames" in out
    code, out, _ = run(capsys, "plan", a14b, "--vram", "0", "--ram", "4GB", "--json")
    document = json.loads(out)
    assert code == 6 and document["fits"] is False
    smaller = [text for key, value in document["nearest"].items() for text in (f"--{key.replace('_', '-')}", value)]
    assert run(capsys, "plan", a14b, "--vram", "0", "--ram", "4GB", *smaller)[0] == 0


def test_a_table_for_people(capsys):
    code, out, _ = run(capsys, "plan", tiny_model("a14b"), "--width", 96, "--height", 64, "--num-frames", 9)
    assert code == 0
    for word in ("text_encode", "denoise_high", "denoise_low", "decode", "fits: cpu, the fastest way\n"):
        assert word in out


def test_a_plan_without_offload_is_not_called_none(capsys):
    small = ("--width", 96, "--height", 64, "--num-frames", 9)
    code, out, _ = run(capsys, "plan", tiny_model("t2v"), *small, "--vram", "24GB", "--ram", "64GB")
    assert code == 0 and "fits: no offload, the fastest way\n" in out


def test_a_lora_that_is_not_there_is_called_one(capsys):
    code, _, err = run(capsys, "plan", tiny_model("t2v"), "--lora", "nowhere.safetensors")
    assert code == 4 and "the LoRA 'nowhere.safetensors' is not there" in err


def test_pictures_need_not_be_there_to_plan_for_them(capsys):
    arguments = ("--width", 96, "--height", 64, "--num-frames", 9, "--json")
    for kind, task in (("i2v", "i2v"), ("i2v22", "flf2v"), ("t2v", "v2v"), ("vace", "vace"), ("ti2v", "ti2v")):
        code, out, err = run(capsys, "plan", tiny_model(kind), "--task", task, *arguments)
        assert code == 0, err
        assert json.loads(out)["task"] == task


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Return the document of a plan for a small clip on a CPU."""
    size = ("--width", 96, "--height", 64, "--num-frames", 9, "--vram", 0, "--precision", "bfloat16", "--json")
    code, out, err = run(capsys, "plan", *arguments, *size)
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


def weights(document: dict[str, Any]) -> int:
    found: int = document["phases"]["denoise_high"]["weights_bytes"]
    return found


def test_single_files_are_planned_with_by_what_they_become_in_memory(capsys, tmp_path):
    folder = made.wide_model(tmp_path / "wide")
    tensors = made.load(folder, "transformer")
    matrices = {name for name, tensor in tensors.items() if "blocks." in name and tensor.ndim == 2}
    whole = planned(capsys, folder)
    assert whole["parts"] == []
    file = made.original_file(folder, "transformer", tmp_path / "wan.safetensors")
    for arguments in ((file, "--components", folder), (folder, "--transformer", file)):
        single = planned(capsys, *arguments)
        assert (single["parts"], single["phases"]) == (["transformer:safetensors"], whole["phases"])
    fp8, _ = made.scaled_fp8(tensors, lambda name: name in matrices)
    fp8_file = made.save_raw({k: v for k, v in fp8.items() if k != "scaled_fp8"}, tmp_path / "fp8.safetensors")
    assert weights(planned(capsys, fp8_file, "--components", folder)) == weights(whole)  # multiplied out
    made.save_gguf(tensors, tmp_path / "wan.gguf", "Q4_0", lambda name: name in matrices)
    blocks = planned(capsys, tmp_path / "wan.gguf", "--components", folder)
    saved = sum(tensors[name].size for name in matrices) * (2 - 18 / 32)  # 32 numbers in 18 bytes stay as they are
    assert (blocks["parts"], weights(whole) - weights(blocks)) == (["transformer:gguf"], int(saved))


def test_weights_in_fewer_bits_and_loras_are_planned_with(capsys, tmp_path, monkeypatch):
    folder = tiny_model("t2v_mid")
    monkeypatch.setattr(installed, "find_version", lambda name, *_: "1" if name == "torchao" else None)
    whole, folded = planned(capsys, folder), planned(capsys, folder, "--quantize", "transformer=int8")
    assert folded["parts"] == ["transformer:torchao-int8"] and weights(folded) < weights(whole)
    tensors = made.load(folder, "transformer")
    lora = made.lora_file(made.lora_for(tensors, ["blocks.0.attn1.to_q"]), "diffusers", tmp_path / "a.safetensors")
    laid = planned(capsys, folder, "--lora", f"{lora}:0.5")
    assert (laid["parts"], laid["phases"]) == (["transformer:lora"], whole["phases"])  # added to the weights
    ways = {item["name"] for item in laid["weighed"]}
    assert {item["name"] for item in whole["weighed"]} - ways, "weights that are changed cannot stay in their files"
    over_folded = planned(capsys, folder, "--quantize", "transformer=int8", "--lora", lora)
    assert weights(over_folded) > weights(folded)  # kept beside what cannot be changed


def test_parts_that_do_not_fit_end_as_generate_does(capsys, tmp_path):
    folder = tiny_model("t2v")
    file = made.original_file(folder, "transformer", tmp_path / "wan.safetensors")
    assert run(capsys, "plan", file)[0] == 2
    assert run(capsys, "plan", folder, "--vae", file)[0] == 2
    assert run(capsys, "plan", folder, "--quantize", "transformer=int9")[0] == 2
    assert run(capsys, "plan", folder, "--lora", file)[0] == 4


def test_modular_blocks_are_planned_with_what_they_can_do_and_not_offered_the_rest(capsys):
    def plan(kind: str, vram: str) -> tuple[dict[str, Any], set[str]]:
        size = ("--height", 480, "--width", 832, "--num-frames", 81)
        document = json.loads(run(capsys, "plan", tiny_model(kind), *size, "--vram", vram, "--json")[1])
        return document["phases"], {item["name"] for item in document["weighed"]}

    (blocks, ways), (ordinary, _) = plan("modular_t2v", "0"), plan("t2v", "0")
    assert blocks["denoise_high"] == ordinary["denoise_high"]
    # A clip leaves the blocks as a whole: there is nothing to stream, in tiles or without.
    assert blocks["decode"]["ram_bytes"] > ordinary["decode"]["ram_bytes"]
    assert {"cpu", "cpu-text-leaves", "disk", "cpu-tiled-whole"} <= ways and "cpu-tiled" not in ways
    on_gpu = plan("modular_t2v", "24GB")[1]
    assert {"none", "group", "leaf"} <= on_gpu and not on_gpu & {"model", "sequential"}
    for flags in (("--offload", "model", "--vram", "24GB"), ("--cache", "taylorseer")):
        assert run(capsys, "plan", tiny_model("modular_t2v"), *flags)[0] == 2


def test_a_plan_keeps_to_the_limits_that_a_job_would_have():
    request = GenerationRequest(model=str(tiny_model("t2v")), prompt="")
    policy = Policy(memory_limit_bytes=400 << 20, allow_gpu=False)
    assert plan_model(request, policy=policy).choice.machine.ram_limit_bytes == 400 << 20
    narrow = request.model_copy(update={"memory_limit_bytes": 300 << 20})
    assert plan_model(narrow, policy=policy).choice.machine.ram_limit_bytes == 300 << 20
    # Of a machine that is only imagined, the limits are what was said of it.
    imagined = plan_model(request, ram_bytes=1 << 30, vram_bytes=8 << 30, policy=policy).choice.machine
    assert (imagined.ram_limit_bytes, imagined.vram_bytes) == (1 << 30, 8 << 30)


def test_a_task_of_editing_is_planned_by_name(capsys):
    assert run(capsys, "plan", tiny_model("lucy"), "--task", "edit", "--vram", "0")[0] == 0
    code, _, error = run(capsys, "plan", tiny_model("t2v"), "--task", "edit", "--vram", "0")
    assert code == 2 and "not edit" in error


def test_a_gpu_to_plan_for_and_none_to_compute_on_contradict_each_other(capsys):
    assert run(capsys, "plan", tiny_model("t2v"), "--vram", "8GB", "--device", "cpu")[0] == 2
    assert run(capsys, "plan", tiny_model("t2v"), "--vram", "0", "--device", "cpu")[0] == 0


@pytest.mark.parametrize("flags", [("--offload", "model"), ("--offload", "sequential"), ("--precision", "float16")])
def test_flags_that_mean_nothing_without_a_gpu_are_usage_errors(flags, capsys):
    assert run(capsys, "plan", tiny_model("t2v"), "--vram", "0", *flags)[0] == 2


def test_layers_in_8_bits_are_planned_for_by_name_alone(capsys):
    def planned(*flags: object) -> dict[str, Any]:
        code, out, _ = run(capsys, "plan", tiny_model("t2v"), "--vram", "0", *flags, "--json")
        assert code == 0
        return json.loads(out)

    plain, cast = planned(), planned("--layerwise-casting", "float8_e4m3fn")
    assert (plain["plan"]["layerwise_casting"], plain["plan"]["changes_pixels"]) == (None, [])
    assert cast["plan"]["layerwise_casting"] == "float8_e4m3fn"
    assert cast["plan"]["changes_pixels"] == ["layerwise_casting"]
    assert cast["phases"]["denoise_high"]["weights_bytes"] < plain["phases"]["denoise_high"]["weights_bytes"]
    wish = ("--layerwise-casting", "float8_e5m2", "--offload", "group")
    code, _, error = run(capsys, "plan", tiny_model("t2v"), "--vram", "0", *wish)
    assert code == 2 and "float8_e5m2" in error, error


def test_two_experts_of_14_billion_are_planned_at_once_without_torch(a14b):
    code = (
        "import sys, time; from wan_compat.supervisor.cli.main import main; began = time.process_time();"
        f"main(['plan', {str(a14b)!r}, '--vram', '16GB', '--ram', '64GB', '--json']);"
        "print(time.process_time() - began, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    seconds, torch = done.stderr.split()
    assert float(seconds) < 5 and torch == "False"  # tenths on an idle machine


def test_options_are_those_of_a_request():
    fields = GenerationRequest.model_fields
    assert {item.value for item in plan_options.Precision} == set(get_args(fields["precision"].annotation))
    assert {item.value for item in plan_options.Offload} == set(get_args(Offload))
    assert {item.value for item in plan_options.Cache} == set(get_args(Cache))
    assert {item.value for item in plan_options.LayerwiseCasting} == set(get_args(LayerwiseCasting))
    assert set(CONTRACT) <= set(OptimizationPlan.__dataclass_fields__)


def test_this_machine_is_read_without_touching_a_gpu():
    from wan_compat.supervisor.optimization_manager import OptimizationManager

    began = time.monotonic()
    resources = OptimizationManager().analyze_system_resources()
    assert resources.ram_total_mb >= resources.ram_free_mb > 0 and resources.cpu_count >= 1
    assert bool(resources.gpus) == bool(resources.vram_total_mb)
    assert time.monotonic() - began < 5
