"""`wan-compat check`: what a model is, what it needs, whether it will run here."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.supervisor.cli.downloads import Download, obtain
from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.parts_options import (
    Components,
    ImageEncoder,
    TextEncoder,
    Transformer,
    Transformer2,
    Vae,
    flags_of,
)
from wan_compat.supervisor.cli.quantities import show_bytes
from wan_compat.supervisor.cli.session import Session, can_redraw
from wan_compat.supervisor.cli.task_options import Task
from wan_compat.supervisor.cli.verification import PublicKey, Verify, describe
from wan_compat.supervisor.cli.verification import verify as verify_files

if TYPE_CHECKING:
    from wan_compat.supervisor.check import ModelReport


def check(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder, a weight file, or a hub id in the local cache.")],
    task: Annotated[Task | None, typer.Option(help="Say whether the model does this task too.")] = None,
    repair: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write a copy with a mended model_index.json there.")
    ] = None,
    components: Components = None,
    transformer: Transformer = None,
    transformer_2: Transformer2 = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    image_encoder: ImageEncoder = None,
    download: Download = False,
    verify: Verify = False,
    public_key: PublicKey = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Say what a model is, what it needs, and whether it will run here.

    Reads names, configurations and weight headers, no weights; starts nothing and changes nothing. Ends with 0 when the
    model can run here, else with the code of the most fundamental error: 4 invalid or corrupt, 5 refused by policy
    (code or pickles), 1 not compatible, 3 a library is missing or too old, 6 not enough memory. Warnings do not count.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    session.model = model
    obtain(session, model, download=download)

    from wan_compat.policies.judgement.judge import in_order
    from wan_compat.supervisor.check import check_model
    from wan_compat.supervisor.model_parts import Parts

    files = {
        "transformer": transformer,
        "transformer_2": transformer_2,
        "vae": vae,
        "text_encoder": text_encoder,
        "image_encoder": image_encoder,
    }
    parts = Parts(components, {name: path for name, path in files.items() if path is not None})
    if parts and repair is not None:
        raise InvalidRequest("--repair mends a folder as it is, without other parts", hint="leave the parts out")
    report = check_model(model, task.value if task else None, parts=parts)
    changes: tuple[str, ...] | None = None
    if repair is not None and report.repair is not None:
        session.note(report.repair_diff or "")
        changes = report.repair.changes
        _write(session, report, repair)
        report = check_model(repair, task.value if task else None)
    elif repair is not None:
        session.note(f"Nothing that --repair can mend; {repair} was not written.")
    integrity = verify_files(session, model, asked=verify, public_key=public_key)
    if integrity is not None:
        report = dataclasses.replace(report, findings=in_order((*report.findings, *integrity.findings)))
    if session.json:
        repaired = None if changes is None else {"original": model, "changes": list(changes)}
        document = report.to_json() | ({} if repair is None else {"repaired": repaired})
        session.document(document | ({} if integrity is None else {"integrity": integrity.to_json()}))
        return report.exit_code

    from wan_compat.supervisor.cli.check_view import show

    show(report, session, sys.stdout)
    if integrity is not None:
        session.say(f"\n{describe(integrity)}")
    if changes is not None:
        session.say(f"\nWrote {repair}: {'; '.join(changes)}. Checked again: the report above.")
    elif report.repair_diff is not None:
        session.say(f"\nWhat --repair DIR would write into a copy:\n{report.repair_diff}")
    session.say(f"\n{_next_step(report, flags_of({'components': components, **files}))}")
    return report.exit_code


def _write(session: Session, report: ModelReport, target: str) -> None:
    from wan_compat.supervisor.repair import write_repaired_copy

    assert report.repair is not None
    redraw = can_redraw(sys.stderr) and not session.quiet

    def progress(path: str, done: int, total: int) -> None:
        if redraw:
            sys.stderr.write(f"\r\x1b[Kcopying {show_bytes(done)} of {show_bytes(total)}")
            sys.stderr.flush()

    try:
        write_repaired_copy(report.facts, report.repair, target, progress)
    finally:
        if redraw:
            sys.stderr.write("\r\x1b[K")


def _next_step(report: ModelReport, flags: str) -> str:
    model = shlex.quote(report.model) + flags
    if report.compatible_here:
        return f"It can run here. Next: wan-compat generate {model} --prompt '...' --output video.mp4"
    if any(item.code == "generate_mends" for item in report.findings):
        lasting = f"; for good: wan-compat check {model} --repair DIR" if report.repair is not None else ""
        return f"It is broken, and runs as noted above. Next: wan-compat generate {model} --prompt '...'{lasting}"
    if report.repair is not None:
        return f"It cannot run as it is. Next: wan-compat check {model} --repair DIR"
    errors = [item for item in report.findings if item.severity == "error"]
    # The same model in diffusers layout has none of the original's pickles: that advice answers both.
    first = next((item for item in errors if item.code == "layout_not_diffusers"), errors[0])
    return f"It cannot run here. Next: {first.fix}"
