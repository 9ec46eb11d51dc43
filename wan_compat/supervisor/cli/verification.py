"""`--verify`: hash every file and compare it with what the hub, a list or a signature says."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.supervisor.cli.quantities import show_bytes
from wan_compat.supervisor.cli.session import Session, can_redraw

if TYPE_CHECKING:
    from wan_compat.supervisor.integrity import IntegrityReport

REDRAW_PERIOD_S = 0.1

Verify = Annotated[
    bool, typer.Option("--verify", help="Hash every file; compare with the hub's hashes, lists and signatures.")
]
PublicKey = Annotated[
    str | None, typer.Option("--public-key", metavar="FILE", help="With --verify: the key a signature must be of.")
]


def verify(session: Session, model: str, *, asked: bool, public_key: str | None) -> IntegrityReport | None:
    """Verify if that was asked for. Takes as long as reading the files, once: hashes are remembered."""
    if not asked:
        if public_key is not None:
            raise InvalidRequest("--public-key says whose signature --verify shall find", hint="give --verify too")
        return None
    from wan_compat.supervisor.integrity import verify_model

    redraw = can_redraw(sys.stderr) and not session.quiet
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if redraw and time.monotonic() - last >= REDRAW_PERIOD_S:
            last = time.monotonic()
            sys.stderr.write(f"\r\x1b[Khashing {show_bytes(done)} of {show_bytes(total)}")
            sys.stderr.flush()

    try:
        return verify_model(model, public_key=public_key, progress=show)
    finally:
        if redraw:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def describe(report: IntegrityReport) -> str:
    """Return one line: how many files are as somebody said, and who said it."""
    by = sorted(set(report.verified.values()))
    known = f"{len(report.verified)} files have the hash of a {' or '.join(by)}" if by else "no file has a known hash"
    return f"Integrity: {known}; {len(report.unverified)} have no hash to compare with."
