"""Small pictures of what a video is becoming, while it is denoised: latents through a linear map, no decoding.

The map is fitted to the model's own VAE when the first picture is wanted: smooth colours are encoded, and the least
squares between their latents and their pixels are the map. That takes one encode of a 256x256 picture, serves VAEs of
any kind, and is what tables of published factors approximate for two of them.

Shown is where the video is going and not where it is: with flow matching, the last two latents x and their noise levels
s give the clean ones as x - s * dx/ds, exactly for an Euler step and nearly for others. Nothing here changes a number
of the generation, and nothing that fails here fails it.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import base64
import time
from typing import Any

import torch
import torch.nn.functional as F

from wan_compat.protocol.errors import JobCancelled
from wan_compat.protocol.messages import MAX_PICTURE_BYTES, MAX_PICTURE_SIDE, Picture

INTERVAL_S = 0.5  # between two pictures; the last is always made
_SIDE = 256
_CELLS = 16  # of the colours that are encoded, along each side
_RIDGE = 1e-2


class LatentPreviews:
    """Makes pictures of one generation. The map stays with the VAE, for later ones."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._before: torch.Tensor | None = None
        self._told_s = 0.0
        self._failed = False

    def picture(self, latents: torch.Tensor, step: int, total: int) -> Picture | None:
        """Return a picture of the middle frame after a step, None where there is none to be made now.

        Args:
            latents: (1, channels, latent_frames, height, width), normalised as the transformer has them.
        """
        before, self._before = self._before, latents
        now = time.monotonic()
        if self._failed or (now - self._told_s < INTERVAL_S and step != total):
            return None
        self._told_s = now
        try:
            return self._made(latents, before, step)
        except JobCancelled:
            raise
        except Exception as error:  # noqa: BLE001 - a courtesy: whatever fails in it costs nobody a video
            self._failed = True
            print(f"no previews of latents: {type(error).__name__}: {error}")  # into the worker's log
            return None

    def _made(self, latents: torch.Tensor, before: torch.Tensor | None, step: int) -> Picture | None:
        vae = self._pipeline.vae
        if latents.ndim != 5 or latents.shape[1] != vae.config.z_dim:
            self._failed = True  # another family's way of packing them
            return None
        middle = latents.shape[2] // 2
        now = latents[0, :, middle].float()
        clean = now if before is None or before.shape != latents.shape else self._clean(now, before[0, :, middle], step)
        factors, bias = _map_of(vae)
        colors = torch.einsum("chw,cr->rhw", clean.to(factors.device), factors) + bias[:, None, None]
        side = max(colors.shape[-2:])
        if side > MAX_PICTURE_SIDE or colors.numel() > MAX_PICTURE_BYTES:
            colors = F.avg_pool2d(colors, 2)
        pixels = ((colors.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
        height, width, _ = pixels.shape
        return Picture(width=width, height=height, pixels=base64.b64encode(pixels.tobytes()).decode("ascii"))

    def _clean(self, now: torch.Tensor, before: torch.Tensor, step: int) -> torch.Tensor:
        sigmas = getattr(self._pipeline.scheduler, "sigmas", None)
        if sigmas is None or len(sigmas) <= step:
            return now
        at, was = float(sigmas[step]), float(sigmas[step - 1])
        return now - at * (now - before.float()) / (at - was) if at < was else now


def _map_of(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (factors, bias) of shape (channels, 3) and (3,): latents to colours in [-1, 1]."""
    known: tuple[torch.Tensor, torch.Tensor] | None = getattr(vae, "_wan_compat_rgb", None)
    if known is None:
        known = vae._wan_compat_rgb = _fitted(vae)
    return known


@torch.no_grad()
def _fitted(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    # A generator of its own: what the pipeline draws must not depend on whether somebody looks on.
    cells = torch.rand((1, 3, _CELLS, _CELLS), generator=torch.Generator().manual_seed(0)) * 2 - 1
    image = F.interpolate(cells, size=(_SIDE, _SIDE), mode="bilinear").clamp(-1, 1)
    weight = next(vae.parameters())
    encoded = vae.encode(image[:, :, None].to(weight.device, weight.dtype)).latent_dist.mode()[0, :, 0].float().cpu()
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (vae.config.latents_mean, vae.config.latents_std))
    latents = (encoded - mean) / std
    colors = F.adaptive_avg_pool2d(image[0], latents.shape[-2:])
    rows = torch.cat([latents.flatten(1), torch.ones(1, latents[0].numel())]).T.double()  # (positions, channels + 1)
    squares = rows.T @ rows
    ridge = _RIDGE * len(rows) * torch.eye(len(squares), dtype=torch.float64)
    solved = torch.linalg.solve(squares + ridge, rows.T @ colors.flatten(1).T.double()).float()
    return solved[:-1], solved[-1]
