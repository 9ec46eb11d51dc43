"""Pipelines of tiny models for tests of plans; call where torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.assets.tiny_wan import tiny_model

HEIGHT, WIDTH, FRAMES = 64, 96, 5


def pipeline(kind: str = "t2v", dtype: Any = None) -> Any:
    """Return the tiny pipeline as a plain script loads it."""
    import torch
    from diffusers import DiffusionPipeline

    made = DiffusionPipeline.from_pretrained(
        tiny_model(kind), torch_dtype=dtype or torch.float32, local_files_only=True
    )
    made.set_progress_bar_config(disable=True)
    return made


def frames(made: Any, prompt: str = "a red ball", steps: int = 2, **changes: Any) -> Any:
    """Return the frames of one small generation, (num_frames, 3, height, width) in [0, 1]."""
    import torch

    given: dict[str, Any] = {"prompt": prompt, "height": HEIGHT, "width": WIDTH, "num_frames": FRAMES}
    generator = torch.Generator("cpu").manual_seed(5)
    output = made(
        **{**given, **changes},
        num_inference_steps=steps,
        max_sequence_length=16,
        generator=generator,
        output_type="pt",
    )
    return output.frames[0]


def folder(kind: str, component: str) -> str:
    return str(Path(tiny_model(kind)) / component)
