"""The demo model's training: shortcuts that must equal diffusers' own way, and going on after a stop.

torch is imported when a test runs, not when it is collected: that would cost three seconds in every process of pytest.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor, nn


@pytest.fixture(scope="module")
def torch() -> ModuleType:
    pytest.importorskip("diffusers")
    module: ModuleType = pytest.importorskip("torch")
    return module


@pytest.fixture
def no_grad(torch: ModuleType) -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def vae(torch: ModuleType) -> nn.Module:
    from tools.demo_model import networks

    torch.manual_seed(0)
    vae = networks.make_vae().eval()
    with torch.no_grad():
        for parameter in vae.parameters():  # none at zero: every branch counts
            if parameter.dim() > 1:
                parameter.normal_(std=0.05)
    return vae


@pytest.mark.usefixtures("no_grad")
def test_painting_in_two_pieces_equals_the_loop_of_diffusers(torch: ModuleType, vae: nn.Module) -> None:
    from tools.demo_model import painter

    fields = torch.randn(1, 16, 4, 2, 3)
    assert torch.allclose(painter.paint(vae, fields).clamp(-1, 1), vae._decode(fields, return_dict=False)[0], atol=1e-5)


@pytest.mark.usefixtures("no_grad")
def test_reading_in_two_pieces_equals_the_loop_of_diffusers(torch: ModuleType, vae: nn.Module) -> None:
    from tools.demo_model import painter

    pixels = torch.randn(1, 3, 13, 32, 48)
    assert torch.allclose(painter.read(vae, pixels), vae._encode(pixels), atol=1e-5)


def test_the_vae_is_learnt_in_two_halves_that_make_it_whole(vae: nn.Module) -> None:
    from tools.demo_model import painter

    halves = painter.decoder_parameters(vae), painter.encoder_parameters(vae)
    assert not halves[0].keys() & halves[1].keys()
    assert halves[0].keys() | halves[1].keys() == dict(vae.named_parameters()).keys()


@pytest.mark.usefixtures("no_grad")
def test_training_attention_equals_the_pipelines_with_all_its_padding(torch: ModuleType) -> None:
    from tools.demo_model import mover, networks

    torch.manual_seed(0)
    tokenizer = networks.make_tokenizer()
    text_encoder, transformer = networks.make_text_encoder(len(tokenizer)), networks.make_transformer()
    transformer.proj_out.weight.normal_()
    words = mover.encode(text_encoder, tokenizer, ["a red ball rises over the sea", "a star"], "cpu")
    padded = torch.nn.functional.pad(words[:, :-1], (0, 0, 0, networks.PIPELINE_CONTEXT - networks.CONTEXT))
    noise, times = torch.randn(2, 16, 3, 4, 6), torch.tensor([500.0, 990.0])
    pipelines_way = transformer(noise, times, padded, return_dict=False)[0]
    for block in transformer.blocks:
        block.attn1.set_processor(networks.TrainingAttention())
        block.attn2.set_processor(networks.TrainingAttention())
    ours = transformer(noise, times, words, return_dict=False)[0]
    assert torch.allclose(ours, pipelines_way, atol=1e-3), (ours - pipelines_way).abs().max()


@pytest.mark.usefixtures("no_grad")
def test_heads_look_at_their_neighbours_from_the_start(torch: ModuleType) -> None:
    from tools.demo_model import networks

    torch.manual_seed(0)
    transformer = networks.make_transformer()
    attention, grid = transformer.blocks[0].attn1, (9, 3, 5)
    cos, sin = transformer.rope(torch.zeros(1, 16, 9, 6, 10))
    x = torch.randn(1, 135, 192)
    query, key = (norm(layer(x)).unflatten(2, (6, -1)) for norm, layer in (
        (attention.norm_q, attention.to_q), (attention.norm_k, attention.to_k)))  # fmt: skip
    query, key = (networks._rotate(part, cos, sin).transpose(1, 2) for part in (query, key))
    looked_at = (query @ key.mT).argmax(-1)[0].unflatten(1, grid)
    index = torch.arange(135).view(grid)
    steps = [(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)]
    for head, step in enumerate(steps):
        at = tuple(slice(1, -1) for _ in step)
        expected = index.roll([-part for part in step], (0, 1, 2))
        assert (looked_at[head][at] == expected[at]).float().mean() > 0.9, step


def test_text_has_room_in_training_for_the_longest_captions(torch: ModuleType) -> None:
    from tools.demo_model import networks
    from tools.demo_model.captions import caption, sample_attributes

    rng, tokenizer = random.Random(0), networks.make_tokenizer()
    lengths = [len(tokenizer(caption(rng, sample_attributes(rng))).input_ids) for _ in range(1000)]
    assert max(lengths) <= networks.CONTEXT


def test_capitals_mean_the_same_as_small_letters(torch: ModuleType) -> None:
    from tools.demo_model import networks

    tokenizer = networks.make_tokenizer()
    embeddings = torch.randn(len(tokenizer), 4)
    networks.tie_capitals(tokenizer, embeddings)
    small, capital = (tokenizer(text).input_ids for text in ("red ball", "Red Ball"))
    assert small != capital and torch.equal(embeddings[small], embeddings[capital])


def test_orthogonal_brings_all_singular_values_near_one(torch: ModuleType) -> None:
    from tools.demo_model.muon import orthogonal

    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 16, 48)))
    assert values.min() > 0.5 and values.max() < 1.5


def _train(torch: ModuleType, work: Path, steps: int, until: int | None = None) -> dict[str, Tensor]:
    from tools.demo_model.muon import MuonAndAdam
    from tools.demo_model.training import train, trapezium

    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    optimiser = MuonAndAdam([layer.weight], [layer.bias], rate=0.01, adam_rate=0.01)

    def loss_of(rng: random.Random, step: int) -> Tensor:
        if step == until:
            raise KeyboardInterrupt
        return ((layer(torch.randn(8, 4)) - rng.random()) ** 2).mean()

    train(
        "toy",
        work,
        dict(layer.named_parameters()),
        optimiser,
        steps=steps,
        loss_of=loss_of,
        schedule=trapezium(0.1, 0.5),
    )
    average: dict[str, Tensor] = torch.load(work / "toy.pt")["average"]
    return average


def test_a_stopped_training_goes_on_as_if_it_had_not(
    torch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.demo_model.training.SAVE_EVERY_S", 0.0)
    whole = _train(torch, tmp_path / "whole", 6)
    with pytest.raises(KeyboardInterrupt):
        _train(torch, tmp_path / "parts", 6, until=3)
    parts = _train(torch, tmp_path / "parts", 6)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
