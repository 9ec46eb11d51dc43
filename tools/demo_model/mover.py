"""Trains the transformer and the text encoder together: from noise and a sentence to the latents of a clip.

Flow matching: x = (1 - s) * clip + s * noise, and the network says noise - clip. Which clip it is can be read off x
itself while s is small; only near pure noise do the words decide what is where, and between the two what shape it is.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from tools.demo_model import networks
from tools.demo_model.captions import EMPTY, caption, partial_caption, sample_attributes
from tools.demo_model.fields import draw_fields
from tools.demo_model.muon import MuonAndAdam
from tools.demo_model.scenes import sample_scene
from tools.demo_model.training import train, trapezium

SHIFT = 3.0


def train_mover(work: Path, *, steps: int, batch: int, device: str, compile_it: bool) -> None:
    """Write `work/mover.pt`."""
    torch.manual_seed(0)
    tokenizer = networks.make_tokenizer()
    text_encoder = networks.make_text_encoder(len(tokenizer)).to(device).train()
    transformer = networks.make_transformer().to(device).train()
    for block in transformer.blocks:
        block.attn1.set_processor(networks.TrainingAttention())
        block.attn2.set_processor(networks.TrainingAttention())
    parameters = named_parameters(transformer, text_encoder)
    matrices = {name: p for name, p in parameters.items() if _is_matrix(name, p)}
    others = [p for name, p in parameters.items() if name not in matrices]
    optimiser = MuonAndAdam(matrices.values(), others, rate=4e-3, adam_rate=2e-3)
    predict = torch.compile(transformer, dynamic=False) if compile_it else transformer

    def loss_of(rng: random.Random, step: int) -> torch.Tensor:
        clips, captions = [], []
        for _ in range(batch):
            attributes = sample_attributes(rng)
            clips.append(draw_fields(sample_scene(rng, attributes)))
            kind = rng.random()
            say = partial_caption if kind < 0.06 else caption
            captions.append(rng.choice(EMPTY) if kind > 0.93 else say(rng, attributes))
        clip = torch.from_numpy(np.stack(clips)).to(device)
        level = noise_levels(batch).to(device)
        noise = torch.randn_like(clip)
        share = level.view(-1, 1, 1, 1, 1)
        words = encode(text_encoder, tokenizer, captions, device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            said = predict((1 - share) * clip + share * noise, level * 1000, words, return_dict=False)[0]
        weight = edge_weight(clip)
        return (weight * (said.float() - (noise - clip)) ** 2).mean() / weight.mean()

    train("mover", work, parameters, optimiser, steps=steps, loss_of=loss_of, schedule=trapezium(0.01, 0.55))


def edge_weight(clip: torch.Tensor) -> torch.Tensor:
    """Eight times the weight for depths inside the shape and up to 8 pixels around it.

    Which shape it is shows in one number of fifteen; left alone, "square" is learnt long after "blue".
    """
    weight = torch.ones_like(clip)
    weight[:, :8] += 7 * (clip[:, :8] > 0.6)
    return weight


def noise_levels(count: int) -> torch.Tensor:
    """Shares of noise: eight of ten with a median of 0.75, the rest between 0.85 and 1.

    Started from a true clip with 97% or 88% noise, an earlier model missed as many shapes as from nothing, and with 60%
    hardly any: place, colour and motion are settled above 85%, where it had seen two samples of three, the shape below.
    """
    u = (torch.randperm(count) + torch.rand(count)) / count
    spread = SHIFT * u / (1 + (SHIFT - 1) * u)
    return torch.where(torch.rand(count) < 0.8, spread, 0.85 + 0.15 * torch.rand(count))


def encode(text_encoder: torch.nn.Module, tokenizer: object, captions: list[str], device: str) -> torch.Tensor:
    """Encode as the pipeline does, at training's length, with the one zero token that stands for the padding."""
    tokens = tokenizer(  # type: ignore[operator]
        captions, padding="max_length", max_length=networks.CONTEXT, truncation=True, return_tensors="pt"
    ).to(device)
    states = text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return torch.nn.functional.pad(states * tokens.attention_mask[..., None], (0, 0, 0, 1))


def named_parameters(transformer: torch.nn.Module, text_encoder: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Both networks' parameters under the names that the checkpoint uses."""
    return {
        **{f"transformer.{name}": p for name, p in transformer.named_parameters()},
        **{f"text_encoder.{name}": p for name, p in text_encoder.named_parameters()},
    }


def _is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    inner = ("blocks", "text_encoder.encoder.block", "time_proj", "linear_2")
    return parameter.dim() == 2 and any(part in name for part in inner) and "relative" not in name
