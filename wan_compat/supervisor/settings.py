"""Where the effective policy comes from: built in, user configuration, working folder, environment.

    user configuration   <user config folder>/wan-compat/config.toml        may widen
    working folder       wan-compat.toml, or [tool.wan-compat] of pyproject.toml     may only narrow
    environment          WAN_COMPAT_MIN_TIER, WAN_COMPAT_MEMORY_LIMIT, ...           may widen

What says where things come from and go to (own_settings.py: the registry's updates, the index of packages, log and
metrics) is for the user's own file and the environment alone to say.

The working folder is judged last whatever its place in the order of precedence, so that nothing found there can loosen
what the user set. Files are read whole or refused whole, up to MAX_FILE_BYTES.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from wan_compat.policies.policy import SETTINGS, Policy, narrow, read_policy, replace, setting_of
from wan_compat.protocol.errors import InvalidRequest, RefusedByPolicy, clean_text
from wan_compat.supervisor.own_settings import (
    BUILT_IN,
    ENVIRONMENT_PREFIX,
    OWN_SETTINGS,
    OwnSettings,
    read_own_settings,
)

MAX_FILE_BYTES = 256 << 10


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is in force.

    Attributes:
        origins: By field of the policy and by own setting, the source that had the last word.
        history: By setting, (source, value) for each source that set it, in the order of reading; "built in" first.
    """

    policy: Policy
    origins: Mapping[str, str]
    own: OwnSettings = dataclasses.field(default_factory=OwnSettings)
    history: Mapping[str, tuple[tuple[str, Any], ...]] = dataclasses.field(default_factory=dict)

    @property
    def registry_url(self) -> str | None:
        """Where signed registry updates lie."""
        return self.own.registry_url

    @property
    def registry_public_key(self) -> bytes | None:
        """The 32 bytes of the key that they need."""
        return self.own.registry_public_key

    @property
    def package_index(self) -> str | None:
        """Where wheels come from; None is PyPI."""
        return self.own.package_index


def load_settings(folder: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read all sources.

    Args:
        folder: The working folder; None is the current one.
        environment: None is this process'.

    Raises:
        InvalidRequest: A source is malformed; nothing of it is used.
        RefusedByPolicy: A file in the working folder would loosen something.
    """
    environment = os.environ if environment is None else environment
    policy = Policy()
    origins = dict.fromkeys((*Policy.model_fields, *OWN_SETTINGS), BUILT_IN)
    history: dict[str, list[tuple[str, Any]]] = {name: [(BUILT_IN, setting_of(policy, name)[1])] for name in SETTINGS}

    def note(source: str, table: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        origins.update(dict.fromkeys(fields, source))
        for name in table:
            history[name].append((source, setting_of(policy, name)[1]))

    user_file = _user_file()
    user_table = _read_toml(user_file)
    _check_names(user_table, str(user_file))
    for source, table in (
        (str(user_file), user_table.get("policy", {})),
        ("environment", _from_environment(environment)),
    ):
        fields = read_policy(_table(table, source), source)
        policy = replace(policy, fields)
        note(source, table, fields)
    for path, table in _working_folder(folder or Path.cwd()):
        fields = read_policy(_table(table, path), path)
        policy = narrow(policy, fields, path)
        note(path, table, fields)
    own, said = read_own_settings(user_table, str(user_file), environment)
    for field in dataclasses.fields(OwnSettings):
        history[field.name] = [(BUILT_IN, field.default)]
    for name, source, value in said:
        origins[name] = source
        history[name].append((source, value))
    return Settings(policy, origins, own, {name: tuple(entries) for name, entries in history.items()})


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
    own_table = _read_toml(own)
    _refuse_own_settings(own_table, str(own))
    _check_names(own_table, str(own))
    tables = [(str(own), own_table.get("policy", {}))]
    tool = _read_toml(project).get("tool", {})
    if isinstance(tool, dict) and "wan-compat" in tool:
        section = _table(tool["wan-compat"], str(project))
        _refuse_own_settings(section, str(project))
        _check_names(section, f"{project} [tool.wan-compat]")
        tables.append((f"{project} [tool.wan-compat]", section.get("policy", {})))
    return tables


def _refuse_own_settings(table: Mapping[str, Any], source: str) -> None:
    for name in OWN_SETTINGS:
        if name in table:
            raise RefusedByPolicy(
                f"{source} sets {name}: where things come from and go to is not for a working folder to say",
                hint=f"put it into {_user_file()} if you mean it",
            )


def _check_names(table: Mapping[str, Any], source: str) -> None:
    """Refuse a name that means nothing: a typing error in a setting must not look like one that is in force."""
    for name in table:
        if name != "policy" and name not in OWN_SETTINGS:
            in_policy = f"[policy] has {name}; write it below that line" if name in SETTINGS else None
            near = difflib.get_close_matches(str(name), ("policy", *OWN_SETTINGS), 1)
            raise InvalidRequest(
                f"{source}: there is no setting {clean_text(str(name), 60)!r}",
                hint=in_policy or (f"did you mean {near[0]}?" if near else f"known are {', '.join(OWN_SETTINGS)}"),
            )


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
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidRequest(f"{path} is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidRequest(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also a number with more digits than Python converts
        raise InvalidRequest(f"{path} is not valid TOML: {error}", hint="nothing of it was used") from error
