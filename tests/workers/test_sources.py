"""Components from single files: the same numbers in the same types as from_pretrained, whatever the names in the file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.workers.inside import in_torch_process


def component(folder: Path, name: str, file: Path, dtype: str) -> Any:
    """What a supervisor would order for this file and this folder."""
    import json

    from wan_compat.policies.sources.single import read_single
    from wan_compat.protocol.values import ComponentSpec
    from wan_compat.supervisor.inspection import read_facts

    facts = read_facts(file)
    config = json.loads((folder / name / "config.json").read_text())
    single = read_single(str(file), facts.weights, config)
    return ComponentSpec(
        name=name,
        library=single.library,
        class_name=single.class_name,
        subfolder=name,
        dtype=dtype,
        source=single.source((file.name,)),
    )


def load(spec: Any, folder: Path) -> Any:
    from wan_compat.workers.cancellation import Cancellation
    from wan_compat.workers.loader import _load_component

    return _load_component(spec, str(folder), Cancellation())


def from_folder(folder: Path, spec: Any) -> Any:
    return load(spec.model_copy(update={"source": None}), folder)


def same(ours: Any, theirs: Any) -> None:
    import torch

    first, second = ours.state_dict(), theirs.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name
    buffers = dict(theirs.named_buffers())
    for name, tensor in ours.named_buffers():
        assert tensor.device == buffers[name].device and torch.equal(tensor, buffers[name]), name


@in_torch_process
def test_every_part_has_the_numbers_and_types_that_its_folder_gives() -> None:
    from tests.assets import single_files as made
    from tests.assets.original_layout import original_model
    from tests.assets.tiny_wan import tiny_model

    _, i2v = original_model("i2v")
    with tempfile.TemporaryDirectory() as place:
        for folder, name in (
            (tiny_model("t2v"), "transformer"),
            (tiny_model("t2v"), "text_encoder"),
            (tiny_model("t2v"), "vae"),
            (tiny_model("ti2v"), "vae"),
            (tiny_model("vace"), "transformer"),
            (i2v, "transformer"),
            (i2v, "image_encoder"),
        ):
            original = made.save(made.original(folder, name), Path(place) / f"{folder.name}-{name}.safetensors")
            plain = made.save(made.load(folder, name), Path(place) / f"{folder.name}-{name}-plain.safetensors")
            for file in (original, plain):
                for dtype in ("float32", "bfloat16", "float16") if name == "transformer" else ("float32",):
                    spec = component(folder, name, file, dtype)
                    same(load(spec, file.parent), from_folder(folder, spec))


@in_torch_process
def test_gguf_keeps_its_blocks_and_unfolds_what_must_be_in_float32() -> None:
    import torch
    from diffusers.quantizers.gguf.utils import GGUFLinear

    from tests.assets import single_files as made

    with tempfile.TemporaryDirectory() as place:
        folder = made.wide_model(Path(place) / "model")
        tensors = made.original(folder, "transformer")
        file = Path(place) / "wan.gguf"
        meant = made.save_gguf(
            tensors, file, "Q8_0", lambda name: tensors[name].ndim == 2 and name != "head.head.weight"
        )
        model = load(component(folder, "transformer", file, "bfloat16"), file.parent)
        layers = dict(model.named_modules())
        assert isinstance(layers["blocks.0.attn1.to_q"], GGUFLinear)
        assert layers["blocks.0.attn1.to_q"].weight.numel() == 256 * 256 // 32 * 34
        time = layers["condition_embedder.time_embedder.linear_1"].weight
        assert type(time) is torch.nn.Parameter and time.dtype == torch.float32
        assert torch.equal(time, torch.from_numpy(meant["time_embedding.0.weight"]))
        assert model.proj_out.weight.dtype == torch.bfloat16
        assert not any(parameter.is_meta for parameter in model.parameters())


@in_torch_process
def test_lora_is_added_in_float32_and_must_be_what_its_header_said() -> None:
    import numpy as np
    import pytest
    import torch

    from tests.assets import single_files as made
    from tests.assets.tiny_wan import tiny_model
    from wan_compat.policies.sources.lora import match_lora
    from wan_compat.protocol.errors import ModelCorrupt
    from wan_compat.protocol.values import LoraRequest
    from wan_compat.supervisor.inspection import read_facts
    from wan_compat.workers.sources.lora import apply_lora

    folder = tiny_model("t2v")
    tensors = made.load(folder, "transformer")
    layers = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight") and "blocks" in name]
    lora = made.lora_for(tensors, [name for name in layers if tensors[f"{name}.weight"].ndim == 2])
    with tempfile.TemporaryDirectory() as place:
        file = made.lora_file(lora, "original", Path(place) / "lora.safetensors", folder=folder)
        more = {
            "diffusion_model.blocks.1.self_attn.k.diff_b": np.full(24, 0.5, np.float32),
            "diffusion_model.head.modulation.diff": np.full((1, 2, 24), 0.25, np.float32),
        }
        made.save(made.load_file(file) | more, file)
        facts = read_facts(folder).tensors["transformer"]
        (match,) = match_lora(
            read_facts(file), LoraRequest(path=str(file), weight=-0.5), file.name, {"transformer": facts}
        )
        assert match.report.unmatched == 0
        for dtype in ("float32", "bfloat16"):
            spec = component(folder, "transformer", folder / "transformer" / made.WEIGHTS, dtype)
            model, plain = (load(spec, folder / "transformer") for _ in range(2))
            apply_lora(model, match.spec, place, lambda: None)
            for name, before in plain.state_dict().items():
                layer = name.removesuffix(".weight")
                change = torch.zeros(before.shape)
                if layer in lora:
                    down, up, alpha = (torch.as_tensor(value) for value in lora[layer])
                    change = -0.5 * alpha / 4 * (up @ down)
                elif name == "blocks.1.attn1.to_k.bias":
                    change = torch.full(before.shape, -0.25)
                elif name == "scale_shift_table":
                    change = torch.full(before.shape, -0.125)
                expected = (before.float() + change).to(before.dtype)
                torch.testing.assert_close(model.state_dict()[name], expected, msg=name)
        with pytest.raises(ModelCorrupt, match="by its header"):
            apply_lora(plain, match.spec.model_copy(update={"layers": 3}), place, lambda: None)
        lost = match.spec.adapted[0].model_copy(update={"target": "blocks.*.attn9.to_q"})
        with pytest.raises(ModelCorrupt, match="does not fit"):
            apply_lora(
                plain, match.spec.model_copy(update={"adapted": (lost, *match.spec.adapted[1:])}), place, lambda: None
            )


@in_torch_process
def test_file_that_is_not_what_its_header_said_is_corrupt() -> None:
    import pytest

    from tests.assets import single_files as made
    from tests.assets.tiny_wan import tiny_model
    from wan_compat.protocol.errors import ModelCorrupt

    folder = tiny_model("t2v")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "wan.safetensors"
        tensors = made.original(folder, "transformer")
        made.save(tensors, file)
        spec = component(folder, "transformer", file, "float32")
        for change, words in (
            ({"head.head.bias": None}, "proj_out.bias"),
            ({"extra.weight": tensors["head.head.bias"]}, "extra.weight"),
            ({"head.head.bias": tensors["head.head.bias"][:-1].copy()}, "of another shape"),
            ({"proj_out.bias": tensors["head.head.bias"].copy()}, "two tensors"),
        ):
            made.save({key: value for key, value in (tensors | change).items() if value is not None}, file)
            with pytest.raises(ModelCorrupt, match=words):
                load(spec, file.parent)


@in_torch_process
def test_numbers_of_4_and_2_bits_are_unpacked_as_quanto_packs_them() -> None:
    import torch

    from wan_compat.workers.sources.quantize import unpack

    numbers = torch.arange(16, dtype=torch.uint8).reshape(4, 4)
    four_bits = numbers[:2] | (numbers[2:] << 4)  # quanto's pack_weights: each half of the rows below the other
    assert torch.equal(unpack(four_bits, 4), numbers)
    assert unpack(torch.tensor([[0b11100100]], dtype=torch.uint8), 2).flatten().tolist() == [0, 1, 2, 3]
