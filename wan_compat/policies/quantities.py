"""Sizes and lengths as people write them: `8GB`, `512MiB`, `90s`, `10m`. Used by settings and by the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping

# A bare letter means the binary unit, as in docker and systemd; `GB` and `GiB` mean what they say.
_BYTES = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)},
    **{letter: 1024**power for power, letter in enumerate("KMGT", 1)},
}
_SECONDS = {"": 1, "S": 1, "M": 60, "H": 3600}
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")


def bytes_from(text: str) -> int:
    """Return bytes from `8GB`, `512MiB`, `2G` or a plain number. Raises ValueError in a person's words."""
    return int(_parse(text, _BYTES, "a size such as 8GB, 512MiB or a number of bytes"))


def seconds_from(text: str) -> float:
    """Return seconds from `90`, `90s`, `10m` or `1.5h`. Raises ValueError in a person's words."""
    return float(_parse(text, _SECONDS, "a length such as 90s, 10m or 1.5h"))


def _parse(text: str, units: Mapping[str, int], wanted: str) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    unit = units.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text[:40]!r} is not {wanted}")
    # Whole numbers stay whole: a float would round large byte counts.
    return int(match[1]) * unit if match[1].isdigit() else float(match[1]) * unit
