"""A line of the screen from its parts, and what colours mean."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from wan_compat.supervisor.monitor.characters import Characters

Line = list[tuple[str, str]]  # text that is harmless already, and its style

TRUST = "bold red"
PROBLEM = "bold red"
WARNING = "yellow"


def row_of(
    parts: Sequence[tuple[str, str]], width: int, chars: Characters, right: Line | None = None, *, style: str = ""
) -> Text:
    """Return one line of exactly `width` cells: `parts` from the left, cut where they meet `right`.

    Where even `right` alone is too wide, it is left out.
    """
    end = right or []
    size = sum(cell_len(text) for text, _ in end)
    if size > width:
        end, size = [], 0
    line = Text(no_wrap=True, end="", style=style)
    room = width - size
    for text, look in parts:
        wanted = cell_len(text)
        if wanted > room:
            line.append(chars.fit(text, room), look)
            room = 0
            break
        line.append(text, look)
        room -= wanted
    line.append(" " * room)
    for text, look in end:
        line.append(text, look)
    return line


def load_style(share: float) -> str:
    """Return the colour of something that is this full. Figures stand beside every bar, for who sees no colours."""
    return "red" if share >= 0.9 else "yellow" if share >= 0.75 else "green"
