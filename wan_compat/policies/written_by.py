"""Which diffusers wrote a model's files: settings that only a later one knows are ignored by an earlier one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from packaging.version import InvalidVersion, Version


def newer_writer(documents: Iterable[Mapping[str, Any]], installed: str | None) -> str | None:
    """Return in words that files were written by a later diffusers than the installed one, None where they were not."""
    if installed is None:
        return None
    written = {release(text) for item in documents if isinstance(text := item.get("_diffusers_version"), str)}
    latest = max(written, default=Version("0"))
    if latest <= release(installed):
        return None
    return (
        f"its files were written by diffusers {latest}, and {installed} is installed: what only that knows is ignored"
    )


def release(text: str) -> Version:
    """Return a version without its development or local suffix: 0.36.0.dev0 has what 0.36.0 was going to have."""
    try:
        return Version(Version(text).base_version)
    except InvalidVersion:
        return Version("0")
