"""`wan-compat update-registry`: what is known about models, brought up to date, with every difference shown."""

from __future__ import annotations

import dataclasses
import io
import json as json_format
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wan_compat.protocol.errors import InvalidRequest, clean_text
from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.session import Session, can_redraw

if TYPE_CHECKING:
    from wan_compat.policies.registry import Change
    from wan_compat.supervisor.registry import CompatibilityRegistry, RegistryUpdate
    from wan_compat.supervisor.registry_update import Source

REPORT_SCHEMA_VERSION = 1
MAX_SHOWN_CHANGES = 200  # in words; the JSON document has all
MAX_VALUE_CHARS = 120


def update_registry(
    context: typer.Context,
    auto: Annotated[
        bool,
        typer.Option("--auto", help="Learn from the installed diffusers, the local cache and the configured address."),
    ] = False,
    file: Annotated[
        str | None, typer.Option("--from", metavar="FILE", help="Take a signed file; FILE.sig lies beside it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; write nothing.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Refresh the compatibility registry and show the diff.

    Reads the source of the installed diffusers without importing it, and the files of models in the local cache. The
    network is used only for an address in your user configuration, and only signed files are taken. No update can
    lower a security floor; what was not taken is told.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    if not auto and file is None:
        raise InvalidRequest(
            "nothing to update from", hint="give --auto, or --from FILE; with --dry-run nothing is written"
        )

    from wan_compat.policies.registry_document import RegistryDocument
    from wan_compat.policies.registry_merge import combine
    from wan_compat.supervisor import registry_update
    from wan_compat.supervisor.registry import CompatibilityRegistry
    from wan_compat.supervisor.settings import load_settings

    settings = load_settings()
    registry = CompatibilityRegistry()
    for lowered in registry.adjustments:
        session.note(f"Not used from {registry.registry_path}: {lowered}")
    sources = []
    # A signature that is not right stops everything before anything is written, so signed sources come first.
    if file is not None:
        sources.append(registry_update.from_file(file, settings))
    if auto:
        sources.append(registry_update.from_url(settings))
        sources += [registry_update.from_installed(), registry_update.from_cache()]
    update = RegistryDocument()
    for source in sources:
        if source.document is not None:
            update = combine(update, source.document)
    done = registry.apply(update, dry_run=dry_run)
    if session.json:
        session.document(_document(registry, sources, done, dry_run=dry_run))
    else:
        _show(session, registry, sources, done, dry_run=dry_run)
    return 0


def _document(
    registry: CompatibilityRegistry, sources: list[Source], done: RegistryUpdate, *, dry_run: bool
) -> dict[str, Any]:
    return {
        "schema_version": REPORT_SCHEMA_VERSION,
        "registry_path": str(registry.registry_path),
        "dry_run": dry_run,
        "written": done.written,
        "sources": [{"name": item.name, "status": item.status, "detail": item.detail} for item in sources],
        "changes": [change.to_json() for change in done.changes],
        "adjustments": [dataclasses.asdict(item) for item in done.adjustments],
    }


def _show(
    session: Session, registry: CompatibilityRegistry, sources: list[Source], done: RegistryUpdate, *, dry_run: bool
) -> None:
    for source in sources:
        session.note(f"{source.name:<10} {source.status:<7} {source.detail}")
    for adjustment in done.adjustments:
        session.note(f"Not taken: {adjustment}")
    shown = done.changes[:MAX_SHOWN_CHANGES]
    # Line by line: what is said at once is cut at a length that fits a message, not a list.
    for line in _table(shown) if shown and can_redraw(sys.stdout) else map(_line, shown):
        session.say(line)
    if len(done.changes) > len(shown):
        session.say(f"... and {len(done.changes) - len(shown)} more; --json lists all")
    count = f"{len(done.changes)} change{'' if len(done.changes) == 1 else 's'}"
    if not done.changes:
        session.say("The registry is up to date.")
    elif dry_run:
        session.say(f"{count} would be written to {registry.registry_path}")
    else:
        session.say(f"{count} written to {registry.registry_path}")


def _row(change: Change) -> tuple[str, str, str, str]:
    sign = {"added": "+", "removed": "-", "changed": "~"}[change.kind]
    if change.field is None:
        return sign, change.subject, change.name, ""
    return sign, change.subject, change.name, f"{change.field}: {_value(change.before)} -> {_value(change.after)}"


def _line(change: Change) -> str:
    return " ".join(part for part in _row(change) if part)


def _value(value: Any) -> str:
    text = clean_text(json_format.dumps(value, ensure_ascii=True))
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 3] + "..."


def _table(changes: tuple[Change, ...]) -> list[str]:
    """Return the changes as lines of a table for a terminal. Colours would not survive the cleaning of all output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what", "name", "change", box=box.SIMPLE_HEAD)
    for change in changes:
        table.add_row(*(Text(clean_text(part)) for part in _row(change)))  # Text: names are no markup
    buffer = io.StringIO()
    Console(file=buffer, width=Console().width, no_color=True, highlight=False).print(table)
    return buffer.getvalue().rstrip().splitlines()
