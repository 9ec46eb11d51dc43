"""Helios' pyramid on a CPU: the noise between two sizes, where diffusers' way to it fails.

`sample_block_noise` draws blocks of 2x2 values that sum to nothing. Their covariance is singular by construction, since
every Helios scheduler has gamma = 1/3; the 1e-8 that diffusers adds against it is lost in float32. What a factorisation
makes of that is rounding: cuSOLVER goes on, LAPACK refuses (vllm-project/vllm-omni issue 4908, pull request 7643). In
float64 the 1e-8 is there. So diffusers' own way is tried first, and its frames stay its own wherever it works.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import functools
from typing import Any

import torch


def mend_block_noise(pipeline: Any) -> None:
    """Let a HeliosPyramidPipeline, or a block of one, draw its noise on a CPU too."""
    sample = pipeline.sample_block_noise

    @functools.wraps(sample)
    def sample_block_noise(
        batch_size: int,
        channel: int,
        num_frames: int,
        height: int,
        width: int,
        patch_size: tuple[int, ...] = (1, 2, 2),
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        try:
            drawn: torch.Tensor = sample(
                batch_size, channel, num_frames, height, width, patch_size, device=device, generator=generator
            )
            return drawn
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # before anything was drawn
            pass
        _, block_height, block_width = patch_size
        factor = block_factor(pipeline.scheduler.config.gamma, block_height * block_width).to(device)
        rows, columns = height // block_height, width // block_width
        blocks = batch_size * channel * num_frames * rows * columns
        source = generator.device if generator is not None else device
        noise = torch.randn(blocks, block_height * block_width, generator=generator, device=source).to(device)
        noise = (noise @ factor.T).view(batch_size, channel, num_frames, rows, columns, block_height, block_width)
        joined: torch.Tensor = noise.permute(0, 1, 2, 3, 5, 4, 6).reshape(
            batch_size, channel, num_frames, height, width
        )
        return joined

    pipeline.sample_block_noise = sample_block_noise


def block_factor(gamma: float, block_size: int) -> torch.Tensor:
    """Return what makes independent values into those of a block: (block_size, block_size) float32."""
    identity = torch.eye(block_size, dtype=torch.float64)
    covariance = identity * (1 + gamma + 1e-8) - torch.ones_like(identity) * gamma
    factor: torch.Tensor = torch.linalg.cholesky(covariance)
    return factor.float()
