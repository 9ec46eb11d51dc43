"""The log and the metrics of a run: options of verbs that run jobs for long, and what the settings say otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from wan_compat.protocol.errors import EnvironmentLacks
from wan_compat.supervisor.cli.session import Session

if TYPE_CHECKING:
    from wan_compat.supervisor.client import Supervisor

LogTo = Annotated[
    str | None,
    typer.Option("--log-file", metavar="FILE", help="Append JSON lines about what happens. Default: the settings'."),
]
LogPrompts = Annotated[bool, typer.Option("--log-prompts", help="Write prompts there too, not only their lengths.")]
MetricsTo = Annotated[
    str | None,
    typer.Option("--metrics", metavar="WHERE", help="For Prometheus: a file, or an address such as 127.0.0.1:9464."),
]


def watched(session: Session, supervisor: Supervisor) -> Supervisor:
    """Log and count a supervisor's jobs where the session's options or the settings say so; return it.

    What an option asks for and cannot be had is an error; of the settings' metrics it is a remark, because their port
    may be that of another run of this user.

    Raises:
        WanCompatError: As `operations.observe`.
    """
    from wan_compat.supervisor.operations import observe
    from wan_compat.supervisor.settings import load_settings

    own = load_settings().own
    observe(supervisor, log_file=session.log_file or own.log_file, log_prompts=session.log_prompts or own.log_prompts)
    try:
        observe(supervisor, metrics=session.metrics or own.metrics)
    except EnvironmentLacks as error:
        if session.metrics:
            raise
        session.note(f"No metrics: {error.message}")
    return supervisor
