"""What all trainings share: the loop, the running average of the weights, checkpoints, and going on after a stop.

Every step draws its data from a seed of its own, so a training that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tools.demo_model.muon import MuonAndAdam

SAVE_EVERY_S = 120.0


def train(
    name: str,
    work: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimiser: MuonAndAdam,
    *,
    steps: int,
    loss_of: Callable[[random.Random, int], torch.Tensor],
    schedule: Callable[[float], float],
    average: float = 0.998,
) -> None:
    """Run `steps` steps, from `work/NAME.pt` on if it is there, and leave it there with the averaged weights.

    Args:
        loss_of: Draws a batch with the given generator (torch's own is seeded too) and returns the loss.
        schedule: The share of the learning rate at a progress of 0..1.
        average: How much of the running average of the weights stays at each step, once it is long enough.
    """
    path = work / f"{name}.pt"
    means = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    start = 0
    if path.exists():
        saved = torch.load(path, map_location="cpu")
        start = saved["step"]
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(saved["weights"][key])
                means[key].copy_(saved["average"][key])
        optimiser.load_state_dict(saved["optimiser"])
        print(f"{name}: going on at step {start} of {steps}", flush=True)

    def save(step: int) -> None:
        weights = {key: parameter.detach() for key, parameter in parameters.items()}
        write(path, {"step": step, "weights": weights, "average": means, "optimiser": optimiser.state_dict()})

    began = saved_at = time.monotonic()
    smooth = None
    for step in range(start, steps):
        seed = f"{name} {step}"
        torch.manual_seed(random.Random(seed).getrandbits(62))
        loss = loss_of(random.Random(seed), step)
        for parameter in parameters.values():
            parameter.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step(schedule(step / steps))
        with torch.no_grad():
            kept = min(average, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(means.values()), list(parameters.values()), 1 - kept)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 49:
            pace = (time.monotonic() - began) / (step + 1 - start)
            print(f"{name} {step + 1}/{steps}  loss {smooth:.4f}  {pace:.2f} s a step", flush=True)
        if time.monotonic() - saved_at > SAVE_EVERY_S:
            save(step + 1)
            saved_at = time.monotonic()
    save(max(start, steps))


def write(path: Path, value: Any) -> None:
    """Save so that a stop at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def trapezium(warm: float, cool: float) -> Callable[[float], float]:
    """A schedule: up during the first share `warm`, down to nearly zero during the last share `cool`."""
    return lambda progress: min(1.0, (progress + 1e-4) / warm, (1 - progress) / cool + 0.01)
