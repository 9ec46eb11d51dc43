"""Small pictures of what a video is becoming, while it is denoised: latents through a linear map, no decoding.

The map is fitted to the model's own VAE: a piece of the latents themselves is decoded as one frame, and the least
squares between it and its pixels are the map. That takes one decode of at most 256x256 pixels (512x512 with VAEs that
compress 16 times), serves VAEs of any kind, and is what tables of published factors approximate for two of them. It is
made again as the latents clear up, as long as that costs little beside the steps, and for the last picture.

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
_SIDE = 32  # of the piece that is decoded, in latents
_SHARE = 20  # a map is made again when this many times the time it took has passed
_RIDGE = 1e-2


class LatentPreviews:
    """Makes pictures of one generation."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._before: torch.Tensor | None = None
        self._told_s = 0.0
        self._failed = False
        self._map: tuple[torch.Tensor, torch.Tensor] | None = None
        self._fitted_s = 0.0
        self._fit_took_s = 0.0

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
            return self._made(latents, before, step, last=step == total)
        except JobCancelled:
            raise
        except Exception as error:  # noqa: BLE001 - a courtesy: whatever fails in it costs nobody a video
            self._failed = True
            print(f"no previews of latents: {type(error).__name__}: {error}")  # into the worker's log
            return None

    def _made(self, latents: torch.Tensor, before: torch.Tensor | None, step: int, last: bool) -> Picture | None:
        vae = self._pipeline.vae
        if latents.ndim != 5 or latents.shape[1] != vae.config.z_dim:
            self._failed = True  # another family's way of packing them
            return None
        middle = latents.shape[2] // 2
        now = latents[0, :, middle].float()
        clean = now if before is None or before.shape != latents.shape else self._clean(now, before[0, :, middle], step)
        factors, bias = self._map_for(clean, last)
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

    def _map_for(self, clean: torch.Tensor, last: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (factors, bias) of shape (channels, 3) and (3,): latents to colours in [-1, 1]."""
        start = time.monotonic()
        if last or self._map is None or start - self._fitted_s > _SHARE * self._fit_took_s:
            self._map = _fitted(self._pipeline.vae, clean)
            self._fitted_s = time.monotonic()
            self._fit_took_s = self._fitted_s - start
        return self._map


@torch.no_grad()
def _fitted(vae: Any, clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    top, left = (max(0, side - _SIDE) // 2 for side in clean.shape[-2:])
    piece = clean[:, top : top + _SIDE, left : left + _SIDE].cpu()
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (vae.config.latents_mean, vae.config.latents_std))
    weight = next(vae.parameters())
    raw = (piece * std + mean)[None, :, None].to(weight.device, weight.dtype)
    # The class's own: on the instance, `decode` and `_decode` stand for the video that is to come (streaming.py).
    image = type(vae)._decode(vae, raw, return_dict=False)[0][0, :, 0].float().clamp(-1, 1).cpu()
    colors = F.adaptive_avg_pool2d(image, (piece.shape[-2], piece.shape[-1]))
    rows = torch.cat([piece.flatten(1), torch.ones(1, piece[0].numel())]).T.double()  # (positions, channels + 1)
    squares = rows.T @ rows
    ridge = _RIDGE * len(rows) * torch.eye(len(squares), dtype=torch.float64)
    solved = torch.linalg.solve(squares + ridge, rows.T @ colors.flatten(1).T.double()).float()
    return solved[:-1], solved[-1]
