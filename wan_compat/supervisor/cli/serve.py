"""`wan-compat serve`: a supervisor that other programs of this user submit jobs to (`wan_compat.connect`)."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from wan_compat.protocol.errors import JobCancelled, Terminated
from wan_compat.supervisor.cli.operations import LogPrompts, LogTo, MetricsTo, watched
from wan_compat.supervisor.cli.options import Json, MinTier, Mode, Quiet, Verbose
from wan_compat.supervisor.cli.quantities import parse_bytes, parse_seconds
from wan_compat.supervisor.cli.session import Session

if TYPE_CHECKING:
    from wan_compat.supervisor.client import Supervisor

LINGER_S = 5.0  # for clients that are connected to fetch the last results
MAX_IDLE_S = 1800.0  # a server runs for days, and a model takes tens of gigabytes
_LOOK_S = 0.2


def serve(
    context: typer.Context,
    socket: Annotated[
        str | None,
        typer.Option("--socket", metavar="PATH", help="Where to listen. Default: one in the user's runtime folder."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, metavar="N", help="Jobs at once.")] = 1,
    max_queued: Annotated[
        int, typer.Option("--max-queued", min=1, max=1_000_000, metavar="N", help="Jobs that may wait.")
    ] = 1000,
    max_idle: Annotated[
        float | None,
        typer.Option(
            "--max-idle",
            metavar="TIME",
            parser=parse_seconds,
            help="How long a worker keeps its model in memory without a job. Default: 30m.",
        ),
    ] = None,
    mode: Annotated[
        Mode, typer.Option("--mode", help="With trust, jobs may ask for approved code of repositories.")
    ] = Mode.SAFE,
    memory_limit: Annotated[
        int | None,
        typer.Option(
            "--memory-limit", metavar="SIZE", parser=parse_bytes, help="Each worker's cap. Default: from free."
        ),
    ] = None,
    min_tier: Annotated[
        MinTier | None,
        typer.Option("--min-tier", help="Weakest sandbox to accept; see doctor. Default: the settings', else B."),
    ] = None,
    log_file: LogTo = None,
    log_prompts: LogPrompts = False,
    metrics: MetricsTo = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Run a supervisor that other programs of this user attach to, until it is told to end.

    Ctrl-C or SIGTERM: it takes no more jobs, finishes those that it has, and ends. A second one ends it at once. The
    settings and options here hold for everybody; what a client asks for can only be narrower.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    session.observed(log_file=log_file, log_prompts=log_prompts, metrics=metrics)

    from wan_compat.supervisor.client import Supervisor
    from wan_compat.supervisor.serving import usual_socket
    from wan_compat.supervisor.settings import load_settings

    path = usual_socket() if socket is None else os.path.abspath(socket)
    supervisor = Supervisor(
        mode=mode.value,
        policy=load_settings().policy,
        min_tier=min_tier.value if min_tier else None,
        memory_limit_bytes=memory_limit,
        workers=workers,
        max_queued=max_queued,
        max_idle_s=MAX_IDLE_S if max_idle is None else max_idle,
    )
    supervisor.program = "wan-compat serve"
    with supervisor, _Stops() as stops:
        watched(session, supervisor)
        supervisor.serve(path)
        _announce(session, supervisor, path)
        while not stops.wait(_LOOK_S) and not supervisor.draining:
            pass
        if not supervisor.drain(0):
            session.note("Finishing the jobs that are there; no more are taken (once more to end at once)")
        while not supervisor.drain(_LOOK_S):
            if stops.count > 1:
                raise stops.error()
        supervisor.close(linger_s=LINGER_S)
    session.note("Ended.")
    return 0


def _announce(session: Session, supervisor: Supervisor, path: str) -> None:
    if session.json:
        session.document(
            {
                "schema_version": 1,
                "socket": path,
                "pid": os.getpid(),
                "supervisor": supervisor.id,
                "mode": supervisor.mode.value,
                "workers": supervisor.workers,
            }
        )
        # The one document is written: whatever ends this program is for a person, on stderr.
        session.json = False
        return
    session.say(
        f"Serving on {path} (process {os.getpid()}, {supervisor.mode.value} mode, "
        f"{supervisor.workers} {'worker' if supervisor.workers == 1 else 'workers'})"
    )


class _Stops:
    """Counts SIGINT and SIGTERM while it is entered, in the place of what they do otherwise."""

    def __init__(self) -> None:
        self.count = 0
        self._last = signal.SIGTERM
        self._came = threading.Event()

    def __enter__(self) -> _Stops:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, timeout_s: float) -> bool:
        return self._came.wait(timeout_s)

    def error(self) -> JobCancelled | Terminated:
        """Return what ends the program at once, with the exit code of the signal that came last."""
        if self._last == signal.SIGINT:
            return JobCancelled("interrupted; jobs that were running were ended")
        return Terminated("asked to terminate again; jobs that were running were ended")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._last = signal.Signals(number)
        self._came.set()
