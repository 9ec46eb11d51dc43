"""`wan-compat info VIDEO`: what a video of ours was made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.quantities import show_frames
from wan_compat.supervisor.cli.session import Session


def info(
    context: typer.Context,
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video, or a folder of pictures.")],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Say what a video is and how it was made: from its sidecar, and from what the file itself says.

    A sidecar can be written by anybody; `info` says whether it is about this file.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)

    from wan_compat.supervisor.video_info import read_info

    found = read_info(video)
    if session.json:
        session.document(found)
    else:
        session.say("\n".join(_lines(found, verbose=session.verbose)))
    return 0


def _lines(found: Mapping[str, Any], *, verbose: bool) -> list[str]:
    file, said, sidecar = found["file"], found["label"], found["sidecar"]
    size = f"{file['width']}x{file['height']}"
    rate = f", {file['fps']:g} fps" if file["fps"] else ""
    sound = f", sound {file['audio']}" if file["audio"] else ""
    lines = [f"{found['path']}: {show_frames(file['num_frames'])}, {size}{rate}, {file['codec']}{sound}"]
    if sidecar is None and not said:
        return [*lines, "It does not say how it was made, and has no sidecar."]
    if sidecar is not None and found["unchanged"] is False:
        lines.append("Warning: the sidecar is about other bytes: the file was changed, or it belongs elsewhere")
    made = said or {}
    parameters = dict(made.get("parameters") or {}) if isinstance(made.get("parameters"), Mapping) else {}
    if sidecar is not None:
        model = sidecar.get("model") if isinstance(sidecar.get("model"), Mapping) else {}
        made = {
            "generator": sidecar.get("generator"),
            "model": model.get("repository") or model.get("path"),
            "revision": model.get("revision"),
            "model hash": model.get("sha256"),
            "mode": sidecar.get("mode"),
            "created": sidecar.get("created"),
        }
        asked = sidecar.get("request")
        parameters = dict(asked) if isinstance(asked, Mapping) else parameters
        lines += _sandbox(sidecar, verbose=verbose)
    lines += [
        f"  {name:<20} {value}" for name, value in made.items() if value is not None and not isinstance(value, Mapping)
    ]
    lines += [f"  {name:<20} {value}" for name, value in parameters.items()]
    together = sidecar.get("at_once") if sidecar is not None else None
    if isinstance(together, Mapping):
        lines.append(f"  {'at once':<20} video {together.get('video')} of {together.get('of')}, denoised together")
    if sidecar is not None and asked_for(sidecar):
        lines.append(f"Again: wan-compat generate --from {found['path']}.json")
    return lines


def asked_for(sidecar: Mapping[str, Any]) -> bool:
    """Whether a sidecar has what `generate --from` needs."""
    return isinstance(sidecar.get("request"), Mapping) and isinstance(sidecar.get("model"), Mapping)


def _sandbox(sidecar: Mapping[str, Any], *, verbose: bool) -> list[str]:
    result = sidecar.get("result")
    sandbox = result.get("sandbox") if isinstance(result, Mapping) else None
    if not isinstance(sandbox, Mapping):
        return []
    tests = sandbox.get("self_test")
    denied = sum(value is True for value in tests.values()) if isinstance(tests, Mapping) else 0
    lines = [f"  {'sandbox':<20} tier {sandbox.get('tier')}, {denied} self-tests passed"]
    if verbose and isinstance(sandbox.get("layers"), list):
        lines.append(f"  {'layers':<20} {', '.join(str(layer) for layer in sandbox['layers'][:40])}")
    return lines
