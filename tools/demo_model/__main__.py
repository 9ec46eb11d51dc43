"""Train the demo model, put it together, measure it.

    python -m tools.demo_model train                     everything, in the order of the stages; hours on one core
    python -m tools.demo_model train --stage mover       one stage; goes on where it stopped
    python -m tools.demo_model train --device cuda       the same on a GPU
    python -m tools.demo_model export FOLDER             the trained parts as a WanPipeline
    python -m tools.demo_model measure FOLDER            the table of docs/demo_model.md
    python -m tools.demo_model pictures FOLDER           the pictures of the README, first seeds

Stages: painter (VAE decoder), reader (VAE encoder), mover (transformer and text encoder). Seeds are fixed; results still
differ a little between machines, since sums of floating-point numbers depend on their order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

STEPS = {"painter": 2800, "reader": 1000, "mover": 9020}
BATCH = {"painter": 12, "reader": 2, "mover": 32}
SHIPPED = Path(__file__).parents[2] / "wan_compat/data/demo_model"


def main() -> None:
    options = _parser().parse_args()
    import torch

    torch.set_num_threads(options.threads)
    options.run(options)


def _train(options: argparse.Namespace) -> None:
    from tools.demo_model.mover import train_mover
    from tools.demo_model.painter import train_painter, train_reader

    options.work.mkdir(parents=True, exist_ok=True)
    for stage in options.stage or STEPS:
        steps, batch = int(STEPS[stage] * options.scale), BATCH[stage] * options.batch
        if stage == "painter":
            train_painter(options.work, steps=steps, batch=batch, device=options.device)
        elif stage == "reader":
            train_reader(options.work, steps=steps, batch=batch, device=options.device)
        else:
            train_mover(options.work, steps=steps, batch=batch, device=options.device, compile_it=options.compile)


def _export(options: argparse.Namespace) -> None:
    from tools.demo_model.export import export

    export(options.work, options.folder)


def _measure(options: argparse.Namespace) -> None:
    from tools.demo_model.measure import Generator, measure

    generate = Generator(options.folder, steps=options.steps, guidance=options.guidance, shift=options.shift)
    measure(generate, options.split, options.prompts, verbose=options.verbose)


def _pictures(options: argparse.Namespace) -> None:
    from tools.demo_model.measure import Generator, contact_sheet, write_animation
    from tools.demo_model.prompts import prompts

    generate = Generator(options.folder)
    clips = []
    for seed, (_, prompt) in enumerate(prompts("test", 16)):
        clips.append(generate(prompt, seed))
        print(f'wan-compat demo --prompt "{prompt}" --seed {seed}')
    write_animation(clips[:6], 3, options.to / "demo.webp")
    contact_sheet(clips, 2).save(options.to / "demo_contact_sheet.webp", quality=80, method=6)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch, before the command")
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text)
        one.set_defaults(run=run)
        return one

    train = command("train", _train, "train the stages, each from its checkpoint on")
    train.add_argument("--stage", choices=tuple(STEPS), action="append", help="default: all three")
    train.add_argument("--device", default="cpu")
    train.add_argument("--batch", type=int, default=1, help="multiplies every batch size")
    train.add_argument("--scale", type=float, default=1.0, help="multiplies every number of steps")
    train.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler")
    export = command("export", _export, "write a WanPipeline")
    measure = command("measure", _measure, "generate, judge, print the table")
    measure.add_argument("--prompts", type=int, default=220)
    measure.add_argument("--split", choices=("choose", "test"), default="test")
    for name, kind in (("steps", int), ("guidance", float), ("shift", float)):
        measure.add_argument(f"--{name}", type=kind, help="default: the demo's")
    measure.add_argument("--verbose", action="store_true", help="one line a prompt")
    pictures = command("pictures", _pictures, "draw the README's pictures")
    pictures.add_argument("--to", type=Path, default=SHIPPED.parents[2] / "docs/images")
    for one in (train, export):
        one.add_argument("--work", type=Path, default=Path.home() / ".cache/wan-compat-demo-training")
    for one in (export, measure, pictures):
        one.add_argument("folder", type=Path, nargs="?", default=SHIPPED, help="default: the shipped model")
    return parser


if __name__ == "__main__":
    main()
