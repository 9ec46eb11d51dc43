"""What text and figures look like in the cells of a terminal: cleaned, bounded, and of an exact width.

Everything that a user, a model or a worker wrote passes `Characters.line` on its way to the screen. Figures are bounded
too: a supervisor of another version, or one that went mad, must not be able to fill a screen with digits.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence

from rich.cells import cell_len, set_cell_size

from wan_compat.protocol.errors import clean_text

_DAY_S = 86_400
_UTF_8 = re.compile(r"(?i)utf-?8")


@dataclasses.dataclass(frozen=True)
class Characters:
    """The characters of one terminal. `encoding` is what it takes; text that it cannot show becomes `?`."""

    encoding: str
    full: str
    empty: str
    levels: str
    branch: str
    pointer: str
    ellipsis: str
    rule: str
    dot: str
    done: str
    failed: str
    cancelled: str
    up: str

    def line(self, text: str, limit: int = 500) -> str:
        """Return untrusted text as one harmless line that this terminal can show."""
        cleaned = " ".join(clean_text(text, limit).split())
        return cleaned.encode(self.encoding, "replace").decode(self.encoding)

    def fit(self, text: str, width: int, *, right: bool = False) -> str:
        """Return `text` in exactly `width` cells: cut with an ellipsis, or padded; `right` aligns it there."""
        if width <= 0:
            return ""
        size = cell_len(text)
        if size > width:
            keep = max(0, width - cell_len(self.ellipsis))
            return set_cell_size(set_cell_size(text, keep) + self.ellipsis, width)
        return " " * (width - size) + text if right else text + " " * (width - size)

    def bar(self, share: float, width: int) -> tuple[str, str]:
        """Return the filled and the empty part of a bar."""
        filled = round(min(max(share, 0.0), 1.0) * width)
        # Something is not nothing, and not yet all is not all.
        if width > 1:
            filled = max(filled, 1) if share > 0 else filled
            filled = min(filled, width - 1) if share < 1.0 else filled
        return self.full * filled, self.empty * (width - filled)

    def sparkline(self, shares: Sequence[float], width: int) -> str:
        """Return the last `width` values, the newest at the right, from the lowest to the highest of them.

        How much it is stands in the bar beside; here it is about how it went. A range of less than a tenth of the whole
        is drawn as a tenth, or noise would look like mountains.
        """
        if width <= 0 or not shares:
            return " " * max(0, width)
        shown = [min(max(share, 0.0), 1.0) for share in shares[-width:]]
        low = min(shown)
        span = max(0.1, max(shown) - low)
        top = len(self.levels) - 1
        return "".join(self.levels[round((share - low) / span * top)] for share in shown).rjust(width)


UNICODE = Characters(
    encoding="utf-8",
    full="█",
    empty="░",
    levels="▁▂▃▄▅▆▇█",
    branch="└",
    pointer="▸",
    ellipsis="…",
    rule="─",
    dot="·",
    done="✓",
    failed="✗",
    cancelled="–",
    up="↑",
)
ASCII = Characters(
    encoding="ascii",
    full="#",
    empty=".",
    levels="_.:-=+*#",
    branch="\\",
    pointer=">",
    ellipsis="~",
    rule="-",
    dot="-",
    done="+",
    failed="!",
    cancelled="-",
    up="^",
)


def characters_for(encoding: str | None, environ: Mapping[str, str]) -> Characters:
    """Return the set for a stream of this encoding in this environment: plain ASCII where UTF-8 is not promised.

    Python writes UTF-8 in the C locale too (PEP 540), so that a stream's encoding alone does not tell what the terminal
    shows: the locale has to agree, in the order of setlocale(3).
    """
    locale = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := environ.get(name))), "UTF-8")
    return UNICODE if all(_UTF_8.search(name) for name in (encoding or "", locale)) else ASCII


def show_size(count: int) -> str:
    """Return `9.1 GB` or `840 MB`: decimal units, three digits, at most 8 cells."""
    if count < 1_000_000_000:
        return f"{count / 1e6:.0f} MB"
    if count < 100_000_000_000:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e9:.0f} GB" if count < 10_000_000_000_000 else ">10 TB"


def show_share(count: int, limit: int) -> str:
    """Return `9.1/20.0 GB` or `840M/20.0 GB`; without a limit just the size."""
    if limit <= 0:
        return show_size(count)
    if limit < 1_000_000_000:
        return f"{_short(count / 1e6, 0)}/{_short(limit / 1e6, 0)} MB"
    if count < 1_000_000_000:  # in the place that the others take: a tiny worker has more than 0.0 GB
        return f"{count / 1e6:.0f}M/{_short(limit / 1e9, 1)} GB"
    return f"{_short(count / 1e9, 1)}/{_short(limit / 1e9, 1)} GB"


def show_length(seconds: float | None) -> str:
    """Return `0:42`, `2:03:00` or `3 days`."""
    if seconds is None:
        return ""
    if seconds >= _DAY_S:
        days = seconds / _DAY_S
        return f"{days:.0f} days" if days < 1000 else ">999 days"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_rate(rate_s: float | None) -> str:
    """Return seconds per step: `1.2 s/it`, `0.04 s/it`, `95 s/it`."""
    if rate_s is None or rate_s <= 0:
        return ""
    if rate_s >= 10_000:
        return ">3 h/it"
    digits = 2 if rate_s < 0.995 else 1 if rate_s < 99.95 else 0
    return f"{max(rate_s, 0.01):.{digits}f} s/it"


def show_clock(unix_s: float) -> str:
    """Return the local time of day, `14:03:22`."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(unix_s))
    except (OverflowError, ValueError, OSError):
        return "--:--:--"


def show_moment(unix_s: float) -> str:
    """Return the local date and time, for what may be days ago."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))
    except (OverflowError, ValueError, OSError):
        return "unknown"


def model_name(path: str) -> str:
    """Return what a person calls a model: the last part of its path, or its name in the Hugging Face cache."""
    parts = [part for part in path.split("/") if part]
    for part in reversed(parts):
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return parts[-1] if parts else path


def _short(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value < 100 else f"{value:.0f}" if value < 10_000 else ">9999"
