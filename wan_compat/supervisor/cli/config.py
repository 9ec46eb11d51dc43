"""`wan-compat config show`: the effective settings, and where each comes from."""

from __future__ import annotations

import base64
from typing import Annotated, Any

import typer

from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.session import Session

config = typer.Typer(name="config", help="Settings: what is in force, and why.", no_args_is_help=True)


@config.command()
def show(
    context: typer.Context,
    origin: Annotated[
        bool, typer.Option("--origin", help="Show for each setting every source that set it, later ones last.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Print the effective settings; each line names the source that had the last word."""
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    from wan_compat.policies.policy import SETTINGS
    from wan_compat.supervisor.own_settings import OWN_SETTINGS
    from wan_compat.supervisor.settings import load_settings, sources

    settings = load_settings()
    said = {
        name: [{"source": source, "value": _plain(value)} for source, value in entries]
        for name, entries in settings.history.items()
    }
    values: dict[str, dict[str, Any]] = {
        name: {"value": entries[-1]["value"], "origin": entries[-1]["source"]} for name, entries in said.items()
    }
    if origin:
        for name, entries in said.items():
            values[name]["history"] = entries
    if session.json:
        own = {name: values[name] for name in OWN_SETTINGS}
        session.document(
            {
                "schema_version": 1,
                "settings": {name: values[name] for name in SETTINGS},
                "registry": {
                    "url": own["registry_url"]["value"],
                    "public_key": own["registry_public_key"]["value"],
                },
                "package_index": own["package_index"]["value"],
                "own_settings": own,
                "sources": list(sources()),
            }
        )
        return 0
    lines = []
    for name, entry in values.items():
        lines.append(f"{name:<20} {_shown(name, entry['value']):<12} {entry['origin']}")
        if len(said[name]) > 1:
            lines += [f"    {_shown(name, step['value']):<12} {step['source']}" for step in entry.get("history", [])]
    session.say("\n".join([*lines, "", "Read from, later ones last:", *(f"  {source}" for source in sources())]))
    return 0


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value


def _shown(name: str, value: Any) -> str:
    """Return a value for people, in a form that a file of settings takes, but for the mode."""
    if name == "mode":
        return f"up to {value}"  # the most that a job may ask for; what it does not ask for stays off
    if name in ("memory_limit", "gpu_memory_limit", "scratch") and value is not None and value % (1 << 20) == 0:
        return f"{value >> 20}MiB"
    if name == "timeout" and value is not None:
        return f"{value:g}s"
    if isinstance(value, dict):
        value = ", ".join(f"{name}={seconds:g}s" for name, seconds in value.items()) or None
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
