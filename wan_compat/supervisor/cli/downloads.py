"""`--download`: a hub id that is not in the local cache is fetched before the verb looks at it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from wan_compat.protocol.errors import clean_text
from wan_compat.supervisor.cli.quantities import show_bytes
from wan_compat.supervisor.cli.session import Session, can_redraw

if TYPE_CHECKING:
    from wan_compat.supervisor.downloader import DownloadProgress

REDRAW_PERIOD_S = 0.1
LINE_PERIOD_S = 10.0

Download = Annotated[
    bool, typer.Option("--download", help="Fetch a hub id that is not in the local cache, pinned to a commit.")
]


def obtain(session: Session, model: str, *, download: bool, code: bool = False) -> None:
    """Fetch `model` into the cache if that was asked for and it is not there; afterwards its id is found in the cache.

    Args:
        code: Python sources too, for trust mode. They are not run by being there.
    """
    if not download:
        return
    from wan_compat.supervisor.downloader import ensure_model
    from wan_compat.supervisor.pipeline_code import fetch_missing_code, has_code
    from wan_compat.supervisor.settings import load_settings

    redraw = can_redraw(sys.stderr) and not session.quiet
    try:
        policy = load_settings().policy
        place, got = ensure_model(model, policy, code=code, progress=_progress(session, redraw))
        sources = fetch_missing_code(model, policy) if code and got is None and not has_code(place) else None
    finally:
        if redraw:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
    if got is not None:
        session.note(
            f"Fetched {got.repository} at commit {got.commit}: {len(got.files)} files, "
            f"{show_bytes(got.fetched_bytes)} over the network, {len(got.skipped)} files left out"
        )
        if session.verbose:
            for item in got.skipped:
                session.note(f"  left out {item.path}: {item.reason}")
    elif place.repository is not None and place.revision is not None:
        session.note(f"{place.repository} is in the cache, at commit {place.revision}")
    if sources is not None:
        session.note(sources.verdict)


def _progress(session: Session, redraw: bool) -> DownloadProgress | None:
    if session.quiet:
        return None
    period_s = REDRAW_PERIOD_S if redraw else LINE_PERIOD_S
    last = time.monotonic()

    def show(path: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < period_s:
            return
        last = now
        words = f"fetching {show_bytes(done)} of {show_bytes(total)}: {clean_text(path, 60)}"
        sys.stderr.write(f"\r\x1b[K{words}" if redraw else f"{words}\n")
        sys.stderr.flush()

    return show
