"""`wan-compat test-load MODEL`: does it load, and with --smoke-test: does it generate?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from wan_compat.supervisor.cli.downloads import Download, obtain
from wan_compat.supervisor.cli.options import Json, MinTier, Mode, PhaseTimeout, Quiet, Verbose
from wan_compat.supervisor.cli.parts_options import (
    Components,
    ImageEncoder,
    Lora,
    Quantize,
    TextEncoder,
    Transformer,
    Transformer2,
    Vae,
    parts_fields,
)
from wan_compat.supervisor.cli.plan_options import DeviceOption, GpuMemoryLimit
from wan_compat.supervisor.cli.quantities import parse_bytes, parse_seconds, show_bytes
from wan_compat.supervisor.cli.session import Session
from wan_compat.supervisor.cli.task_options import TaskOption

if TYPE_CHECKING:
    from wan_compat.supervisor.load_test import LoadTestReport

_FINDINGS, _FAILED = 1, 7


def test_load(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a Wan model, or a single file of one (see --components).")
    ],
    smoke_test: Annotated[
        bool, typer.Option("--smoke-test", help="Also generate the smallest clip that it can make, and judge it.")
    ] = False,
    runs: Annotated[
        int | None, typer.Option("--runs", metavar="N", help="Clips of the smoke test, to see leaks. Default: 3.")
    ] = None,
    task: TaskOption = None,
    mode: Annotated[Mode | None, typer.Option("--mode", help="trust runs approved code only. Default: safe.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="The original spelling of --mode trust.")
    ] = False,
    safe_mode: Annotated[bool, typer.Option("--safe-mode", help="The original spelling of --mode safe.")] = False,
    restricted: Annotated[
        bool,
        typer.Option("--restricted", help="Safe mode: run the repository's code if it keeps to an audited subset."),
    ] = False,
    components: Components = None,
    transformer: Transformer = None,
    transformer_2: Transformer2 = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    image_encoder: ImageEncoder = None,
    lora: Lora = None,
    quantize: Quantize = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", metavar="TIME", parser=parse_seconds, help="For loading and for each clip: 90s, 10m."
        ),
    ] = None,
    phase_timeout: PhaseTimeout = None,
    memory_limit: Annotated[
        int | None,
        typer.Option(
            "--memory-limit", metavar="SIZE", parser=parse_bytes, help="Worker's cap: 8GB, 512MiB. Default: from free."
        ),
    ] = None,
    device: DeviceOption = None,
    gpu_memory_limit: GpuMemoryLimit = None,
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
    """Load a model in a sandboxed worker; with --smoke-test also generate a minimal clip.

    The clip's pictures and videos are made up. Exit code 7: no usable clip came out; 1: one did, and memory grows from
    clip to clip.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    session.model = model

    from wan_compat.policies.phases import parse_phase_timeouts
    from wan_compat.protocol.errors import InvalidRequest
    from wan_compat.supervisor.cli.confirm import confirm_first_use
    from wan_compat.supervisor.cli.generate import settle_mode
    from wan_compat.supervisor.cli.runner import build_request, run_load_test
    from wan_compat.supervisor.smoke_test import MAX_RUNS

    if runs is not None and not smoke_test:
        raise InvalidRequest("--runs is about the clips of --smoke-test", hint="add --smoke-test")
    if runs is not None and not 1 <= runs <= MAX_RUNS:
        raise InvalidRequest(f"--runs is {runs}; 1 to {MAX_RUNS} are possible")
    chosen = settle_mode(mode, trust_remote_code=trust_remote_code, safe_mode=safe_mode)
    files = {
        "components": components,
        "transformer": transformer,
        "transformer_2": transformer_2,
        "vae": vae,
        "text_encoder": text_encoder,
        "image_encoder": image_encoder,
    }
    request = build_request(
        model=model,
        prompt="",
        task=task.value if task is not None else None,
        mode=chosen.value,
        restricted=restricted,
        timeout_s=timeout,
        phase_timeouts=parse_phase_timeouts(phase_timeout),
        memory_limit_bytes=memory_limit,
        gpu_memory_limit_bytes=gpu_memory_limit,
        device=device or "auto",
        **parts_fields(files, lora, quantize),
    )
    obtain(session, model, download=download, code=chosen is Mode.TRUST)
    confirm_first_use(session, model, chosen, yes=yes)
    report = run_load_test(session, request, smoke=smoke_test, runs=runs, min_tier=min_tier.value if min_tier else None)
    if session.json:
        session.document(report.to_json())
    else:
        session.say(describe(session, report))
    return {"fails": _FAILED, "leaks": _FINDINGS}.get(report.verdict, 0)


def describe(session: Session, report: LoadTestReport) -> str:
    """Return the verdict first, then what it rests on."""
    result, found = report.result, report.examination
    loaded = (
        f"{result.metadata.pipeline_class} loaded in {result.timings.load_s:.1f} s "
        f"(worker {show_bytes(result.memory_used)}, sandbox tier {result.sandbox.tier})"
    )
    if found is None:
        return "\n".join(["It loads: " + loaded, *(f"Warning: {warning}" for warning in result.warnings)])
    words = {"generates": "It works", "leaks": "It works, but grows", "fails": "It does not work"}
    params = result.metadata.generation_params
    lines = [f"{words[report.verdict]}: {loaded}"]
    if found.performance is not None:
        lines.append(
            f"Clip: {params['num_frames']} frames, {params['width']}x{params['height']}, "
            f"{params['num_inference_steps']} steps, in {found.performance.seconds:.2f} s "
            f"({len(found.runs)} runs, first {found.smoke.generation_time:.2f} s)"
        )
    if found.memory is not None:
        grown = (
            f"grows by {show_bytes(int(found.memory.leak_mb * 1e6))} with each run" if report.leaks else "no leak seen"
        )
        lines.append(f"Memory: {show_bytes(int(found.memory.peak_mb * 1e6))} at most, {grown}")
        counted = {name: size for name, size in result.peak.items() if name in _COUNTED and size is not None}
        if counted:
            shown = ", ".join(f"{_COUNTED[name]} {show_bytes(size)}" for name, size in counted.items())
            lines.append(f"Tensors at most: {shown}")
    lines += [f"Problem: {problem}" for problem in report.problems]
    lines += [f"Warning: {warning}" for warning in result.warnings]
    if session.verbose:
        timings = result.to_json()["timings"]
        lines += [f"  {name.removesuffix('_s'):<14} {seconds:8.2f} s" for name, seconds in timings.items()]
    return "\n".join(lines)


_COUNTED = {
    "text_encode_bytes": "reading the prompt",
    "denoise_high_bytes": "denoising",
    "denoise_low_bytes": "second expert",
    "decode_bytes": "decoding",
}
