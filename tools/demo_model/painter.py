"""Trains the VAE against the drawn latents: its decoder paints them, its encoder reads them off the pixels.

The two halves never meet in a loss, so each can be trained alone, in any order, and beside the transformer.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify

from tools.demo_model.captions import sample_attributes
from tools.demo_model.fields import CELL, draw_fields
from tools.demo_model.muon import MuonAndAdam
from tools.demo_model.networks import make_vae
from tools.demo_model.scenes import HEIGHT, NUM_FRAMES, WIDTH, render, sample_scene
from tools.demo_model.training import train, trapezium

_WINDOW, _WINDOW_FRAMES = 64, 9
_WHOLE_SHARE = 0.25  # of the steps, the last ones: whole pictures, with their borders


def train_painter(work: Path, *, steps: int, batch: int, device: str) -> None:
    """Write `work/painter.pt`: the decoder, shown latents with the kinds of errors that a transformer makes."""
    torch.manual_seed(1)
    vae = make_vae().to(device).train()
    parameters = decoder_parameters(vae)
    optimiser = _optimiser(parameters, ("conv_in", "conv_out", "post_quant"))

    def loss_of(rng: random.Random, step: int) -> torch.Tensor:
        whole = step >= steps * (1 - _WHOLE_SHARE)
        # A whole picture is four windows.
        fields, pixels = _draw(rng, max(1, batch // 4) if whole else batch, whole, device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            painted = paint(vae, fields + _errors(fields.shape).to(device))
        miss, weight = painted.float() - pixels, edge_weight(pixels)
        return (weight * miss.abs()).mean() + (weight * miss * miss).mean()

    train(
        "painter",
        work,
        parameters,
        optimiser,
        steps=steps,
        loss_of=loss_of,
        schedule=trapezium(0.02, 0.7),
        average=0.995,
    )


def train_reader(work: Path, *, steps: int, batch: int, device: str) -> None:
    """Write `work/reader.pt`: the encoder. Text to video never runs it; a VAE without one would be half a VAE."""
    torch.manual_seed(2)
    vae = make_vae().to(device).train()
    parameters = encoder_parameters(vae)
    optimiser = _optimiser(parameters, ("conv_in", "conv_out", "quant_conv"))

    def loss_of(rng: random.Random, step: int) -> torch.Tensor:
        fields, pixels = _draw(rng, batch, True, device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            mean, log_variance = read(vae, pixels).float().chunk(2, 1)
        # The drawn latents have no width; -6 stands for "as good as none" and keeps exp() of it small.
        return ((mean - fields) ** 2).mean() + 0.01 * ((log_variance + 6) ** 2).mean()

    train(
        "reader",
        work,
        parameters,
        optimiser,
        steps=steps,
        loss_of=loss_of,
        schedule=trapezium(0.02, 0.7),
        average=0.995,
    )


def paint(vae: AutoencoderKLWan, fields: torch.Tensor) -> torch.Tensor:
    """Decode in two pieces: equal to diffusers' loop over latent frames, faster, and without its clamp, behind which no
    gradient flows."""
    x = vae.post_quant_conv(fields)
    vae.clear_cache()
    vae._conv_idx = [0]
    pieces = [vae.decoder(x[:, :, :1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=True)]
    if x.shape[2] > 1:
        vae._conv_idx = [0]
        pieces.append(vae.decoder(x[:, :, 1:], feat_cache=vae._feat_map, feat_idx=vae._conv_idx))
    vae.clear_cache()
    return unpatchify(torch.cat(pieces, 2), patch_size=vae.config.patch_size)


def read(vae: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """Encode in two pieces: means and logarithms of variances, (batch, 32, latent frames, rows, columns)."""
    x = patchify(pixels, patch_size=vae.config.patch_size)
    vae.clear_cache()
    vae._enc_conv_idx = [0]
    pieces = [vae.encoder(x[:, :, :1], feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx)]
    if x.shape[2] > 1:
        vae._enc_conv_idx = [0]
        pieces.append(vae.encoder(x[:, :, 1:], feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx))
    vae.clear_cache()
    return vae.quant_conv(torch.cat(pieces, 2))


def decoder_parameters(vae: AutoencoderKLWan) -> dict[str, torch.nn.Parameter]:
    """Under the names of the VAE's own state."""
    return {name: p for name, p in vae.named_parameters() if name.startswith(("decoder.", "post_quant_conv."))}


