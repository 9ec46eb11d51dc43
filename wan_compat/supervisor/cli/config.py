"""`wan-compat config show`: the effective settings, and where each comes from."""

from __future__ import annotations

import base64
from typing import Any

import typer

from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.session import Session

config = typer.Typer(name="config", help="Settings: what is in force, and why.", no_args_is_help=True)


@config.command()
def show(context: typer.Context, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> int:
    """Print the effective policy; each line names the source that had the last word."""
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    from wan_compat.policies.policy import SETTINGS, setting_of
    from wan_compat.supervisor.settings import load_settings, sources

    settings = load_settings()
    values: dict[str, dict[str, Any]] = {}
    for setting in SETTINGS:
        name, value = setting_of(settings.policy, setting)
        values[setting] = {"value": value, "origin": settings.origins[name]}
    key = settings.registry_public_key
    registry = {"url": settings.registry_url, "public_key": base64.b64encode(key).decode() if key else None}
    if session.json:
        session.document(
            {
                "schema_version": 1,
                "settings": values,
                "registry": registry,
                "package_index": settings.package_index,
                "sources": list(sources()),
            }
        )
    else:
        lines = [
            f"{setting:<18} {'-' if entry['value'] is None else entry['value']!s:<12} {entry['origin']}"
            for setting, entry in values.items()
        ]
        lines += [f"registry_{name:<9} {value or '-'}" for name, value in registry.items()]
        lines.append(f"{'package_index':<18} {settings.package_index or '-'}")
        session.say("\n".join([*lines, "", "Read from, later ones last:", *(f"  {source}" for source in sources())]))
    return 0
