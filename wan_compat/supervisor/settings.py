"""Where the effective policy comes from: built in, user configuration, working folder, environment.

    user configuration   <user config folder>/wan-compat/config.toml        may widen
    working folder       wan-compat.toml, or [tool.wan-compat] of pyproject.toml     may only narrow
    environment          WAN_COMPAT_MIN_TIER, WAN_COMPAT_MEMORY_LIMIT, ...           may widen

Where signed registry updates come from, and whose signature they need, is for the user's own file alone to say:

    registry_url = "https://..."              registry_public_key = "<base64 of an Ed25519 key>"

So it is for the index that `install-deps` fetches wheels from, which the environment may name too:

    package_index = "https://pypi.org/simple", or a folder with wheels        WAN_COMPAT_PACKAGE_INDEX

The working folder is judged last whatever its place in the order of precedence, so that nothing found there can loosen
what the user set. Files are read whole or refused whole, up to MAX_FILE_BYTES.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import os
import stat
import tomllib
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from wan_compat.policies.policy import SETTINGS, Policy, narrow, read_policy, replace
from wan_compat.protocol.errors import InvalidRequest, RefusedByPolicy

MAX_FILE_BYTES = 256 << 10
MAX_URL_CHARS = 2000
ENVIRONMENT_PREFIX = "WAN_COMPAT_"
REGISTRY_SETTINGS = ("registry_url", "registry_public_key")
PACKAGE_INDEX = "package_index"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The effective policy and, by field, the source that had the last word.

    `registry_url` is where signed registry updates lie, `registry_public_key` the 32 bytes of the key they need,
    `package_index` where wheels come from (None: PyPI)."""

    policy: Policy
    origins: Mapping[str, str]
    registry_url: str | None = None
    registry_public_key: bytes | None = None
    package_index: str | None = None


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
    user_table = _read_toml(user_file)
    for source, table in (
        (str(user_file), user_table.get("policy", {})),
        ("environment", _from_environment(os.environ if environment is None else environment)),
    ):
        fields = read_policy(_table(table, source), source)
        policy = replace(policy, fields)
        origins.update(dict.fromkeys(fields, source))
    for path, table in _working_folder(folder or Path.cwd()):
        fields = read_policy(_table(table, path), path)
        policy = narrow(policy, fields, path)
        origins.update(dict.fromkeys(fields, path))
    index = _package_index(user_table, str(user_file), os.environ if environment is None else environment)
    return Settings(policy, origins, *_registry_settings(user_table, str(user_file)), index)


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
    _refuse_registry_settings(own_table, str(own))
    tables = [(str(own), own_table.get("policy", {}))]
    tool = _read_toml(project).get("tool", {})
    if isinstance(tool, dict) and "wan-compat" in tool:
        section = _table(tool["wan-compat"], str(project))
        _refuse_registry_settings(section, str(project))
        tables.append((f"{project} [tool.wan-compat]", section.get("policy", {})))
    return tables


def _registry_settings(table: Mapping[str, Any], source: str) -> tuple[str | None, bytes | None]:
    """Return (url, public key) of the user's file, checked."""
    url, key = (table.get(name) for name in REGISTRY_SETTINGS)
    for name, value in zip(REGISTRY_SETTINGS, (url, key), strict=True):
        if value is not None and (not isinstance(value, str) or len(value) > MAX_URL_CHARS):
            raise InvalidRequest(f"{source}: {name} must be a text of at most {MAX_URL_CHARS} characters")
    if url is not None:
        try:
            parts = urllib.parse.urlsplit(url)
            usable = parts.scheme == "https" and bool(parts.hostname) and not parts.username and url.isprintable()
        except ValueError:
            usable = False
        if not usable:
            raise InvalidRequest(f"{source}: registry_url must be an https:// address without a user name")
    try:
        raw = base64.b64decode(key, validate=True) if key is not None else None
    except (binascii.Error, ValueError):
        raw = b""
    if raw is not None and len(raw) != 32:
        raise InvalidRequest(f"{source}: registry_public_key must be an Ed25519 key: 32 bytes in base64")
    return url, raw


def _package_index(table: Mapping[str, Any], source: str, environment: Mapping[str, str]) -> str | None:
    """Return the index or folder for wheels; the environment goes before the user's file."""
    variable = ENVIRONMENT_PREFIX + PACKAGE_INDEX.upper()
    source, value = (variable, environment[variable]) if variable in environment else (source, table.get(PACKAGE_INDEX))
    if value is None:
        return None
    if isinstance(value, str) and value.isprintable() and len(value) <= MAX_URL_CHARS:
        if os.path.isabs(value):
            return value
        with contextlib.suppress(ValueError):
            parts = urllib.parse.urlsplit(value)
            if parts.scheme == "https" and parts.hostname and not parts.username:
                return value
    raise InvalidRequest(
        f"{source}: {PACKAGE_INDEX} must be an https:// address without a user name, or the full path of a folder"
    )


def _refuse_registry_settings(table: Mapping[str, Any], source: str) -> None:
    for name in (*REGISTRY_SETTINGS, PACKAGE_INDEX):
        if name in table:
            raise RefusedByPolicy(
                f"{source} sets {name}: where updates and packages come from is not for a working folder to say",
                hint=f"put it into {_user_file()} if you mean it",
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
