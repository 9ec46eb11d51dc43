"""The gallery: `report.html` in the folder of a batch, one page that shows every item and needs nothing but itself.

    write_gallery    checks the entries, gets posters within a time, renders (gallery_page.py), gives the file its name

The page lies beside the videos and refers to them by name, so the folder can be moved, copied or served as it is.
Prompts, names and errors in it are anybody's: SECURITY.md, "Reports".
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from wan_compat.protocol.errors import OutputNotWritable
from wan_compat.supervisor.gallery_page import Card, render
from wan_compat.supervisor.outputs import prepare_document
from wan_compat.supervisor.posters import PosterStore

REPORT_NAME = "report.html"
State = Literal["done", "failed", "waiting"]


@dataclasses.dataclass(frozen=True)
class GalleryEntry:
    """One item of a batch, as far as it has come.

    Args:
        index: Place in the batch, from 1.
        model: Path or repository, as the batch names it.
        output: The file, or the folder of pictures, relative to the gallery's folder; None where there is none. A name
            that leads out of the folder counts as none.
        poster: A picture of it, PNG or JPEG: its content, or its path relative to the gallery's folder. None: one is
            made from the video.
        seconds: Of the whole job, on the wall clock.
        timings: Seconds per phase, as in `results.Timings`; `total_s` is left out.
        format: Of the output, as in `--format`.
        recovery: What was survived: `error`, `action`, `outcome`.
    """

    index: int
    state: State
    prompt: str = ""
    negative_prompt: str | None = None
    seed: int | None = None
    model: str = ""
    output: str | None = None
    poster: str | bytes | os.PathLike[str] | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    seconds: float | None = None
    timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tier: str | None = None
    mode: str = "safe"
    format: str | None = None
    error_code: str | None = None
    error: str | None = None
    label: str = ""
    recovery: Sequence[Mapping[str, str]] = ()


def write_gallery(
    folder: str | os.PathLike[str], entries: Sequence[GalleryEntry], *, title: str, poster_time_s: float = 5.0
) -> Path:
    """Write `report.html` into a folder, whole or not at all, replacing an older one.

    Args:
        folder: Where the outputs lie.
        title: Heading of the page.
        poster_time_s: How long making posters may take in this call. They are remembered in this process, so that the
            next call goes on; a video without one shows its first frame once the browser has it.

    Raises:
        OutputNotWritable, DiskExceeded: The folder cannot take it.
    """
    place = Path(folder)
    store = PosterStore(place, deadline_s=time.monotonic() + poster_time_s)
    cards = []
    for entry in entries:
        output = relative_output(entry.output)
        cards.append(Card(entry, output, store.source_of(entry.poster, output)))
    page = render(cards, title)
    with prepare_document(place / REPORT_NAME, overwrite=True) as target:
        try:
            with open(target.part_path, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(page)
        except OSError as error:
            raise OutputNotWritable(f"{target.path!r} cannot be written: {error.strerror}") from error
        target.commit()
    store.close()
    return Path(target.path)


def relative_output(name: str | None) -> str | None:
    """Return a name that stays within its folder, or None."""
    if not name or "\0" in name or "\\" in name or os.path.isabs(name):
        return None
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair: no file is named so
        return None
    return None if any(part in ("", ".", "..") for part in name.split("/")) else name
