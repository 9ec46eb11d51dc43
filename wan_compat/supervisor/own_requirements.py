"""What a repository itself says that should be installed: shown to a person, never installed.

Such a list is text of whoever made the model. Its names may be anybody's packages, so they are shown as they stand, and
not as something to type.
"""

from __future__ import annotations

import configparser
import dataclasses
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.protocol.errors import clean_text
from wan_compat.supervisor.inspection.opening import opened
from wan_compat.supervisor.inspection.problems import Defect

MAX_BYTES = 64 << 10
MAX_FILES = 20
MAX_LINES = 100
MAX_LINE_CHARS = 200

_REQUIREMENTS = re.compile(r"(^|/)(requirements[^/]*|[^/]*requirements|constraints)\.(txt|in)$")
# Programs and formats that are named, and not read for what they mean.
_OTHERS = re.compile(r"(^|/)(setup\.py|environment\.ya?ml|Pipfile|poetry\.lock|uv\.lock)$")


@dataclasses.dataclass(frozen=True)
class OwnRequirements:
    """One file of a repository. `lines` are cleaned; empty where the file is only named."""

    path: str
    lines: tuple[str, ...]
    note: str = ""


def read_own_requirements(facts: ModelFacts) -> tuple[OwnRequirements, ...]:
    """Return what lies in a repository, bounded in everything. Raises nothing for what it finds."""
    found: list[OwnRequirements] = []
    for path in sorted(facts.files):
        if len(found) == MAX_FILES:
            break
        name = path.rpartition("/")[2]
        if _REQUIREMENTS.search(path):
            found.append(_read(facts.files[path], _requirement_lines))
        elif name == "pyproject.toml":
            found.append(_read(facts.files[path], _project_lines))
        elif name == "setup.cfg":
            found.append(_read(facts.files[path], _setup_lines))
        elif _OTHERS.search(path):
            found.append(OwnRequirements(clean_text(path, MAX_LINE_CHARS), (), "not read"))
    return tuple(found)


def _read(fact: FileFact, parse: Callable[[str], Iterator[str]]) -> OwnRequirements:
    path = clean_text(fact.path, MAX_LINE_CHARS)
    try:
        with opened(fact) as descriptor, open(descriptor, "rb", closefd=False) as file:
            raw = file.read(MAX_BYTES + 1)
    except (Defect, OSError):
        return OwnRequirements(path, (), "cannot be read")
    if len(raw) > MAX_BYTES:
        return OwnRequirements(path, (), f"larger than {MAX_BYTES} bytes, not read")
    try:
        lines = [clean_text(line.strip(), MAX_LINE_CHARS) for line in parse(raw.decode("utf-8", "replace"))]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, configparser.Error):
        return OwnRequirements(path, (), "malformed, not read")
    more = f"and {len(lines) - MAX_LINES} more" if len(lines) > MAX_LINES else ""
    return OwnRequirements(path, tuple(lines[:MAX_LINES]), more)


def _requirement_lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        bare = line.split(" #")[0].strip()
        if bare and not bare.startswith("#"):
            yield bare


def _project_lines(text: str) -> Iterator[str]:
    project: Mapping[str, Any] = tomllib.loads(text).get("project", {})
    yield from (str(item) for item in project.get("dependencies", ()))
    for extra, items in project.get("optional-dependencies", {}).items():
        yield from (f"{item} [{extra}]" for item in items)


def _setup_lines(text: str) -> Iterator[str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    yield from _requirement_lines(parser.get("options", "install_requires", fallback=""))
