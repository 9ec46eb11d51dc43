"""`wan-compat monitor`: a live view of every supervisor of this user."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.session import Session, can_redraw, has_color

if TYPE_CHECKING:
    from wan_compat.supervisor.monitor.characters import Characters
    from wan_compat.supervisor.monitor.source import Source

LOOK_TIMEOUT_S = 5.0
DOCUMENT_VERSION = 1


def monitor(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Print what is there now, and end.")] = False,
    ascii: Annotated[
        bool, typer.Option("--ascii", help="Draw with plain ASCII, as where the locale is not UTF-8.")
    ] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Look only: no order can be given.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Watch every supervisor of yours: workers, jobs, memory, queue, events.

    Keys: j and k select, enter shows details, c cancels a job, x kills a worker, p pauses, / filters, ? helps, q quits.
    With --once it prints everything once; --json means --once.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)

    from wan_compat.protocol.errors import InvalidRequest
    from wan_compat.supervisor.monitor.attached import AttachedSupervisors
    from wan_compat.supervisor.monitor.characters import ASCII, characters_for

    source = AttachedSupervisors()
    chars = ASCII if ascii else characters_for(sys.stdout.encoding, os.environ)
    if once or session.json:
        return _once(session, source, chars)
    if not (can_redraw(sys.stdout) and sys.stdin.isatty()):
        raise InvalidRequest(
            "monitor draws on a terminal and reads keys from it, and there is none",
            hint="use `wan-compat monitor --once`, or --once --json for a program",
        )
    from wan_compat.supervisor.monitor.app import run

    run(source, chars, read_only=read_only, color=has_color(sys.stdout))
    return 0


def _once(session: Session, source: Source, chars: Characters) -> int:
    from wan_compat.supervisor.monitor.source import look_once

    statuses, silent = look_once(source, LOOK_TIMEOUT_S)
    if session.json:
        session.document(
            {
                "schema_version": DOCUMENT_VERSION,
                "supervisors": [status.model_dump(mode="json") for status in statuses],
                "silent": [{"id": id, "reason": why} for id, why in silent.items()],
            }
        )
        return 0
    from rich.console import Console

    from wan_compat.supervisor.monitor import model
    from wan_compat.supervisor.monitor.reducer import reduce
    from wan_compat.supervisor.monitor.view import render_once

    state = model.State(expanded=True)
    events: list[model.Event] = [
        model.Tick(0.0, time.time()),
        model.Found((*(status.id for status in statuses), *silent)),
        *(model.Heard(status.id, status) for status in statuses),
        *(model.Failed(id, why) for id, why in silent.items()),
    ]
    for event in events:
        state, _ = reduce(state, event)
    console = Console(no_color=not has_color(sys.stdout), highlight=False, markup=False, emoji=False)
    for line in render_once(dataclasses.replace(state, selected=None), console.width, chars):
        line.rstrip()
        console.print(line, end="\n", overflow="crop", no_wrap=True, crop=True)
    return 0
