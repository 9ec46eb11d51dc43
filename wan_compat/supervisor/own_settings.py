"""Settings outside the policy: where things come from and go to. For the user alone to say, never for a working folder.

    registry_url, registry_public_key   signed registry updates: an https:// address, 32 bytes of Ed25519 in base64
    package_index                       where `install-deps` gets wheels: an https:// address, or a folder's full path
    log_file                            the full path of a log of JSON lines
    log_prompts                         whether prompts are written there too
    metrics                             a file's full path, or an address such as 127.0.0.1:9464

All but the registry's may stand in the environment too, as WAN_COMPAT_LOG_FILE and so on, which goes before the file.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import os
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from wan_compat.protocol.errors import InvalidRequest, clean_text

MAX_URL_CHARS = 2000
ENVIRONMENT_PREFIX = "WAN_COMPAT_"
BUILT_IN = "built in"

_ONLY_IN_FILE = ("registry_url", "registry_public_key")


@dataclasses.dataclass(frozen=True)
class OwnSettings:
    """Their values; None is what is built in: no updates, PyPI, no log, no metrics."""

    registry_url: str | None = None
    registry_public_key: bytes | None = None
    package_index: str | None = None
    log_file: str | None = None
    log_prompts: bool = False
    metrics: str | None = None


OWN_SETTINGS = tuple(field.name for field in dataclasses.fields(OwnSettings))


def read_own_settings(
    table: Mapping[str, Any], source: str, environment: Mapping[str, str]
) -> tuple[OwnSettings, list[tuple[str, str, Any]]]:
    """Return the values in force, and (setting, source, value) for each time that one was set, later ones last.

    Args:
        table: The user's file, whole.
        source: Its name.

    Raises:
        InvalidRequest: A value that is none; names the setting, and the file or the variable.
    """
    values: dict[str, Any] = {}
    said: list[tuple[str, str, Any]] = []
    for name in OWN_SETTINGS:
        variable = ENVIRONMENT_PREFIX + name.upper()
        found = [(source, table[name])] if name in table else []
        if name not in _ONLY_IN_FILE and variable in environment:
            found.append((variable, environment[variable]))
        for where, value in found:
            values[name] = _READERS[name](value, f"{where}: {name}")
            said.append((name, where, values[name]))
    return OwnSettings(**values), said


def _registry_url(value: Any, what: str) -> str:
    text = _text(value, what)
    if not _is_https(text):
        raise InvalidRequest(f"{what} must be an https:// address without a user name")
    return text


def _public_key(value: Any, what: str) -> bytes:
    text = _text(value, what)
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        raise InvalidRequest(f"{what} must be an Ed25519 key: 32 bytes in base64")
    return raw


def _package_index(value: Any, what: str) -> str:
    is_text = isinstance(value, str) and value.isprintable() and len(value) <= MAX_URL_CHARS
    if is_text and (os.path.isabs(value) or _is_https(value)):
        return str(value)
    raise InvalidRequest(f"{what} must be an https:// address without a user name, or the full path of a folder")


def _log_file(value: Any, what: str) -> str:
    path = os.path.expanduser(_text(value, what))
    if not os.path.isabs(path) or not path.isprintable():
        # A relative one would be another file in every folder where a program is started.
        raise InvalidRequest(f"{what} must be the full path of a file")
    return path


def _log_prompts(value: Any, what: str) -> bool:
    known = {"true": True, "false": False, True: True, False: False}
    if not isinstance(value, bool | str) or value not in known:
        raise InvalidRequest(f"{what} must be true or false, not {clean_text(str(value), 60)!r}")
    return known[value]


def _metrics(value: Any, what: str) -> str:
    from wan_compat.supervisor.metrics import loopback_address  # heavy with a server; and most users set none

    text = _text(value, what)
    try:
        is_address = loopback_address(text) is not None
    except InvalidRequest as error:
        raise InvalidRequest(f"{what}: {error.message}", fixes=error.fixes) from error
    return text if is_address else _log_file(text, what)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "registry_url": _registry_url,
    "registry_public_key": _public_key,
    "package_index": _package_index,
    "log_file": _log_file,
    "log_prompts": _log_prompts,
    "metrics": _metrics,
}


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value or len(value) > MAX_URL_CHARS or "\0" in value:
        raise InvalidRequest(f"{what} must be a text of at most {MAX_URL_CHARS} characters")
    return value


def _is_https(value: str) -> bool:
    with contextlib.suppress(ValueError):
        parts = urllib.parse.urlsplit(value)
        return parts.scheme == "https" and bool(parts.hostname) and not parts.username and value.isprintable()
    return False
