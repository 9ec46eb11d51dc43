"""`wan-compat convert MODEL --output DIR`: pickled or original-layout weights become a folder that generate runs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from wan_compat.supervisor.cli.options import Json, MinTier, PhaseTimeout, Quiet, Verbose
from wan_compat.supervisor.cli.quantities import parse_bytes, parse_seconds, show_bytes
from wan_compat.supervisor.cli.session import Session

if TYPE_CHECKING:
    from wan_compat.protocol.results import ConversionReport

_NAMED = 3


def convert(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder in the original layout or with pickles, or one file.")
    ],
    output: Annotated[
        str, typer.Option("--output", metavar="DIR", help="Folder to write; it must not exist, or be empty.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Open and plan; write nothing.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="TIME", parser=parse_seconds, help="For all of it: 90s, 10m, 1.5h."),
    ] = None,
    phase_timeout: PhaseTimeout = None,
    memory_limit: Annotated[
        int | None,
        typer.Option(
            "--memory-limit", metavar="SIZE", parser=parse_bytes, help="Worker's cap: 8GB, 512MiB. Default: from free."
        ),
    ] = None,
    worker_log: Annotated[
        str | None, typer.Option("--worker-log", metavar="FILE", help="Keep what the worker printed, cleaned.")
    ] = None,
    min_tier: Annotated[
        MinTier | None,
        typer.Option("--min-tier", help="Weakest sandbox to accept; see doctor. Default: the settings', else B."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Turn original-layout or pickled weights into safetensors in diffusers layout, inside the sandbox.

    The worker that opens the weights can write nothing and is thrown away. A folder becomes a whole model, a single
    file one component. Number formats are kept. Nothing is written unless all of it is.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    session.model = model

    from wan_compat.policies.phases import parse_conversion_timeouts
    from wan_compat.supervisor.cli.runner import run_conversion

    report = run_conversion(
        session,
        min_tier=min_tier.value if min_tier else None,
        model=model,
        output=output,
        dry_run=dry_run,
        timeout_s=timeout,
        phase_timeouts=parse_conversion_timeouts(phase_timeout),
        memory_limit_bytes=memory_limit,
        worker_log=worker_log,
    )
    if session.json:
        session.document(report.to_json())
    else:
        session.say(describe(session, report))
    return 0


def describe(session: Session, report: ConversionReport) -> str:
    """Return what a person wants to know: what was written, what was left out, what comes next."""
    weights = [file for file in report.files if file.tensors]
    what = report.pipeline_class or "one component"
    lines = [
        f"{'Would write' if report.dry_run else 'Wrote'} {report.output}: {what}, {len(weights)} weight files, "
        f"{show_bytes(report.written_bytes)}, in {report.total_s:.1f} s (sandbox tier {report.sandbox.tier})"
    ]
    for path, names in report.dropped.items():
        rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED and not session.verbose else ""
        shown = names if session.verbose else names[:_NAMED]
        lines.append(f"Left out of {path}: {', '.join(shown)}{rest}")
    if report.unused:
        lines.append(f"Not part of the model: {', '.join(report.unused)}")
    lines += [f"Warning: {warning}" for warning in report.warnings]
    if session.verbose:
        lines += [f"  {reason}" for reason in report.reasons]
        lines += [f"  {file.path}  {show_bytes(file.bytes)}  sha256 {file.sha256 or '-'}" for file in report.files]
    if report.pipeline_class is not None and not report.warnings and not report.dry_run:
        lines.append(f"Next: wan-compat generate {shlex.quote(report.output)} --prompt '...' --output video.mp4")
    return "\n".join(lines)
