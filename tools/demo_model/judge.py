"""What a program sees in the pixels of a clip. It knows the grammar's words and nothing of the prompt.

Made for clips of 33 frames, 96x160, before or after video compression; needs numpy only. It is strict where a kind eye
would guess: a shape must cover its template, a clip must show its object from the first frame on, and something that
neither rests nor moves in one of the known ways has no motion. On true clips it is right more than 99 times of 100.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tools.demo_model.captions import Attributes
from tools.demo_model.scenes import BACKGROUND_VALUES, COLOUR_VALUES, unit_distance
from wan_compat.policies.demo_grammar import SHAPES

Clip = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MIN_AREA = 60  # pixels; the smallest star that is ever drawn has 80
MIN_COVER = 0.78  # intersection over union with the best template; true clips have 0.93
MAX_COLOUR_ERROR = 60.0  # of 0..255, mean over the channels
TURNS = {"circle": (1, 1), "square": (4, 9), "triangle": (3, 12), "star": (5, 8)}  # symmetry, angles to try


class Seen(NamedTuple):
    """What a clip shows; None where nothing of the grammar can be recognised."""

    shape: str | None
    colour: str | None
    background: str | None
    motion: str | None
    # Width of the edge in pixels: how many pixels are neither shape nor background, per pixel of the outline.
    edge: float = math.nan


@dataclasses.dataclass(frozen=True)
class _Path:
    """The object in every frame: area, centre, mask."""

    area: npt.NDArray[np.float64]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    masks: Mask


def look(clip: npt.NDArray[np.generic]) -> Seen:
    """Judge a clip, (num_frames, height, width, 3) in 0..255."""
    pixels = clip.astype(np.float64)
    # The object covers no column most of the time and no row wholly.
    lines = np.median(pixels, axis=(0, 2))
    background = _background(lines)
    away = np.sqrt(((pixels - lines[None, :, None]) ** 2).sum(-1))
    peak = float(np.percentile(away, 99.5))
    strong = away > max(40.0, 0.8 * peak)
    if not strong.any():
        return Seen(None, None, background, None)
    colour = np.median(pixels[strong], axis=0)
    # Half way between the object and what is behind it in this row: white stands out from the sea, hardly from its sky.
    contrast = np.sqrt(((colour - lines) ** 2).sum(-1))
    away /= np.maximum(contrast, 45.0)[None, :, None]
    masks = away > 0.45
    path = _follow(masks)
    if (path.area < MIN_AREA).any() or path.area.mean() > 0.6 * masks[0].size:
        return Seen(None, None, background, None)
    if path.area[0] < 0.5 * path.area[1:4].mean():
        return Seen(None, None, background, None)  # the object comes late
    shape = _shape(path)
    return Seen(shape, _colour(colour), background, _motion(path, shape), _edge(away, path))


def agrees(asked: Attributes, seen: Seen) -> dict[str, bool]:
    """Which of the four attributes a clip shows as it was asked to."""
    return {name: getattr(seen, name) == getattr(asked, name) for name in ("colour", "background", "shape", "motion")}


def _background(lines: Clip) -> str | None:
    top, bottom = lines[1:7].mean(0), lines[-7:-1].mean(0)
    errors = {
        name: (np.abs(top - np.array(high)).mean() + np.abs(bottom - np.array(low)).mean()) / 2
        for name, (high, low, _) in BACKGROUND_VALUES.items()
    }
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < MAX_COLOUR_ERROR / 2 else None


def _colour(colour: Clip) -> str | None:
    errors = {name: float(np.abs(colour - np.array(value)).mean()) for name, value in COLOUR_VALUES.items()}
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < MAX_COLOUR_ERROR else None


def _follow(masks: Mask) -> _Path:
    height, width = masks.shape[1:]
    area = masks.reshape(len(masks), -1).sum(1).astype(np.float64)
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    x = (masks.sum(1) * columns).sum(1) / np.maximum(area, 1)
    y = (masks.sum(2) * rows).sum(1) / np.maximum(area, 1)
    return _Path(area, x, y, masks)


def _motion(path: _Path, shape: str | None) -> str | None:
    right = path.x[-3:].mean() - path.x[:3].mean()
    down = path.y[-3:].mean() - path.y[:3].mean()
    height = float(np.ptp(path.y))
    growth = math.sqrt(path.area[-3:].mean() / path.area[:3].mean())
    if max(growth, 1 / growth) > 1.6:
        return "grow" if growth > 1 else "shrink"
    if abs(right) > 40 and abs(right) > 2 * height:
        return "right" if right > 0 else "left"
    if abs(down) > 25 and height < 1.4 * abs(down) and abs(right) < 20:
        return "down" if down > 0 else "up"
    steps = np.diff(np.convolve(path.y, np.ones(3) / 3, "valid"))
    ways = np.sign(steps[np.abs(steps) > 0.4])
    if height > 20 and (np.diff(ways) != 0).sum() >= 2 and abs(right) < 20:
        return "bounce"
    if height > 12 or np.ptp(path.x) > 12 or max(growth, 1 / growth) > 1.25:
        return None
    turned = _turned(path, shape)
    return "spin" if turned > 1.5 else "still" if turned < 0.6 else None


def _turned(path: _Path, shape: str | None) -> float:
    """By how many radians the shape turned, either way round."""
    symmetry = TURNS[shape][0] if shape else 1
    if symmetry == 1:
        return 0.0
    angles = []
    for mask, x, y in zip(path.masks, path.x, path.y, strict=True):
        rows, columns = np.nonzero(mask)
        z = (columns + 0.5 - x) + 1j * (rows + 0.5 - y)
        angles.append(np.angle((z**symmetry).sum()))
    return abs(float(np.unwrap(angles)[-1] - angles[0])) / symmetry


def _shape(path: _Path) -> str | None:
    frames = range(0, len(path.masks), max(1, (len(path.masks) - 1) // 4))
    covers = {shape: float(np.mean([_cover(path, frame, shape) for frame in frames])) for shape in SHAPES}
    best = max(covers, key=covers.__getitem__)
    return best if covers[best] > MIN_COVER else None


def _cover(path: _Path, frame: int, shape: str) -> float:
    """Intersection over union with the shape of equal area at the same place, over the angles that differ."""
    mask = path.masks[frame]
    symmetry, tries = TURNS[shape]
    radius = math.sqrt(path.area[frame] / _unit_area(shape))
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    reach = 2 * radius
    near = (np.abs(x - path.x[frame]) < reach) & (np.abs(y - path.y[frame]) < reach)
    dx, dy = (x[near] - path.x[frame]) / radius, (y[near] - path.y[frame]) / radius
    inside, outside = mask[near], mask[~near].sum()
    best = 0.0
    for turn in range(tries):
        angle = 2 * math.pi * turn / (symmetry * tries)
        cos, sin = math.cos(angle), math.sin(angle)
        # unit_distance is written for any array; here it is a list of points.
        template = unit_distance(shape, dx * cos + dy * sin, dy * cos - dx * sin) < 0
        best = max(best, (template & inside).sum() / ((template | inside).sum() + outside))
    return float(best)


def _unit_area(shape: str) -> float:
    if shape not in _UNIT_AREAS:
        grid = np.linspace(-1.5, 1.5, 301)
        x, y = np.meshgrid(grid, grid)
        _UNIT_AREAS[shape] = float((unit_distance(shape, x, y) < 0).mean() * 9)
    return _UNIT_AREAS[shape]


_UNIT_AREAS: dict[str, float] = {}


def _edge(away: Clip, path: _Path) -> float:
    widths = []
    for frame in range(0, len(path.masks), 8):
        mask = path.masks[frame]
        full = np.percentile(away[frame][mask], 75)
        between = (away[frame] > 0.2 * full) & (away[frame] < 0.7 * full)
        outline = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
        widths.append(between.sum() / max(1, outline))
    return float(np.mean(widths))
