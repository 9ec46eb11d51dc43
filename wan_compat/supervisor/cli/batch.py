"""`wan-compat batch`: its verbs, and `batch status DIR`."""

from __future__ import annotations

from typing import Annotated

import typer

from wan_compat.supervisor.cli.batch_run import run
from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.session import Session

batch = typer.Typer(name="batch", help="Many videos from one file; goes on where it stopped.", no_args_is_help=True)

batch.command()(run)


@batch.command()
def status(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="What was --out of `batch run`.")],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Say what of a batch is done, running, failed and waiting. Reads only, at any time."""
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    from wan_compat.supervisor.batch.status import read_status
    from wan_compat.supervisor.cli.batch_words import describe_status

    document = read_status(folder)
    if session.json:
        session.document(document)
    else:
        session.say(describe_status(document))
    return 0
