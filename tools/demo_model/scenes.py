"""A clip before it is pixels: one shape that moves before a background, and how to draw it.

Lengths are pixels of a 160x96 canvas, time runs over 33 frames. Angles are radians, clockwise on the screen.
Two kinds of questions are asked of a scene: its pixels (`render`), and the signed distance to the shape's edge at some
points (`distance`), from which fields.py makes latents.
"""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import numpy.typing as npt

from tools.demo_model.captions import Attributes
from wan_compat.policies.demo_grammar import SHAPES

WIDTH, HEIGHT, NUM_FRAMES, FPS = 160, 96, 33, 16
Array = npt.NDArray[np.float32]

COLOUR_VALUES = {
    "red": (225, 35, 40), "green": (45, 185, 65), "blue": (45, 90, 235), "yellow": (248, 220, 45),
    "orange": (248, 138, 25), "purple": (150, 55, 205), "pink": (252, 135, 195), "white": (248, 248, 248),
}  # fmt: skip
# Colour at the top, colour at the bottom, and the height of a horizon, or None for a smooth gradient.
BACKGROUND_VALUES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], float | None]] = {
    "black": ((10, 10, 12), (22, 22, 26), None),
    "white": ((250, 250, 250), (226, 226, 230), None),
    "grey": ((140, 140, 142), (112, 112, 116), None),
    "dark blue": ((14, 22, 74), (26, 40, 108), None),
    "light blue": ((140, 200, 246), (178, 222, 250), None),
    "dark green": ((10, 56, 30), (20, 82, 46), None),
    "dark red": ((78, 8, 18), (110, 18, 28), None),
    "sunset": ((92, 44, 120), (250, 150, 84), None),
    "meadow": ((150, 206, 248), (84, 158, 66), 0.62),
    "sea": ((190, 224, 246), (24, 88, 150), 0.55),
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """Where the shape is in every frame, how large and how turned, and the colours, 0..255."""

    shape: str
    x: Array
    y: Array
    radius: Array
    angle: Array
    colour: Array
    top: Array
    bottom: Array
    horizon: float | None  # pixels from the top

    @property
    def num_frames(self) -> int:
        return len(self.x)

    def cut(self, start: int, num_frames: int) -> Scene:
        """The same scene, a part of its time."""
        part = slice(start, start + num_frames)
        return dataclasses.replace(
            self, x=self.x[part], y=self.y[part], radius=self.radius[part], angle=self.angle[part]
        )


def sample_scene(rng: random.Random, a: Attributes) -> Scene:
    """Draw one of the clips that `a` describes. What is left to chance is what different seeds show."""
    u = np.linspace(0.0, 1.0, NUM_FRAMES)
    same = np.ones(NUM_FRAMES)
    x, y = rng.uniform(0.42, 0.58) * WIDTH * same, rng.uniform(0.45, 0.55) * HEIGHT * same
    radius, angle = rng.uniform(18.0, 21.0) * same, rng.uniform(-0.1, 0.1) * same
    if a.motion in ("left", "right"):
        way = rng.uniform(78, 96)
        x = WIDTH / 2 + way * (u - 0.5) + rng.uniform(-6, 6)
        x = x if a.motion == "right" else WIDTH - x
    elif a.motion in ("up", "down"):
        way = rng.uniform(42, 52)
        y = HEIGHT / 2 + way * (u - 0.5) + rng.uniform(-2, 2)
        y = y if a.motion == "down" else HEIGHT - y
    elif a.motion in ("grow", "shrink"):
        small, large = rng.uniform(10, 12), rng.uniform(28, 32)
        radius = small + (large - small) * u
        radius = radius if a.motion == "grow" else radius[::-1]
        y = HEIGHT / 2 + rng.uniform(-4, 4) * same
    elif a.motion == "spin":
        radius, angle = rng.uniform(21, 25) * same, angle + rng.uniform(3.2, 4.0) * u
    elif a.motion == "bounce":
        floor, jump = 0.70 * HEIGHT + rng.uniform(-2, 2), rng.uniform(36, 44)
        y = floor - jump * np.abs(np.sin(math.pi * (2 * u + rng.uniform(0.0, 0.12))))

    def near(value: tuple[int, int, int]) -> Array:
        return np.clip([part + rng.uniform(-5, 5) for part in value], 0, 255).astype(np.float32)

    top, bottom, horizon = BACKGROUND_VALUES[a.background]
    return Scene(
        shape=a.shape,
        x=x.astype(np.float32), y=y.astype(np.float32),
        radius=radius.astype(np.float32), angle=angle.astype(np.float32),
        colour=near(COLOUR_VALUES[a.colour]), top=near(top), bottom=near(bottom),
        horizon=None if horizon is None else (horizon + rng.uniform(-0.06, 0.06)) * HEIGHT,
    )  # fmt: skip


def distance(scene: Scene, x: Array, y: Array) -> Array:
    """Signed distance in pixels to the edge, positive outside: (num_frames, len(y), len(x))."""
    radius = scene.radius[:, None, None]
    dx, dy = (x[None, None, :] - scene.x[:, None, None]) / radius, (y[None, :, None] - scene.y[:, None, None]) / radius
    cos, sin = np.cos(scene.angle)[:, None, None], np.sin(scene.angle)[:, None, None]
    return unit_distance(scene.shape, dx * cos + dy * sin, dy * cos - dx * sin) * radius


def unit_distance(shape: str, x: Array, y: Array) -> Array:
    """Signed distance to a shape of radius one around the origin, y downwards. All four are about equally large."""
    if shape == "circle":
        return np.sqrt(x * x + y * y) - 1
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88
    if shape == "triangle":
        return np.maximum(0.8660254 * np.abs(x) - 0.5 * y - 0.575, y - 0.575)
    return _star(x, y)


def background(scene: Scene, y: Array) -> Array:
    """Colour 0..255 at heights `y`: (len(y), 3)."""
    share = y / HEIGHT if scene.horizon is None else (y - scene.horizon) / 1.2 + 0.5
    return scene.top + (scene.bottom - scene.top) * np.clip(share, 0, 1)[:, None]


def render(scene: Scene, left: int = 0, top: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Array:
    """Draw a window of the canvas: (num_frames, height, width, 3), 0..255."""
    x, y = left + np.arange(width, dtype=np.float32) + 0.5, top + np.arange(height, dtype=np.float32) + 0.5
    alpha = np.clip(0.5 - distance(scene, x, y) / 1.2, 0, 1)[..., None]
    radius = scene.radius[:, None, None]
    slope = 0.5 * (x[None, None, :] - scene.x[:, None, None]) + (y[None, :, None] - scene.y[:, None, None])
    # Light from the upper left: enough for a body, too little to change the name of a colour.
    shade = np.clip(1 - 0.13 * slope / radius, 0.75, 1.15)[..., None]
    behind = background(scene, y)[None, :, None, :]
    front = np.clip(scene.colour * shade, 0, 255)
    return (behind + (front - behind) * alpha).astype(np.float32)


def _star(x: Array, y: Array, outer: float = 1.15, inner: float = 0.45) -> Array:
    # Signed distance to a five-pointed star with a point up, by reflection into one of its ten wedges.
    # https://iquilezles.org/articles/distfunctions2d/
    y = -y
    ax, ay = 0.809016994375, -0.587785252292
    x = np.abs(x)
    d = 2 * np.maximum(ax * x + ay * y, 0)
    x, y = x - d * ax, y - d * ay
    d = 2 * np.maximum(-ax * x + ay * y, 0)
    x, y = x + d * ax, y - d * ay
    x = np.abs(x)
    y = y - outer
    bx, by = -inner * ay, inner * ax - 1
    along = np.clip((x * bx + y * by) / (bx * bx + by * by), 0, outer)
    return np.sqrt((x - bx * along) ** 2 + (y - by * along) ** 2) * np.sign(y * bx - x * by)


assert set(SHAPES) == {"circle", "square", "triangle", "star"}
