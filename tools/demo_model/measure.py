"""Measures a model with the judge: the table of docs/demo_model.md, and pictures of the first seeds.

The prompts are fixed by their split and count. Those of "test" name combinations of attributes that no training saw and
no choice was made with; the seed of a clip is its place in the list.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import WanPipeline
from PIL import Image

from tools.demo_model.captions import Attributes, Split
from tools.demo_model.judge import Seen, agrees, look
from tools.demo_model.prompts import prompts
from tools.demo_model.scenes import FPS, HEIGHT, NUM_FRAMES, WIDTH, render, sample_scene
from wan_compat.supervisor.demo import DEMO_CLIP

ATTRIBUTES = ("colour", "background", "shape", "motion")


class Generator:
    """The model as a person would run it with diffusers, float32 on the CPU, at the demo's settings."""

    def __init__(
        self, folder: Path, *, steps: int | None = None, guidance: float | None = None, shift: float | None = None
    ) -> None:
        self.pipeline = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        if shift is not None:
            self.pipeline.scheduler = type(self.pipeline.scheduler).from_config(
                self.pipeline.scheduler.config, flow_shift=shift
            )
        self.steps = DEMO_CLIP.num_inference_steps if steps is None else steps
        self.guidance = DEMO_CLIP.guidance_scale if guidance is None else guidance

    def __call__(self, prompt: str, seed: int) -> npt.NDArray[np.uint8]:
        """Return (num_frames, height, width, 3)."""
        clip = self.pipeline(
            prompt=prompt,
            height=HEIGHT,
            width=WIDTH,
            num_frames=NUM_FRAMES,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).frames[0]
        return (clip * 255).astype(np.uint8)


def measure(
    generate: Generator, split: Split, count: int, *, verbose: bool = False
) -> list[tuple[Attributes, str, Seen]]:
    """Generate and judge `count` clips; print the table as Markdown."""
    rows, times = [], []
    for seed, (asked, prompt) in enumerate(prompts(split, count)):
        began = time.perf_counter()
        clip = generate(prompt, seed)
        times.append(time.perf_counter() - began)
        rows.append((asked, prompt, look(clip)))
        if verbose:
            wrong = [name for name, right in agrees(asked, rows[-1][2]).items() if not right]
            print(f"{seed:4} {prompt:70} {'ok' if not wrong else 'not the ' + ', '.join(wrong)}", flush=True)
    truth = [
        (asked, look(render(sample_scene(random.Random(seed), asked)).astype(np.uint8)))
        for seed, (asked, _, _) in enumerate(rows)
    ]
    print_table([(asked, seen) for asked, _, seen in rows], truth)
    print(
        f"\n{count} prompts of the split '{split}', {generate.steps} steps, guidance {generate.guidance:g}; median {statistics.median(times):.2f} s a clip."
    )
    return rows


def print_table(rows: list[tuple[Attributes, Seen]], truth: list[tuple[Attributes, Seen]]) -> None:
    """The shares of clips in which the judge saw what was asked for, beside what it sees in true clips."""
    print("| seen in the pixels | generated | true clips |\n|---|---|---|")

    def share(judged: list[tuple[Attributes, Seen]], names: tuple[str, ...]) -> str:
        right = sum(all(agrees(asked, seen)[name] for name in names) for asked, seen in judged)
        return f"{right}/{len(judged)} ({right / len(judged):.1%})"

    for name in ATTRIBUTES:
        print(f"| {name} | {share(rows, (name,))} | {share(truth, (name,))} |")
    print(f"| **all four** | **{share(rows, ATTRIBUTES)}** | {share(truth, ATTRIBUTES)} |")
    edges = [np.nanmedian([seen.edge for _, seen in judged]) for judged in (rows, truth)]
    print(f"| width of edges, pixels | {edges[0]:.2f} | {edges[1]:.2f} |")
    for name in ("shape", "motion"):
        asked_for = Counter(getattr(asked, name) for asked, _ in rows)
        right = Counter(getattr(asked, name) for asked, seen in rows if agrees(asked, seen)[name])
        print(
            f"\n{name} by kind: " + ", ".join(f"{kind} {right[kind]}/{asked_for[kind]}" for kind in sorted(asked_for))
        )


def contact_sheet(clips: list[npt.NDArray[np.uint8]], columns: int) -> Image.Image:
    """Five frames of each clip, from first to last."""
    strips = [np.concatenate(list(clip[[0, 8, 16, 24, 32]]), axis=1) for clip in clips]
    while len(strips) % columns:
        strips.append(np.full_like(strips[0], 255))
    rows = [np.concatenate(strips[i : i + columns], axis=1) for i in range(0, len(strips), columns)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def write_animation(clips: list[npt.NDArray[np.uint8]], columns: int, path: Path) -> None:
    """All clips side by side as one animated WebP."""
    edge = 2
    padded = [np.pad(clip, ((0, 0), (edge, edge), (edge, edge), (0, 0)), constant_values=255) for clip in clips]
    rows = [np.concatenate(padded[i : i + columns], axis=2) for i in range(0, len(padded), columns)]
    frames = [Image.fromarray(frame) for frame in np.concatenate(rows, axis=1)]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=round(1000 / FPS), loop=0, quality=80, method=6
    )
