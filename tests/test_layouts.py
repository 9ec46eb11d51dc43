"""Every layout that a model can come in makes the frames of the diffusers folder it came from. Real workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.assets import single_files as made
from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Supervisor, VideoGenerationResult
from wan_compat.protocol.errors import EnvironmentLacks, InvalidRequest, ModelInvalid
from wan_compat.protocol.values import LoraRequest

SIZE = {"height": 64, "width": 96, "num_frames": 5, "num_inference_steps": 2}
ADAPTED = ["blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0", "blocks.1.ffn.net.0.proj", "proj_out"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.wide_model(tmp_path_factory.mktemp("wide") / "model")


def generate(supervisor: Supervisor, model: Path, **fields: object) -> tuple[np.ndarray, VideoGenerationResult]:
    request = GenerationRequest(model=str(model), prompt="a red ball bounces", seed=5, **(SIZE | fields))
    result = supervisor.generate(request)
    assert result.frames is not None
    return result.frames.frames, result


def close(first: np.ndarray, second: np.ndarray, most: int = 1) -> bool:
    """Whether frames differ by rounding alone (see `renamed_file`)."""
    return int(np.abs(first.astype(int) - second).max()) <= most


@pytest.fixture(scope="module")
def expected(supervisor: Supervisor) -> np.ndarray:
    return generate(supervisor, tiny_model("t2v"))[0]


@pytest.fixture(scope="module")
def expected_wide(supervisor: Supervisor, wide: Path) -> np.ndarray:
    return generate(supervisor, wide)[0]


# ---- one file for a component --------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["diffusers", "original", "comfyui"])
def test_single_file_makes_the_frames_of_its_folder_byte_for_byte(style, supervisor, expected, tmp_path):
    folder = tiny_model("t2v")
    file = tmp_path / "wan.safetensors"
    if style == "diffusers":
        made.renamed_file(folder, "transformer", {}, file)
    else:
        prefix = "model.diffusion_model." if style == "comfyui" else ""
        made.original_file(folder, "transformer", file, prefix)
    frames, result = generate(supervisor, file, components=folder)
    assert np.array_equal(frames, expected)
    assert result.metadata.pipeline_class == "WanPipeline"
    assert "transformer:safetensors" in result.metadata.optimizations_applied


def test_files_for_every_part_take_the_place_of_the_folders(supervisor, expected, tmp_path):
    folder = tiny_model("t2v")
    other = made.copy_of(
        folder,
        tmp_path / "other",
        **{
            name: {key: value * np.float32(0.9) for key, value in made.load(folder, name).items()}
            for name in ("vae", "text_encoder")
        },
    )
    files = {
        name: made.original_file(folder, name, tmp_path / f"{name}.safetensors") for name in ("vae", "text_encoder")
    }
    assert not np.array_equal(generate(supervisor, other)[0], expected)
    assert np.array_equal(generate(supervisor, other, **files)[0], expected)


@pytest.mark.parametrize("kind", ["a14b", "ti2v"])
def test_single_files_of_the_other_kinds(kind, supervisor, tmp_path):
    folder = tiny_model(kind)
    files = {
        name: made.original_file(folder, name, tmp_path / f"{name}.safetensors")
        for name in ("transformer_2", "vae")
        if (folder / name).is_dir()
    }
    main = made.original_file(folder, "transformer", tmp_path / "main.safetensors")
    frames, _ = generate(supervisor, main, components=folder, **files)
    assert np.array_equal(frames, generate(supervisor, folder)[0])


def test_bfloat16_file_is_read_as_its_folder_would_be(supervisor, tmp_path):
    folder = tiny_model("t2v")
    reference = made.copy_of(folder, tmp_path / "reference")
    half = made.as_bfloat16(made.load(folder, "transformer"))
    made.save_raw(half, reference / "transformer" / made.WEIGHTS)
    file = made.original_file(reference, "transformer", tmp_path / "wan.safetensors")
    assert np.array_equal(generate(supervisor, file, components=folder)[0], generate(supervisor, reference)[0])


def test_scaled_fp8_is_multiplied_out(supervisor, tmp_path):
    folder = tiny_model("t2v")
    tensors = made.original(folder, "transformer")
    stored, meant = made.scaled_fp8(tensors, lambda name: "attn" in name and name.endswith(("q.weight", "o.weight")))
    file = made.save_raw(
        {f"diffusion_model.{name}" if name != "scaled_fp8" else name: value for name, value in stored.items()},
        tmp_path / "wan_fp8_scaled.safetensors",
    )
    reference = made.save(meant, tmp_path / "reference.safetensors")
    assert close(
        generate(supervisor, file, components=folder)[0], generate(supervisor, reference, components=folder)[0]
    )


# ---- GGUF ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, names", [("F16", "diffusers"), ("Q8_0", "original"), ("Q4_0", "diffusers"), ("Q4_K", "original")]
)
def test_gguf_transformer_makes_the_frames_of_what_it_stands_for(
    kind, names, supervisor, wide, expected_wide, tmp_path
):
    tensors = made.load(wide, "transformer") if names == "diffusers" else made.original(wide, "transformer")
    meant = made.save_gguf(
        tensors, tmp_path / "wan.gguf", kind, lambda name: "blocks." in name and tensors[name].ndim == 2
    )
    frames, _ = generate(supervisor, tmp_path / "wan.gguf", components=wide)
    reference = made.save(meant, tmp_path / "reference.safetensors")
    plain, _ = generate(supervisor, reference, components=wide)
    assert close(frames, plain, 2)  # scales are half precision in diffusers' kernels
    assert not np.array_equal(frames, expected_wide)


# ---- LoRA ----------------------------------------------------------------------------------------------------------


def test_lora_in_every_spelling_is_the_model_with_it_merged(supervisor, tmp_path):
    folder = tiny_model("t2v")
    tensors = made.load(folder, "transformer")
    lora = made.lora_for(tensors, ADAPTED)
    merged = made.copy_of(folder, tmp_path / "merged", transformer=made.merged(tensors, lora, 1.5))
    plain, _ = generate(supervisor, merged)
    assert not close(plain, generate(supervisor, folder)[0], 20)
    for style in ("diffusers", "original", "kohya"):
        file = made.lora_file(lora, style, tmp_path / f"{style}.safetensors", folder=folder)
        frames, result = generate(supervisor, folder, loras=(LoraRequest(path=str(file), weight=1.5),))
        assert close(frames, plain)
        (report,) = result.loras
        assert (report.component, report.matched, report.unmatched, report.weight) == ("transformer", 4, 0, 1.5)
    assert result.to_json()["loras"][0]["matched"] == 4


def test_loras_of_two_experts_go_where_they_belong(supervisor, tmp_path):
    folder = tiny_model("a14b")
    experts = {name: made.load(folder, name) for name in ("transformer", "transformer_2")}
    lora = made.lora_for(experts["transformer"], ADAPTED)
    low = made.lora_file(lora, "original", tmp_path / "wan_low_noise.safetensors", folder=folder)
    merged = made.copy_of(folder, tmp_path / "merged", transformer_2=made.merged(experts["transformer_2"], lora, 1.0))
    plain, _ = generate(supervisor, merged)
    for request in (LoraRequest(path=str(low)), LoraRequest(path=str(low), expert="low")):
        frames, result = generate(supervisor, folder, loras=(request,))
        assert [report.component for report in result.loras] == ["transformer_2"]
        assert close(frames, plain)


def test_lora_on_a_gguf_transformer_is_added_to_its_layers_output(supervisor, wide, tmp_path):
    tensors = made.load(wide, "transformer")
    meant = made.save_gguf(
        tensors, tmp_path / "wan.gguf", "Q8_0", lambda name: "blocks." in name and tensors[name].ndim == 2
    )
    lora = made.lora_for(tensors, ADAPTED)
    file = made.lora_file(lora, "original", tmp_path / "lora.safetensors", folder=wide)
    frames, _ = generate(supervisor, tmp_path / "wan.gguf", components=wide, loras=(LoraRequest(path=str(file)),))
    merged = made.save(made.merged(meant, lora, 1.0), tmp_path / "merged.safetensors")
    plain, _ = generate(supervisor, merged, components=wide)
    assert close(frames, plain, 2)


# ---- shards --------------------------------------------------------------------------------------------------------


def test_sharded_components_are_the_same_model(supervisor, expected, tmp_path):
    folder = made.copy_of(tiny_model("t2v"), tmp_path / "sharded")
    for name in ("transformer", "text_encoder", "vae"):
        made.shard(folder, name)
    assert close(generate(supervisor, folder)[0], expected)
    given = tmp_path / "component"
    shutil.copytree(folder / "transformer", given)
    assert close(generate(supervisor, tiny_model("t2v"), transformer=given)[0], expected)


# ---- refusals, before anything is loaded ---------------------------------------------------------------------------


def test_what_is_missing_or_wrong_is_told_before_a_worker_is_started(supervisor, wide, tmp_path, monkeypatch):
    folder = tiny_model("t2v")
    file = made.save(made.original(folder, "transformer"), tmp_path / "wan.safetensors")
    with pytest.raises(InvalidRequest, match="the transformer alone"):
        generate(supervisor, file)
    with pytest.raises(InvalidRequest, match="is a transformer, no VAE"):
        generate(supervisor, folder, vae=file)
    lora = made.lora_file(
        made.lora_for(made.load(wide, "transformer"), ADAPTED), "diffusers", tmp_path / "lora.safetensors"
    )
    with pytest.raises(ModelInvalid, match="whose weight is"):
        generate(supervisor, folder, loras=(LoraRequest(path=str(lora)),))
    with pytest.raises(InvalidRequest, match="is a LoRA"):
        generate(supervisor, lora, components=folder)
    with pytest.raises(EnvironmentLacks, match="torchao or optimum-quanto") as lacking:
        generate(supervisor, folder, quantize={"transformer": "fp8"})
    assert "install-deps" in lacking.value.fixes[0]
    assert lacking.value.exit_code == 3
