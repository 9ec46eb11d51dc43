"""`python -m tools.demo_model`: train the demo model, put it together, measure it.

    python -m tools.demo_model train                     everything, in the order of the stages; hours on one core
    python -m tools.demo_model train --stage mover       one stage; goes on where it stopped
    python -m tools.demo_model train --device cuda --batch 4
    python -m tools.demo_model export FOLDER             the trained parts as a WanPipeline
    python -m tools.demo_model measure FOLDER            the table of docs/demo_model.md

Stages: painter (VAE decoder), reader (VAE encoder), mover (transformer and text encoder). Seeds are fixed; results still
differ a little between machines, since sums of floating-point numbers depend on their order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

# What the shipped weights were made with.
STEPS = {"painter": 800, "reader": 1500, "mover": 3500}
BATCH = {"painter": 12, "reader": 2, "mover": 32}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train the stages, each from its checkpoint on")
    train.add_argument("--stage", choices=tuple(STEPS), action="append", help="default: all three")
    train.add_argument("--work", type=Path, default=Path.home() / ".cache/wan-compat-demo-training", help="checkpoints")
    train.add_argument("--device", default="cpu")
    train.add_argument("--threads", type=int, default=1)
    train.add_argument("--batch", type=int, default=1, help="multiplies every batch size")
    train.add_argument("--scale", type=float, default=1.0, help="multiplies every number of steps")
    train.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    from tools.demo_model.mover import train_mover
    from tools.demo_model.painter import train_painter, train_reader

    for stage in options.stage or STEPS:
        steps, batch = int(STEPS[stage] * options.scale), BATCH[stage] * options.batch
        if stage == "painter":
            train_painter(options.work, steps=steps, batch=batch, device=options.device)
        elif stage == "reader":
            train_reader(options.work, steps=steps, batch=batch, device=options.device)
        else:
            train_mover(options.work, steps=steps, batch=batch, device=options.device, compile_it=options.compile)


if __name__ == "__main__":
    main()
