"""What the converting worker opens and lists, and what it refuses; in a process that has torch, without a sandbox.

Attacks that need the sandbox are in tests/security/test_hostile_weights.py.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from tests.assets.corpus.tables import recorded_tensors
from tests.assets.corpus.tensors import original_names
from tests.policies.conversion import drafts
from tests.workers.inside import in_torch_process
from wan_compat.policies.conversion.components import part_of
from wan_compat.protocol import messages as m
from wan_compat.protocol.conversion import TensorPiece, WeightSource


@in_torch_process
def test_tables_rename_as_diffusers_own_functions_do():
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers

    cases: list[tuple[Any, Any, Any]] = [
        (convert_wan_transformer_to_diffusers, "transformer", original_names("wan-t2v-1.3b")),
        (convert_wan_transformer_to_diffusers, "transformer", original_names("wan-i2v-14b")),
        (convert_wan_transformer_to_diffusers, "transformer", original_names("wan-vace-14b")),
        (convert_wan_vae_to_diffusers, "vae", recorded_tensors("original-vae-wan2.1")),
    ]
    for convert, role, shapes in cases:
        names = list(shapes)
        random.Random(7).shuffle(names)
        # Their functions only move the values, and look into those of Animate alone.
        theirs = convert({name: name for name in names})
        ours = {rename.new: rename.old for rename in part_of(role, drafts.tensors(shapes), {}).renames}
        assert ours == theirs


def opened(write: Any, name: str = "weights.pth") -> tuple[list[Any], Any, list[Any]]:
    """Return what opening the file that `write` makes gives: opened files, last answer, listed tensors."""
    from wan_compat.workers.cancellation import Cancellation
    from wan_compat.workers.conversion import open_weights

    listed: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        order = m.OpenWeights(files=(WeightSource(path=name, is_pickle=name.endswith(".pth")),))
        files, answer = open_weights(order, folder, Cancellation(), listed.append)
    return files, answer, [tensor for message in listed for tensor in message.tensors]


@in_torch_process
def test_tensors_are_listed_with_their_types_and_shapes_also_inside_a_wrapper():
    import torch

    state = {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.ones((), dtype=torch.int64)}
    for saved in (state, {"state_dict": state, "epoch": 3}, {**state, "note": "not a tensor"}):
        _, answer, listed = opened(lambda path, saved=saved: torch.save(saved, path))
        assert isinstance(answer, m.WeightsOpened)
        assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in listed} == {
            "a": ("BF16", (2, 3)),
            "b": ("I64", ()),
        }


@in_torch_process
def test_bytes_are_those_of_the_tensor_whatever_its_strides():
    import torch

    from wan_compat.workers.conversion import _bytes_of

    plain = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    files, _, _ = opened(lambda path: torch.save({"t": plain.t()}, path))
    piece = TensorPiece(file=0, name="t", offset=4, size=12)
    assert bytes(_bytes_of(files, piece).tolist()) == plain.t().contiguous().numpy().tobytes()[4:16]


@in_torch_process
def test_what_is_no_plain_tensor_is_refused_by_name():
    import torch

    cases = {
        "more than its storage": lambda: torch.zeros(1).expand(1 << 40),
        "no plain weight": lambda: torch.zeros(2, device="meta"),
        "sparse": lambda: torch.eye(3).to_sparse(),
        "complex": lambda: torch.zeros(2, dtype=torch.complex64),
    }
    for words, make in cases.items():
        _, answer, _ = opened(lambda path, make=make: torch.save({"x": make()}, path))
        assert isinstance(answer, m.Failed) and answer.code in ("model_invalid", "model_corrupt"), (words, answer)
        if words[0] in "mn":
            assert words in answer.message
    for name in ("a b", "x" * 300, "\x1b[31m", 7):
        _, answer, _ = opened(lambda path, name=name: torch.save({name: torch.zeros(1)}, path))
        assert isinstance(answer, m.Failed) and "\x1b" not in answer.message


@in_torch_process
def test_an_old_torch_opens_no_pickle():
    import torch

    from wan_compat.workers import conversion

    conversion.MIN_TORCH = "999"  # this process is a fork that ends with the test
    _, answer, _ = opened(lambda path: torch.save({"x": torch.zeros(1)}, path))
    assert isinstance(answer, m.Failed) and answer.code == "environment_lacks"
