"""`wan-compat demo`: from nothing to a clip, with the small models that come along."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from wan_compat.policies.demo_grammar import Understood
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.session import Session


class Variant(enum.StrEnum):
    T2V = "t2v"
    I2V = "i2v"
    TI2V = "ti2v"
    A14B = "a14b"
    VACE = "vace"


def demo(
    context: typer.Context,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="FILE", help="Default: wan-compat-demo.mp4, or the next free name."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output if it exists.")] = False,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="COLOUR SHAPE MOTION BACKGROUND: a red ball rises over the sea."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Same seed, same clip.")] = 0,
    variant: Annotated[
        Variant | None,
        typer.Option("--variant", help="A tiny model of that kind with random weights: shows the path, draws noise."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decide and tell everything; start and write nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Generate a clip with the built-in model.

    It is small and real, trained for this demo, and runs in a sandboxed worker like any other model. The clip's prompt
    should name a colour, a shape, a motion and a background.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    from wan_compat.policies.demo_grammar import understand
    from wan_compat.supervisor.cli.outlook_view import show_outlook
    from wan_compat.supervisor.cli.runner import build_request, describe_result, free_name, run_request
    from wan_compat.supervisor.demo import DEMO_CLIP, TINY_CLIP, demo_media, demo_model, tiny_model

    if dry_run and variant is not None:
        raise InvalidRequest(
            "a variant's model is built before it can be looked at", hint="leave --dry-run or --variant out"
        )
    if variant is None:
        model, clip = demo_model(), DEMO_CLIP
    else:
        model, clip = tiny_model(variant.value, announce=session.note), TINY_CLIP
    session.model = model
    with demo_media(variant.value if variant is not None else None) as media:
        request = build_request(
            model=model,
            prompt=prompt if prompt is not None else clip.prompt,
            output=output if output is not None else free_name("wan-compat-demo"),
            overwrite=overwrite,
            seed=seed,
            width=clip.width,
            height=clip.height,
            num_frames=clip.num_frames,
            num_inference_steps=clip.num_inference_steps,
            guidance_scale=clip.guidance_scale,
            fps=clip.fps,
            **media,
        )
        if dry_run:
            show_outlook(session, request)
            return 0
        session.note(f"Model: {model}")
        session.note(f'Prompt: "{request.prompt}"')
        if variant is None:
            session.note(describe_understood(understand(request.prompt)))
        result = run_request(session, request)
    if session.json:
        session.document(result.to_json())
    else:
        session.say(describe_result(session, result))
        session.note(clip.remark)
    return 0


def describe_understood(understood: Understood) -> str:
    """Say which words of a prompt the demo model knows, and its whole grammar if it will have to guess."""
    if not understood.missing:
        return f"Understood: {', '.join(understood.words)}."
    from wan_compat.policies.demo_grammar import GRAMMAR

    known = (
        f"Understood: {', '.join(understood.words)}."
        if understood.words
        else "No word of it is known to the demo model."
    )
    return f"{known} Left to chance: {', '.join(understood.missing)}.\nThe demo model knows {GRAMMAR}"
