"""The trust store: what this user approved, kept in one JSON file of the state folder.

    trust.json   {"schema_version": 1, "grants": [...]}   read whole or refused whole, replaced whole under its lock

A store that cannot be read is an error, never an empty one: it would make an approval look as if it had not been asked
for, or one that was withdrawn look as if it still held. Each change is written to the audit log as well: an approval
before it takes effect, a removal after it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wan_compat._version import __version__
from wan_compat.policies.trust import RepositoryTree, TrustGrant
from wan_compat.protocol.errors import InvalidRequest, StateCorrupt, StateUnsafe, WanCompatError
from wan_compat.supervisor.audit_log import AuditEvent, AuditLog
from wan_compat.supervisor.private_files import PrivateFolder, state_folder
from wan_compat.supervisor.repository_tree import identify

STORE_NAME = "trust.json"
SCHEMA_VERSION = 1
MAX_STORE_BYTES = 32 << 20
MAX_GRANTS = 1000
MIN_HASH_DIGITS = 8


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: int = Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    grants: tuple[TrustGrant, ...] = Field(max_length=MAX_GRANTS)


class TrustStore:
    """The store in one folder; None is this user's state folder. Safe among processes and threads.

    All methods raise StateUnsafe for files that others can write, and StateCorrupt for what is no store.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or state_folder()

    @property
    def path(self) -> Path:
        return self._folder / STORE_NAME

    def grants(self) -> tuple[TrustGrant, ...]:
        """Return everything that was approved. Makes no file."""
        with PrivateFolder(self._folder) as folder:
            return self._read(folder)

    def add(self, grant: TrustGrant) -> None:
        """Record an approval, first in the audit log. One for the same repository and revision is replaced."""

        def change(grants: tuple[TrustGrant, ...]) -> Sequence[TrustGrant]:
            kept = [known for known in grants if (known.source, known.revision) != (grant.source, grant.revision)]
            if len(kept) >= MAX_GRANTS:
                raise InvalidRequest(
                    f"the trust store has {MAX_GRANTS} approvals",
                    hint="remove those that are not needed any more: wan-compat trust remove MODEL",
                )
            AuditLog(self._folder).append(
                AuditEvent.TRUST_GRANTED,
                model=grant.source,
                revision=grant.revision,
                tree_hash=grant.tree_hash,
                files=len(grant.files),
                risks=len(grant.risks),
                approved_by=grant.approved_by,
            )
            return [*kept, grant]

        self._change(change)

    def remove(self, model: str) -> tuple[TrustGrant, ...]:
        """Withdraw the approvals of a source or of a tree hash (its first eight digits will do); return them."""
        removed: list[TrustGrant] = []

        def change(grants: tuple[TrustGrant, ...]) -> Sequence[TrustGrant]:
            removed.extend(matching(grants, model))
            return [grant for grant in grants if grant not in removed]

        self._change(change)
        for grant in removed:
            AuditLog(self._folder).append(
                AuditEvent.TRUST_REMOVED, model=grant.source, revision=grant.revision, tree_hash=grant.tree_hash
            )
        return tuple(removed)

    def _change(self, change: Callable[[tuple[TrustGrant, ...]], Sequence[TrustGrant]]) -> None:
        with PrivateFolder(self._folder, create=True) as folder, folder.lock(STORE_NAME):
            before = self._read(folder)
            after = tuple(change(before))
            if after == before:
                return
            document = _Document(schema_version=SCHEMA_VERSION, grants=after)
            content = json.dumps(document.model_dump(mode="json"), indent=1, ensure_ascii=True).encode("ascii")
            if len(content) > MAX_STORE_BYTES:
                raise InvalidRequest(
                    f"the trust store would grow beyond {MAX_STORE_BYTES >> 20} MiB",
                    hint="remove approvals that are not needed any more: wan-compat trust remove MODEL",
                )
            try:
                folder.replace(STORE_NAME, content)
            except OSError as error:
                raise StateUnsafe(
                    f"{self.path} cannot be written: {error.strerror}", hint="free some space; nothing was changed"
                ) from error

    def _read(self, folder: PrivateFolder) -> tuple[TrustGrant, ...]:
        raw = folder.read(STORE_NAME, MAX_STORE_BYTES)
        if raw is None:
            return ()
        try:
            return _Document.model_validate_json(raw).grants
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise StateCorrupt(
                f"the trust store {self.path} is damaged: {where}: {first['msg']}",
                hint=f"put it aside and approve again what you still trust: mv {self.path} {self.path}.broken",
            ) from error


def matching(grants: Sequence[TrustGrant], model: str) -> list[TrustGrant]:
    """Return the grants that `model` names: a source, the path of a folder, or the start of a tree hash."""
    names = {model, os.path.realpath(model)}
    with contextlib.suppress(WanCompatError):  # it may be gone, which is a reason to withdraw its approval
        names.add(identify(model)[1])
    found = [grant for grant in grants if grant.source in names]
    if not found and len(model) >= MIN_HASH_DIGITS:
        found = [grant for grant in grants if grant.tree_hash.startswith(model.lower())]
    return found


def make_grant(tree: RepositoryTree, *, imports: Sequence[str], risks: Sequence[str]) -> TrustGrant:
    """Return the approval of a tree by this user, now."""
    return TrustGrant(
        source=tree.source,
        revision=tree.revision,
        tree_hash=tree.hash,
        files=tree.files,
        imports=tuple(imports),
        risks=tuple(risks),
        approved_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        approved_by=os.geteuid(),
        tool_version=__version__,
    )
