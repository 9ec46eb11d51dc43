"""Which models this user has run before: the first use of one is asked about on a terminal, and recorded in any case.

    models.json   {"schema_version": 1, "models": {NAME: when}}   NAME is a repository id or the real path

It opens nothing: safe mode confines a known model exactly as an unknown one. A file that is lost or damaged costs no
more than being asked again.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wan_compat.protocol.errors import StateCorrupt, StateUnsafe
from wan_compat.protocol.values import Mode
from wan_compat.supervisor.audit_log import AuditEvent, AuditLog
from wan_compat.supervisor.private_files import PrivateFolder, state_folder
from wan_compat.supervisor.repository_tree import identify

FILE_NAME = "models.json"
MAX_FILE_BYTES = 4 << 20
MAX_MODELS = 2000  # the oldest are forgotten first

# What this process has recorded already, so that a warm supervisor reads no file for each job.
_remembered: set[tuple[str, str]] = set()


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: int = Field(ge=1, le=1)
    models: dict[str, str]


def is_first_use(model: str, *, folder: Path | None = None) -> bool:
    """Whether this user has not run `model` before.

    Raises:
        StateUnsafe, StateCorrupt: The file cannot be believed.
        ModelNotFound, ...: There is no such model.
    """
    place = folder or state_folder()
    source = identify(model)[1]
    with PrivateFolder(place) as opened:
        return source not in _read(opened, place).models


def remember(model: str, mode: Mode, *, confirmed: bool, folder: Path | None = None) -> bool:
    """Record that `model` is being used; return whether it was for the first time.

    Args:
        confirmed: Whether a person was asked and said yes.

    Raises:
        StateUnsafe, StateCorrupt: It could not be recorded.
    """
    place = folder or state_folder()
    source = identify(model)[1]
    if (str(place), source) in _remembered:
        return False
    with PrivateFolder(place, create=True) as opened, opened.lock(FILE_NAME):
        known = dict(_read(opened, place).models)
        first = source not in known
        if first:
            AuditLog(place).append(
                AuditEvent.FIRST_USE, model=model, source=source, mode=mode.value, confirmed=confirmed
            )
            known[source] = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            while len(known) > MAX_MODELS:
                del known[next(iter(known))]
            document = {"schema_version": 1, "models": known}
            try:
                opened.replace(FILE_NAME, json.dumps(document, ensure_ascii=True).encode("ascii"))
            except OSError as error:
                raise StateUnsafe(
                    f"{place / FILE_NAME} cannot be written: {error.strerror}", hint="free some space"
                ) from error
    _remembered.add((str(place), source))
    return first


def _read(folder: PrivateFolder, place: Path) -> _Document:
    raw = folder.read(FILE_NAME, MAX_FILE_BYTES)
    if raw is None:
        return _Document(schema_version=1, models={})
    try:
        return _Document.model_validate_json(raw)
    except ValidationError as error:
        path = place / FILE_NAME
        raise StateCorrupt(
            f"{path}, the list of models that were used, is damaged", hint=f"put it aside: mv {path} {path}.broken"
        ) from error
