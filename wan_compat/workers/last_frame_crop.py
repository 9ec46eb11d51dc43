"""The last picture of diffusers' modular blocks for first and last frames, cut without torchvision.

`WanImageCropResizeStep` (diffusers 0.42.1) calls torchvision's `center_crop` with [width, height], where that takes
(height, width): what is not square is cut the wrong way round, filled with black, and stretched afterwards. Its
comments say what is meant, a picture of the first one's size; so it is made here, as the ordinary pipeline has it. A
picture reaches the blocks in the job's size already, so that this is the picture itself.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import importlib
import types
from typing import Any


def crop_last_frames_here() -> None:
    """Put the function in torchvision's place, whether that is there or not. For a process that runs nothing else."""
    module: Any = importlib.import_module("diffusers.modular_pipelines.wan.encoders")
    module.transforms = types.SimpleNamespace(functional=types.SimpleNamespace(center_crop=center_crop))


def center_crop(image: Any, size: list[int]) -> Any:
    """Return the middle of a PIL picture. `size` is (width, height); what lies outside of the picture is black."""
    width, height = size
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
