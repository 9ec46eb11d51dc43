"""`wan-compat scan`: what lies in a repository that could harm who loads it."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from wan_compat.supervisor.cli.downloads import Download, obtain
from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
from wan_compat.supervisor.cli.quantities import show_bytes
from wan_compat.supervisor.cli.session import Session, can_redraw
from wan_compat.supervisor.cli.verification import PublicKey, Verify, describe
from wan_compat.supervisor.cli.verification import verify as verify_files

if TYPE_CHECKING:
    from wan_compat.policies.scan.report import ScanReport
    from wan_compat.supervisor.integrity import IntegrityReport
    from wan_compat.supervisor.scanner import ScanProgress

REDRAW_PERIOD_S = 0.1
# Below this, a line of progress would be gone before it is read.
MIN_SHOWN_FILES = 500


def scan(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder, a file, or a hub id in the local cache.")],
    sarif: Annotated[
        str | None, typer.Option("--sarif", metavar="FILE", help="Write the findings as SARIF 2.1.0 too.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --sarif's file if it exists.")] = False,
    hash_weights: Annotated[
        bool, typer.Option("--hash", help="Hash weights too; remembered until the files change.")
    ] = False,
    download: Download = False,
    verify: Verify = False,
    public_key: PublicKey = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Look for code, pickles, paths that lead out, lying headers, hostile configurations.

    Judges files by content, reads pickles and Python without loading them, and changes nothing. The verdict is advice:
    no model is loaded because of it. Ends with 0 when nothing was found, 1 with warnings, 4 when files are
    corrupt, 5 when there are code, pickles or worse.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    session.model = model
    obtain(session, model, download=download)

    integrity = verify_files(session, model, asked=verify, public_key=public_key)
    if sarif is None:
        report = _scan(session, model, hash_weights, integrity)
    else:
        from wan_compat.policies.scan.sarif import to_sarif
        from wan_compat.supervisor.outputs import prepare_document

        # Reserved first: a name that is taken is told before the work, not after it.
        with prepare_document(sarif, overwrite) as target:
            report = _scan(session, model, hash_weights, integrity)
            _write_json(target.part_path, to_sarif(report))
            target.commit()
    if session.json:
        session.document(report.to_json() | ({} if integrity is None else {"integrity": integrity.to_json()}))
    else:
        from wan_compat.supervisor.cli.scan_view import show

        show(report, session, sys.stdout)
        if integrity is not None:
            session.say(f"\n{describe(integrity)}")
        if sarif is not None:
            session.say(f"\nWrote {sarif}.")
    return report.exit_code


def _scan(session: Session, model: str, hash_weights: bool, integrity: IntegrityReport | None) -> ScanReport:
    from wan_compat.supervisor.scanner import scan_model

    redraw = can_redraw(sys.stderr) and not session.quiet
    try:
        report = scan_model(model, hash_weights=hash_weights, progress=_progress() if redraw else None)
        # What was verified comes first: a file with the wrong bytes makes the rest of its findings doubtful.
        found = integrity.findings if integrity is not None else ()
        return dataclasses.replace(report, findings=(*found, *report.findings))
    finally:
        if redraw:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _progress() -> ScanProgress:
    last = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < REDRAW_PERIOD_S or (what == "files" and total < MIN_SHOWN_FILES):
            return
        last = now
        words = f"{done:,} of {total:,} files"
        if what == "bytes":
            words = f"hashing {show_bytes(done)} of {show_bytes(total)}"
        sys.stderr.write(f"\r\x1b[K{words}")
        sys.stderr.flush()

    return show


def _write_json(path: str, document: object) -> None:
    import json

    # Opened, not replaced: the part is the file that will get the name.
    with open(path, "r+", encoding="ascii") as file:
        json.dump(document, file, indent=2, allow_nan=False)
        file.write("\n")
