"""Sizes and lengths on the command line; what they mean stands in `policies/quantities.py`."""

from __future__ import annotations

import typer

from wan_compat.policies.quantities import bytes_from, seconds_from


def parse_bytes(text: str) -> int:
    """Return bytes from `8GB`, `512MiB`, `2G` or a plain number."""
    try:
        return bytes_from(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def parse_seconds(text: str) -> float:
    """Return seconds from `90`, `90s`, `10m` or `1.5h`."""
    try:
        return seconds_from(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def show_bytes(count: int) -> str:
    """Return `1.2 GB`: decimal units, as in the messages of the error tree."""
    if count < 1_000_000:
        return f"{count / 1000:.0f} kB"
    return f"{count / 1e6:.0f} MB" if count < 1_000_000_000 else f"{count / 1e9:.1f} GB"


def show_seconds(seconds: float) -> str:
    """Return `0:42` or `2:03:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_frames(count: int) -> str:
    """Return a number of frames with its noun."""
    return "1 frame" if count == 1 else f"{count} frames"
