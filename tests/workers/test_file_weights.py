"""Weights that stay in their files: the same numbers as from_pretrained, no memory, and no file that does not fit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.workers import plans
from tests.workers.inside import in_torch_process


def laid_out(component: str, dtype: Any, kind: str = "t2v") -> tuple[Any, Any]:
    import diffusers
    import transformers

    from wan_compat.workers.file_weights import lay_out

    name = json.loads((Path(plans.folder(kind, component)) / "config.json").read_text())
    known = transformers.UMT5EncoderModel if component == "text_encoder" else getattr(diffusers, name["_class_name"])
    model, info = lay_out(known, plans.folder(kind, component), dtype, "cpu")
    assert not any(info.values()), info
    return model, known.from_pretrained(plans.folder(kind, component), torch_dtype=dtype)


def check_transformer(kind: str, dtype: Any) -> None:
    import torch

    ours, theirs = laid_out("transformer", dtype, kind)
    channels = theirs.config.in_channels
    given = {
        "hidden_states": torch.randn(1, channels, 2, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(2)).to(dtype),
        "return_dict": False,
    }
    if kind == "vace":
        given["control_hidden_states"] = torch.randn(1, 96, 2, 8, 8, generator=torch.Generator().manual_seed(3))
        given["control_hidden_states"] = given["control_hidden_states"].to(dtype)
    with torch.no_grad():
        assert torch.equal(ours(**given)[0], theirs(**given)[0])
        assert torch.equal(ours(**given)[0], theirs(**given)[0])  # and again: what was freed comes back
    assert ours.dtype == theirs.dtype and ours.device == theirs.device
    assert {name: value.dtype for name, value in ours.named_parameters()} == {
        name: value.dtype for name, value in theirs.named_parameters()
    }


@pytest.mark.long
@in_torch_process
def test_transformers_compute_the_same_in_the_type_of_the_file() -> None:
    import torch

    for kind in ("t2v", "ti2v", "vace"):
        check_transformer(kind, torch.float32)


@in_torch_process
def test_transformers_compute_the_same_in_another_type() -> None:
    import torch

    for kind in ("t2v", "vace"):
        check_transformer(kind, torch.bfloat16)


@in_torch_process
def test_text_encoders_compute_the_same_in_either_type() -> None:
    import torch

    tokens = torch.tensor([[5, 6, 7, 1]])
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = laid_out("text_encoder", dtype)
        with torch.no_grad():
            assert torch.equal(ours(tokens).last_hidden_state, theirs(tokens).last_hidden_state), dtype


@in_torch_process
def test_weights_in_files_take_no_memory_and_converted_ones_that_of_a_block() -> None:
    import torch

    from wan_compat.workers.memory_count import resident_bytes

    ours, theirs = laid_out("transformer", torch.float32, "t2v_mid")
    everything = resident_bytes([theirs])
    assert resident_bytes([ours]) < 0.02 * everything and everything > 80e6  # rotary tables are computed
    ours, theirs = laid_out("transformer", torch.bfloat16, "t2v_mid")
    resident = resident_bytes([ours])
    assert 0 < resident < 0.1 * everything
    seen = []
    for block in ours.blocks:
        block.register_forward_pre_hook(lambda *_: seen.append(resident_bytes([ours])))
    with torch.no_grad():
        ours(torch.randn(1, 16, 1, 4, 4).bfloat16(), torch.tensor([1]), torch.randn(1, 4, 256).bfloat16())
    assert len(seen) == 8 and max(seen) < resident + everything / 2 / 8
    assert resident_bytes([ours]) == resident


@in_torch_process
def test_a_block_that_fails_is_freed_too() -> None:
    import torch

    from wan_compat.workers.memory_count import resident_bytes

    ours, _ = laid_out("transformer", torch.bfloat16)
    before = resident_bytes([ours])
    try:
        ours.blocks[0](torch.zeros(1, 2, 3))
    except TypeError:
        pass
    else:
        raise AssertionError("it ran")
    assert resident_bytes([ours]) == before


@in_torch_process
def test_files_that_lie_about_their_size_are_refused() -> None:
    from wan_compat.protocol.errors import ModelCorrupt
    from wan_compat.workers.file_weights import map_tensors

    header = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    beyond = {"a": {"dtype": "F32", "shape": [40], "data_offsets": [0, 160]}}
    for document, size in ((beyond, 16), ({"a": {**header["a"], "dtype": "F16"}}, 16), (header, 15)):
        text = json.dumps(document).encode()
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * size)
            try:
                map_tensors(name)
            except ModelCorrupt as error:
                assert "'a'" in error.message
            else:
                raise AssertionError(document)
