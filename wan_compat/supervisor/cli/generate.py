"""`wan-compat generate MODEL`: one video."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.supervisor.cli.downloads import Download, obtain
from wan_compat.supervisor.cli.options import Isolation, Json, MinTier, Mode, Quiet, Verbose
from wan_compat.supervisor.cli.quantities import parse_bytes, parse_seconds
from wan_compat.supervisor.cli.session import Session


def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a Wan model in diffusers layout.")],
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What to show; - reads it from stdin.")],
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", metavar="TEXT", help="What to keep away from.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="FILE", help="Video to write. Default: named after the prompt, here."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output if it exists.")] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Same seed, same video. Default: drawn, and told.")
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", metavar="PIXELS", help="Of the video; must fit the model.")
    ] = None,
    height: Annotated[
        int | None, typer.Option("--height", metavar="PIXELS", help="Of the video; must fit the model.")
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option("--num-frames", metavar="N", help="Length of the video; 4k + 1.")
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option("--num-inference-steps", metavar="N", help="Denoising steps: more is slower.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", metavar="X", help="How closely to follow the prompt.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", metavar="X", help="Frames per second of the file. Default: the family's.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="TIME", parser=parse_seconds, help="For the whole job: 90s, 10m, 1.5h."),
    ] = None,
    memory_limit: Annotated[
        int | None,
        typer.Option(
            "--memory-limit", metavar="SIZE", parser=parse_bytes, help="Worker's cap: 8GB, 512MiB. Default: from free."
        ),
    ] = None,
    worker_log: Annotated[
        str | None, typer.Option("--worker-log", metavar="FILE", help="Keep what the worker printed, cleaned.")
    ] = None,
    mode: Annotated[Mode | None, typer.Option("--mode", help="trust runs approved code only. Default: safe.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="The original spelling of --mode trust.")
    ] = False,
    safe_mode: Annotated[bool, typer.Option("--safe-mode", help="The original spelling of --mode safe.")] = False,
    restricted: Annotated[
        bool,
        typer.Option("--restricted", help="Safe mode: run the repository's code if it keeps to an audited subset."),
    ] = False,
    isolation: Annotated[
        Isolation, typer.Option("--isolation", help="job: a fresh worker for every video.")
    ] = Isolation.MODEL,
    min_tier: Annotated[
        MinTier | None,
        typer.Option("--min-tier", help="Weakest sandbox to accept; see doctor. Default: the settings', else B."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask at the first use of a model.")] = False,
    download: Download = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Generate one video, in a sandboxed worker.

    Options that are left out take the model family's defaults. Sizes are never changed in silence.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    session.model = model
    chosen = settle_mode(mode, trust_remote_code=trust_remote_code, safe_mode=safe_mode)

    from wan_compat.supervisor.cli.confirm import confirm_first_use
    from wan_compat.supervisor.cli.runner import build_request, describe_result, free_name, name_for_prompt, run_request

    text = read_prompt() if prompt == "-" else prompt
    request = build_request(
        model=model,
        prompt=text,
        negative_prompt=negative_prompt,
        output=output if output is not None else free_name(name_for_prompt(text)),
        overwrite=overwrite,
        seed=seed,
        width=width,
        height=height,
        num_frames=num_frames,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        fps=fps,
        timeout_s=timeout,
        memory_limit_bytes=memory_limit,
        worker_log=worker_log,
        isolation=isolation.value,
        mode=chosen.value,
        restricted=restricted,
    )
    obtain(session, model, download=download, code=chosen is Mode.TRUST)
    confirm_first_use(session, model, chosen, yes=yes)
    result = run_request(session, request, min_tier=min_tier.value if min_tier else None)
    if session.json:
        session.document(result.to_json())
    else:
        session.say(describe_result(session, result))
    return 0


def settle_mode(mode: Mode | None, *, trust_remote_code: bool, safe_mode: bool) -> Mode:
    """Settle the three spellings of the mode."""
    trust = mode is Mode.TRUST or trust_remote_code
    if trust and (mode is Mode.SAFE or safe_mode):
        raise InvalidRequest("safe and trust mode were both asked for", hint="keep one of them")
    return Mode.TRUST if trust else Mode.SAFE


def read_prompt() -> str:
    """Return the prompt from stdin, without its last line break. Reads no more than a prompt may have."""
    from wan_compat.protocol.values import MAX_PROMPT_CHARS

    data = sys.stdin.buffer.read(4 * MAX_PROMPT_CHARS + 2)
    try:
        text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the prompt on stdin is not UTF-8 (byte {error.start})") from error
    if len(text) > MAX_PROMPT_CHARS:
        raise InvalidRequest(f"the prompt on stdin is longer than {MAX_PROMPT_CHARS} characters")
    return text