def encoder_parameters(vae: AutoencoderKLWan) -> dict[str, torch.nn.Parameter]:
    """Under the names of the VAE's own state."""
    return {name: p for name, p in vae.named_parameters() if name.startswith(("encoder.", "quant_conv."))}


def edge_weight(pixels: torch.Tensor) -> torch.Tensor:
    """Five times the weight where a picture has edges, within two pixels: (batch, 1, frames, height, width)."""
    batch, channels, frames, height, width = pixels.shape
    flat = pixels.transpose(1, 2).reshape(batch * frames, channels, height, width)
    edges = torch.zeros(batch * frames, 1, height, width, device=pixels.device)
    edges[..., 1:] += (flat[..., 1:] - flat[..., :-1]).abs().sum(1, keepdim=True)
    edges[:, :, 1:] += (flat[:, :, 1:] - flat[:, :, :-1]).abs().sum(1, keepdim=True)
    near = torch.nn.functional.max_pool2d(edges, 5, 1, 2).clamp(0, 1)
    return (1 + 4 * near).view(batch, frames, 1, height, width).transpose(1, 2)


def _draw(rng: random.Random, count: int, whole: bool, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and pixels in [-1, 1] of the same windows, most of them around the shape."""
    fields, pixels = [], []
    for _ in range(count):
        scene = sample_scene(rng, sample_attributes(rng)).cut(
            rng.randint(0, NUM_FRAMES - _WINDOW_FRAMES), _WINDOW_FRAMES
        )
        window = (0, 0, WIDTH, HEIGHT)
        if not whole:
            # Anywhere, not only on the grid of cells: as good as more scenes.
            reach = _WINDOW * 0.4
            frame = rng.randrange(_WINDOW_FRAMES)
            left = scene.x[frame] + rng.uniform(-reach, reach) - _WINDOW / 2
            top = scene.y[frame] + rng.uniform(-reach, reach) - _WINDOW / 2
            window = (round(left), min(max(round(top), 0), HEIGHT - _WINDOW), _WINDOW, _WINDOW)
        fields.append(draw_fields(scene, *window))
        pixels.append(render(scene, *window).transpose(3, 0, 1, 2) / 127.5 - 1)
    return torch.from_numpy(np.stack(fields)).to(device), torch.from_numpy(np.stack(pixels)).to(device)


def _errors(shape: torch.Size) -> torch.Tensor:
    """What a transformer gets wrong: every number a little, and neighbouring numbers alike."""
    batch, channels, frames, rows, columns = shape
    fine = torch.randn(shape) * torch.rand(batch, 1, 1, 1, 1) * 0.1
    coarse = torch.randn(batch, channels, (frames + 1) // 2, (rows + 1) // 2, (columns + 1) // 2)
    coarse = torch.nn.functional.interpolate(coarse, (frames, rows, columns), mode="trilinear")
    return fine + coarse * torch.rand(batch, 1, 1, 1, 1) * 0.1


def _optimiser(parameters: dict[str, torch.nn.Parameter], outer: tuple[str, ...]) -> MuonAndAdam:
    matrices = {
        name: p
        for name, p in parameters.items()
        if p.dim() >= 4 and p[0].numel() > 1 and not any(part in name for part in outer)
    }
    others = [p for name, p in parameters.items() if name not in matrices]
    return MuonAndAdam(matrices.values(), others, rate=6e-3, adam_rate=3e-3, betas=(0.9, 0.97))


assert WIDTH % CELL == 0 and HEIGHT % CELL == 0
