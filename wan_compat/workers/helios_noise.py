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
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

Sample = Callable[..., torch.Tensor]


def mend_block_noise(pipeline: Any) -> None:
    """Let a HeliosPyramidPipeline, or a block of one, draw its noise on a CPU too."""
    pipeline.sample_block_noise = _mended(pipeline.sample_block_noise, lambda: pipeline.scheduler.config.gamma)


def mend_noise_of_blocks() -> None:
    """The same for the modular blocks, which share a function. For a process that runs nothing else."""
    module: Any = importlib.import_module("diffusers.modular_pipelines.helios.denoise")
    if not hasattr(module.sample_block_noise, "__wrapped__"):
        module.sample_block_noise = _mended(module.sample_block_noise, None)


def _mended(sample: Sample, gamma_of: Callable[[], float] | None) -> Sample:
    """Return diffusers' way with another one behind it. Without `gamma_of`, gamma is one of its arguments."""

    signature = inspect.signature(sample)

    @functools.wraps(sample)
    def sample_block_noise(*arguments: Any, **options: Any) -> torch.Tensor:
        try:
            return sample(*arguments, **options)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # before anything was drawn
            pass
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        given = bound.arguments
        batch_size, channel, num_frames = given["batch_size"], given["channel"], given["num_frames"]
        height, width, device, generator = given["height"], given["width"], given["device"], given["generator"]
        gamma = gamma_of() if gamma_of is not None else given["gamma"]
        patch_size = given["patch_size"]
        _, block_height, block_width = patch_size
        factor = block_factor(gamma, block_height * block_width).to(device)
        rows, columns = height // block_height, width // block_width
        blocks = batch_size * channel * num_frames * rows * columns
        source = generator.device if generator is not None else device
        noise = torch.randn(blocks, block_height * block_width, generator=generator, device=source).to(device)
        noise = (noise @ factor.T).view(batch_size, channel, num_frames, rows, columns, block_height, block_width)
        joined: torch.Tensor = noise.permute(0, 1, 2, 3, 5, 4, 6).reshape(
            batch_size, channel, num_frames, height, width
        )
        return joined

    return sample_block_noise


def block_factor(gamma: float, block_size: int) -> torch.Tensor:
    """Return what makes independent values into those of a block: (block_size, block_size) float32."""
    identity = torch.eye(block_size, dtype=torch.float64)
    covariance = identity * (1 + gamma + 1e-8) - torch.ones_like(identity) * gamma
    factor: torch.Tensor = torch.linalg.cholesky(covariance)
    return factor.float()
