"""`wan-compat doctor`: what this machine offers, each lack with its remedy."""

from __future__ import annotations

import typer

from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.session import Session


def doctor(
    context: typer.Context,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Say what this machine offers.

    Sandbox layers and tier, memory caps, ffmpeg, GPUs, versions; each lack with its reason and remedy. Ends with 0
    when `generate` can run here, with 10 when the sandbox is too weak, with 3 when something else is missing.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)

    from wan_compat.supervisor.doctor import describe, examine, exit_code

    report = examine()
    if session.json:
        session.document(report.to_json())
    else:
        session.say(describe(report, verbose=session.verbose))
    return exit_code(report)
