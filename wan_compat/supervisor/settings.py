"""Where the effective policy comes from: built in, user configuration, working folder, environment.

    user configuration   <user config folder>/wan-compat/config.toml        may widen
    working folder       wan-compat.toml, or [tool.wan-compat] of pyproject.toml     may only narrow
    environment          WAN_COMPAT_MIN_TIER, WAN_COMPAT_MEMORY_LIMIT, ...           may widen

The working folder is judged last whatever its place in the order of precedence, so that nothing found there can loosen
what the user set. Files are read whole or refused whole, up to MAX_FILE_BYTES.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from wan_compat.policies.policy import SETTINGS, Policy, narrow, read_policy, replace
from wan_compat.protocol.errors import InvalidRequest

MAX_FILE_BYTES = 256 << 10
ENVIRONMENT_PREFIX = "WAN_COMPAT_"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The effective policy and, by field, the source that had the last word."""

    policy: Policy
    origins: Mapping[str, str]


def load_settings(folder: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read all sources.

    Args:
        folder: The working folder; None is the current one.
        environment: None is this process'.

    Raises:
        InvalidRequest: A source is malformed; nothing of it is used.
        RefusedByPolicy: A file in the working folder would loosen something.
    """
    policy, origins = Policy(), dict.fromkeys(Policy.model_fields, "built in")
    user_file = _user_file()
    for source, table in (
        (str(user_file), _read_toml(user_file).get("policy", {})),
        ("environment", _from_environment(os.environ if environment is None else environment)),
    ):
        fields = read_policy(_table(table, source), source)
        policy = replace(policy, fields)
        origins.update(dict.fromkeys(fields, source))
    for path, table in _working_folder(folder or Path.cwd()):
        fields = read_policy(_table(table, path), path)
        policy = narrow(policy, fields, path)
        origins.update(dict.fromkeys(fields, path))
    return Settings(policy, origins)


def sources(folder: Path | None = None) -> tuple[str, ...]:
    """Return where settings are looked for, in the order of reading."""
    place = folder or Path.cwd()
    return (
        str(_user_file()),
        f"environment ({ENVIRONMENT_PREFIX}...)",
        str(place / "wan-compat.toml"),
        f"{place / 'pyproject.toml'} [tool.wan-compat]",
    )


def _user_file() -> Path:
    return Path(platformdirs.user_config_dir("wan-compat")) / "config.toml"


def _working_folder(folder: Path) -> list[tuple[str, Any]]:
    own, project = folder / "wan-compat.toml", folder / "pyproject.toml"
    tables = [(str(own), _read_toml(own).get("policy", {}))]
    tool = _read_toml(project).get("tool", {})
    if isinstance(tool, dict) and "wan-compat" in tool:
        section = _table(tool["wan-compat"], str(project))
        tables.append((f"{project} [tool.wan-compat]", section.get("policy", {})))
    return tables


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for setting in SETTINGS:
        text = environment.get(ENVIRONMENT_PREFIX + setting.upper())
        if text is None:
            continue
        # The environment has only text; TOML's own rules say what is a number or a truth value in it.
        try:
            table[setting] = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            table[setting] = text
    return table


def _table(value: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{source}: [policy] must be a table, not a {type(value).__name__}")
    return value


def _read_toml(path: Path) -> dict[str, Any]:
    """Return a file's content, {} where there is none. A FIFO or device in its place is refused, not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidRequest(f"{path} is not a regular file")
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidRequest(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{path} is not valid TOML: {error}", hint="nothing of it was used") from error
