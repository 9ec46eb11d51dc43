"""Latents that are drawn, not learnt: what the transformer makes and the VAE's decoder paints.

A learnt latent space costs most of a small budget, and its blur limits every shape. Here the space is chosen: sixteen
numbers for 16x16 pixels and four frames that vary smoothly with everything that can happen in a scene, so that noise in
them moves an edge a little instead of tearing it.

    0-7    how deep inside the shape: tanh(-distance / 12 pixels) at 2 times x 2 rows x 2 columns of the cell
    8-10   colour of the shape, the same everywhere
    11-13  colour of the background in this row
    14-15  how much brighter, and how much redder than blue, its lower half is than its upper half

The first latent frame stands for the first frame, every other one for four (the causal layout of Wan's VAE); its two
times are the second and the last of those. All are shifted and scaled to mean 0 and deviation about 1.
"""

from __future__ import annotations

import numpy as np

from tools.demo_model.scenes import HEIGHT, NUM_FRAMES, WIDTH, Array, Scene, background, distance

CELL, CHANNELS = 16, 16
LATENT_FRAMES = (NUM_FRAMES - 1) // 4 + 1
DEPTH_PIXELS = 12.0

# Over the training's scenes (tests/tools/test_demo_model.py looks whether they still hold).
_DEPTH_MEAN, _DEPTH_STD = -0.86, 0.42
_COLOUR_MEAN, _COLOUR_STD = np.array([0.40, -0.02, -0.05]), np.array([0.60, 0.55, 0.65])
_BEHIND_MEAN, _BEHIND_STD = np.array([-0.26, -0.16, -0.05]), np.array([0.66, 0.66, 0.62])
_CHANGE_STD = np.array([0.20, 0.14])


def draw_fields(scene: Scene, left: int = 0, top: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Array:
    """Return the latents of a window: (16, latent frames, height / 16, width / 16). Its frames are 1 + a multiple of 4."""
    frames = (scene.num_frames - 1) // 4 + 1
    rows, columns = height // CELL, width // CELL
    half = CELL // 2
    x = left + half * (np.arange(2 * columns, dtype=np.float32) + 0.5)
    y = top + half * (np.arange(2 * rows, dtype=np.float32) + 0.5)
    times = [0, 0, *range(2, scene.num_frames, 2)]
    depth = np.tanh(-distance(scene, x, y)[times] / DEPTH_PIXELS)
    depth = (depth - _DEPTH_MEAN) / _DEPTH_STD
    depth = depth.reshape(frames, 2, rows, 2, columns, 2).transpose(1, 3, 5, 0, 2, 4).reshape(8, frames, rows, columns)

    colour = (scene.colour / 127.5 - 1 - _COLOUR_MEAN) / _COLOUR_STD
    lines = background(scene, top + np.arange(height, dtype=np.float32) + 0.5) / 127.5 - 1
    upper, lower = lines.reshape(rows, 2, half, 3).mean(2).transpose(1, 0, 2)
    behind = ((upper + lower) / 2 - _BEHIND_MEAN) / _BEHIND_STD
    change = lower - upper
    change = np.stack([change.sum(1) / 3, (change[:, 0] - change[:, 2]) / 2], 1) / _CHANGE_STD

    out = np.empty((CHANNELS, frames, rows, columns), np.float32)
    out[:8] = depth
    out[8:11] = colour[:, None, None, None]
    out[11:14] = behind.T[:, None, :, None]
    out[14:16] = change.T[:, None, :, None]
    return out
