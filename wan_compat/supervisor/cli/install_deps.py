"""`wan-compat install-deps`: what a model needs that is not here, shown, and installed once somebody said yes."""

from __future__ import annotations

import enum
import io
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from wan_compat.protocol.errors import InvalidRequest, NotConfirmed, clean_text
from wan_compat.supervisor.cli.confirm import ask, can_ask
from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.quantities import show_bytes
from wan_compat.supervisor.cli.session import Session, can_redraw

if TYPE_CHECKING:
    from wan_compat.policies.dependency_plan import PlanStep
    from wan_compat.supervisor.dependency_manager import InstallStep, ModelPlan

_COLUMNS = ("package", "have", "need", "version", "size", "what for")


class Extra(enum.StrEnum):
    """The values of `policies.dependencies.Feature`; tests/cli/test_install_deps.py holds the two in step."""

    LORA = "lora"
    GGUF = "gguf"
    BITSANDBYTES = "bitsandbytes"
    TORCHAO = "torchao"
    QUANTO = "quanto"


def install_deps(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder, a weight file, a hub id, or a name that the registry knows.")],
    with_: Annotated[
        list[Extra] | None, typer.Option("--with", help="Also what this needs, such as lora; may be repeated.")
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Have the model use the usual packages again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; install nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Install without being asked; needed without a terminal.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Plan and install what a model needs into an isolated environment.

    Only packages of the project's own list, in pinned versions, as wheels with pinned hashes. They go into a folder of
    their own under your user data, which only workers of this model see; what wan-compat was installed with stays as
    it is. What the repository says that it requires is shown, and never installed. Either everything is installed, or
    nothing. Ends with 3 where the packages do not fit together or cannot be fetched, with 5 where it was refused.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    session.model = model
    if forget and with_:
        raise InvalidRequest("--forget and --with contradict each other", hint="give one of them")
    from wan_compat.policies.dependencies import Feature
    from wan_compat.supervisor.dependency_manager import DependencyManager

    manager = DependencyManager()
    if forget:
        used = manager.forget(model, dry_run=dry_run)
        if not used:
            session.say("The model uses the usual packages; nothing to forget.")
        else:
            session.say(f"The model {'would use' if dry_run else 'uses'} the usual packages again.")
        if session.json:
            session.document({"schema_version": 1, "model": model, "forgotten": used, "dry_run": dry_run})
        return 0

    found = manager.plan(model, [Feature(item.value) for item in with_ or ()])
    _show(session, found, manager.index)
    if dry_run:
        for conflict in found.plan.conflicts:  # otherwise the error says it
            session.say(f"Cannot be installed: {conflict}")
        if session.json:
            session.document({**found.to_json(), "dry_run": True, "installed": False, "site": None})
        return 3 if found.plan.conflicts else 0
    if found.plan.changes and not found.plan.conflicts and not found.in_use:
        _confirm(session, yes)
    environment = manager.carry_out(found, lambda step: session.note(_progress(step)))
    if session.json:
        site = environment.site if environment is not None else None
        session.document({**found.to_json(), "dry_run": False, "installed": environment is not None, "site": site})
    elif environment is not None:
        done = "It was there already" if found.exists else "Installed"
        since = "use it already" if found.in_use else "use it from now on"
        session.say(f"{done}: {environment.site}\nWorkers of this model {since}.")
    return 0


def _show(session: Session, found: ModelPlan, index: str) -> None:
    changes = found.plan.changes
    # Line by line: what is said at once is cut at a length that fits a message, not a table.
    steps = found.plan.steps if session.verbose else [*changes, *(s for s in found.plan.steps if s.action == "refuse")]
    if steps:
        rows = [_COLUMNS, *(_row(step, files=session.verbose) for step in steps)]
        for line in _table(rows) if can_redraw(sys.stdout) else map(" | ".join, rows):
            session.say(line)
    if not found.plan.conflicts and not changes:
        session.say("Everything that this model needs is installed; nothing to do.")
    elif not found.plan.conflicts:
        count = f"{len(changes)} package{'' if len(changes) == 1 else 's'}"
        size = show_bytes(found.plan.download_bytes)
        where = "in an environment that is here already" if found.exists else f"{size} from {index}"
        session.say(f"{count}, {where}, for workers of this model alone.")
    for own in found.own:
        session.say(f"\nIn the repository, {own.path} (shown only; nothing of it is installed):")
        for line in own.lines:
            session.say(f"  {line}")
        if own.note:
            session.say(f"  ({own.note})")


def _row(step: PlanStep, *, files: bool) -> tuple[str, ...]:
    if step.action == "refuse":  # why takes more words than a column has: those come below
        return step.name, step.have or "-", step.need or "any", "-", "-", "cannot be installed"
    where = "stays"
    if step.wheel is not None:
        where = f"{step.version} ({step.wheel.filename})" if files else f"{step.version}"
    size = show_bytes(step.wheel.bytes) if step.wheel is not None else "-"
    return step.name, step.have or "-", step.need or "any", where, size, step.reason


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the plan as lines of a table for a terminal. Colours would not survive the cleaning of all output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*rows[0], box=box.SIMPLE_HEAD)
    for row in rows[1:]:
        table.add_row(*(Text(clean_text(part)) for part in row))  # Text: names are no markup
    buffer = io.StringIO()
    Console(file=buffer, width=Console().width, no_color=True, highlight=False).print(table)
    return buffer.getvalue().rstrip().splitlines()


def _confirm(session: Session, yes: bool) -> None:
    if yes:
        return
    if not can_ask(session):
        raise NotConfirmed(
            "there is no terminal to ask on; nothing was installed",
            hint="look at the plan with --dry-run, then give --yes if you want it",
        )
    if not ask("Install?"):
        raise NotConfirmed("nothing was installed")


def _progress(step: InstallStep) -> str:
    words = "fetching" if step.what == "fetch" else "unpacking"
    return f"[{step.number}/{step.total}] {words} {step.subject} ({show_bytes(step.bytes)})"
