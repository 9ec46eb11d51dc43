"""Jobs as a user gives them beside the calls of diffusers that make the same frames, for tests through real workers."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wan_compat import GenerationRequest, Supervisor, VideoGenerationResult
from wan_compat.supervisor import events as ev

SCRIPT = Path(__file__).parents[1] / "programs" / "plain_relatives.py"
SIZE = {"height": 64, "width": 96, "num_inference_steps": 2, "guidance_scale": 4.0}
TEXT = {"prompt": "a red ball bounces to the right", "negative_prompt": "blurred details", "max_sequence_length": 16}
SEED = 7


@dataclasses.dataclass(frozen=True)
class Case:
    """A job as a user gives it, and the call of diffusers that makes the same frames."""

    kind: str
    pipeline: str
    media: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # of the plain call: what differs from the fields (None leaves one out), and media by its names
    plain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    plain_media: Mapping[str, tuple[str, Any, str]] = dataclasses.field(default_factory=dict)
    frames: tuple[int, int | None] = (0, None)  # of what the plain call returns
    steps: int = 2
    guiders: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of modular blocks: their scales

    @property
    def request(self) -> dict[str, Any]:
        return {**SIZE, "num_frames": 9, **TEXT, **self.fields}


def write_media(folder: Path, count: int = 85) -> dict[str, str]:
    """Write files without loss, in the size that is asked for: pixels reach diffusers as they are."""
    video = _frames(count, 64, 96)
    masks = [frame.convert("L").point(lambda value: 255 if value > 127 else 0).convert("RGB") for frame in video]
    found = {"image": str(folder / "image.png")}
    video[3].save(found["image"])
    for name, frames in {"video": video, "face": _frames(count, 16, 16), "mask": masks, "short": video[:5]}.items():
        found[name] = str(folder / f"{name}.webp")
        options = {"lossless": True, "quality": 0, "method": 0, "duration": 40}
        frames[0].save(found[name], save_all=True, append_images=frames[1:], **options)
    return found


def _frames(count: int, height: int, width: int) -> list[Image.Image]:
    """Return tiles of colour that move."""
    tiles = np.random.default_rng(1).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    block = np.ones((8, 8, 1), np.uint8)
    # No two frames in a row are equal: WebP would join them.
    return [Image.fromarray(np.kron(np.roll(tiles, step, 1) ^ np.uint8(step), block)) for step in range(count)]


def with_another_gamma(model: Path, folder: Path) -> Path:
    """Copy a Helios pyramid, with another gamma than all have: with 1/3, diffusers itself fails on a CPU."""
    shutil.copytree(model, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gamma": 0.3}))
    return folder


def run_plain(cases: Mapping[str, Case], models: Mapping[str, Path], media: Mapping[str, str], folder: Path) -> None:
    """Write the frames of each case into `folder`, made by one plain script."""
    orders = []
    for name, case in cases.items():
        arguments = {key: value for key, value in (case.request | dict(case.plain)).items() if value is not None}
        given = {key: (media[file], take, mode) for key, (file, take, mode) in case.plain_media.items()}
        order = {"model": str(models[case.kind]), "class": case.pipeline, "arguments": arguments, "media": given}
        orders.append({**order, "guiders": dict(case.guiders), "seed": SEED, "output": str(folder / f"{name}.npy")})
    (folder / "cases.json").write_text(json.dumps(orders))
    command = [sys.executable, str(SCRIPT), str(folder / "cases.json")]
    # Without a compiler: what it would build gives the same values, minutes later.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def run(
    supervisor: Supervisor, case: Case, model: Path, media: Mapping[str, str]
) -> tuple[VideoGenerationResult, list[tuple[int, int]]]:
    """Return a job's result, and the steps of denoising with their totals."""
    files = {role: media[file] for role, file in case.media.items()}
    job = supervisor.submit(GenerationRequest(model=str(model), seed=SEED, **case.request, **files))
    seen = [event for event in job.events() if isinstance(event, ev.Progress) and event.phase == "denoise"]
    return job.result(), [(event.step, event.total) for event in seen]


def assert_equal(case: Case, result: VideoGenerationResult, steps: list[tuple[int, int]], plain: Path) -> None:
    expected = np.load(plain)[slice(*case.frames)]
    assert result.frames is not None and result.metadata.pipeline_class == case.pipeline
    assert np.array_equal(result.frames.frames, expected)
    assert expected.std() > 5  # a constant picture would be equal too
    assert steps == [(step, case.steps) for step in range(1, case.steps + 1)]
