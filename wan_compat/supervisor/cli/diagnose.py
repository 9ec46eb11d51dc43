"""`wan-compat diagnose`: one redacted file about a model on this machine, and a summary to act on."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from wan_compat.supervisor.cli.downloads import Download, obtain
from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.session import Session


def diagnose(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder, a weight file, or a hub id in the local cache.")],
    output: Annotated[str, typer.Option(metavar="DIR", help="Folder for the report.")] = "diagnostics",
    parts: Annotated[
        bool,
        typer.Option("--parts", help="Load each part by itself, sandboxed: which are sound, and what else to use."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    download: Download = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Write a report about a model on this machine and summarise it.

    The report is DIR/NAME_compat.json: what the model is, what is wrong, versions and memory of this machine, without
    home paths, tokens and prompts. Reads no weights and starts nothing, unless --parts asks for it. Ends like `check`:
    with 0 when the model can run here, else with the code of the most fundamental error.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    session.model = model
    obtain(session, model, download=download)

    from wan_compat.supervisor.check import check_model
    from wan_compat.supervisor.diagnostics import DiagnosticCollector, diagnostics_of, with_fallback

    collector = DiagnosticCollector(output)
    report = check_model(model)
    diagnostics = diagnostics_of(report)
    if parts:
        diagnostics = with_fallback(diagnostics, report, model)
    path = None if dry_run else collector.write_compatibility_report(diagnostics.model_name, diagnostics)
    if session.json:
        session.document(json_module.loads(diagnostics.to_json()) | {"report": path})
    else:
        session.say(collector.generate_diagnostic_summary(diagnostics))
        session.say(f"\nReport:     {path}" if path else "\nNothing was written (--dry-run).")
    return report.exit_code
