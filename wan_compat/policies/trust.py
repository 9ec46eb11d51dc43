"""Trust: which code of a repository a person approved, and whether that approval covers what lies there now.

An approval (a grant) names one repository at one revision and every file of it. Nothing is inherited: another folder,
another repository, another revision or one changed byte is not covered, and the answer says what is different.

What a tree hash binds:

    everything but large weights   path, size, SHA-256 of the content: code, and what changes what code does
                                   (configurations, tokenizers, templates, compiled files, pickles)
    .safetensors, .gguf larger     path and size. They are data that no interpreter runs, and hashing tens of gigabytes
    than WEIGHT_HASH_LIMIT_BYTES   before each load would take minutes
    links, special and hidden      nothing: they are not part of the tree and are never shown to a worker. Links are
    files                          followed only from a Hugging Face snapshot into the same repository's blobs
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wan_compat.policies.facts import FileFact
from wan_compat.protocol.values import Mode

MAX_FILES = 10_000
MAX_SUMMARY_LINES = 500
WEIGHT_SUFFIXES = (".safetensors", ".gguf")
WEIGHT_HASH_LIMIT_BYTES = 64 << 20

_TREE_FORMAT = "wan-compat tree 1"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Line = Annotated[str, Field(max_length=300)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TrustedFile(_Record):
    """One file of a tree. `sha256` is None for a weight file that is bound by path and size alone."""

    path: str = Field(min_length=1, max_length=1024)
    size: int = Field(ge=0, le=1 << 50)
    sha256: Sha256 | None


class TrustGrant(_Record):
    """That a person approved one tree of one repository at one revision.

    Args:
        source: Repository id (`org/name`) for a Hugging Face snapshot, else the real path of the folder.
        revision: Commit of the snapshot; None where there is none.
        tree_hash: Over `files`; a grant whose files and hash disagree does not validate.
        files: Sorted by path, each path once.
        imports: Top-level modules that the code imports, as shown at the approval.
        risks: The risky constructs that were shown at the approval.
        approved_at: UTC, ISO 8601.
        approved_by: User id.
        tool_version: The wan-compat that asked.
    """

    source: str = Field(min_length=1, max_length=4096)
    revision: str | None = Field(default=None, max_length=200)
    tree_hash: Sha256
    files: tuple[TrustedFile, ...] = Field(min_length=1, max_length=MAX_FILES)
    imports: tuple[_Line, ...] = Field(default=(), max_length=MAX_SUMMARY_LINES)
    risks: tuple[_Line, ...] = Field(default=(), max_length=MAX_SUMMARY_LINES)
    approved_at: str = Field(max_length=40)
    approved_by: int = Field(ge=0)
    tool_version: str = Field(max_length=40)

    @model_validator(mode="after")
    def _hash_is_that_of_the_files(self) -> TrustGrant:
        paths = [file.path for file in self.files]
        if paths != sorted(set(paths)):
            raise ValueError("files must be sorted by path, each path once")
        if tree_hash(self.files) != self.tree_hash:
            raise ValueError("tree_hash is not that of the files")
        return self


@dataclasses.dataclass(frozen=True)
class RepositoryTree:
    """A repository as it was read.

    `facts` say where each file lay while it was hashed, in the order of `files`, for the admission of these very files
    to a worker's view. `excluded` are paths that are not part of the tree, each with the reason.
    """

    source: str
    revision: str | None
    root: str
    files: tuple[TrustedFile, ...]
    facts: tuple[FileFact, ...] = ()
    excluded: tuple[tuple[str, str], ...] = ()

    @property
    def hash(self) -> str:
        return tree_hash(self.files)


@dataclasses.dataclass(frozen=True)
class TreeDifference:
    """What an approved tree lacks, has no more, and has otherwise: paths, sorted."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def describe(self, limit: int = 10) -> str:
        """Return one line for a person, naming at most `limit` files of each kind."""
        parts = []
        for word, paths in (("added", self.added), ("removed", self.removed), ("changed", self.changed)):
            if paths:
                more = f" and {len(paths) - limit} more" if len(paths) > limit else ""
                parts.append(f"{word}: {', '.join(paths[:limit])}{more}")
        return "; ".join(parts) or "no file differs"


class TrustOutcome(enum.StrEnum):
    """NOT_NEEDED: safe mode, where no code of the repository exists for the worker."""

    NOT_NEEDED = "not_needed"
    GRANTED = "granted"
    REFUSED = "refused"


@dataclasses.dataclass(frozen=True)
class TrustDecision:
    """Whether code of this tree may run, and why. `grant` is what covers it, or the nearest one that does not."""

    outcome: TrustOutcome
    reason: str
    tree: RepositoryTree
    grant: TrustGrant | None = None
    difference: TreeDifference = TreeDifference()

    @property
    def runs_code(self) -> bool:
        return self.outcome is TrustOutcome.GRANTED


def tree_hash(files: Iterable[TrustedFile]) -> str:
    """Return the SHA-256 of a tree: of one JSON document with format, path, size and content hash of each file."""
    entries = sorted([file.path, file.size, file.sha256] for file in files)
    document = json.dumps([_TREE_FORMAT, entries], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(document.encode("ascii")).hexdigest()


def must_hash(path: str, size: int) -> bool:
    """Whether a file is bound by its content and not by name and size alone."""
    return size <= WEIGHT_HASH_LIMIT_BYTES or not path.lower().endswith(WEIGHT_SUFFIXES)


def decide_trust(mode: Mode, tree: RepositoryTree, grants: Sequence[TrustGrant]) -> TrustDecision:
    """Decide whether a grant covers this very tree.

    Args:
        mode: Safe mode needs no grant, and gets no code whatever was granted.
        grants: Everything that was approved, for whatever repository.
    """
    if mode is Mode.SAFE:
        return TrustDecision(TrustOutcome.NOT_NEEDED, "safe mode runs no code of the repository", tree)
    found = tree.hash
    for grant in grants:
        if (grant.source, grant.revision, grant.tree_hash) == (tree.source, tree.revision, found):
            return TrustDecision(
                TrustOutcome.GRANTED, f"approved on {grant.approved_at} as {found[:16]}", tree, grant=grant
            )
    earlier = nearest_grant(tree, grants)
    if earlier is None:
        return TrustDecision(TrustOutcome.REFUSED, "no code of it was approved", tree)
    difference = compare_trees(earlier.files, tree.files)
    if earlier.revision != tree.revision:
        reason = (
            f"revision {earlier.revision} was approved, this is {tree.revision or 'no known revision'} "
            f"({difference.describe()})"
        )
    else:
        reason = f"it is not what was approved on {earlier.approved_at} ({difference.describe()})"
    return TrustDecision(TrustOutcome.REFUSED, reason, tree, grant=earlier, difference=difference)


def nearest_grant(tree: RepositoryTree, grants: Sequence[TrustGrant]) -> TrustGrant | None:
    """Return the grant of the same repository to compare with: of the same revision first, then the latest one."""
    of_source = [grant for grant in grants if grant.source == tree.source]
    return max(of_source, key=lambda grant: (grant.revision == tree.revision, grant.approved_at), default=None)


def compare_trees(before: Iterable[TrustedFile], after: Iterable[TrustedFile]) -> TreeDifference:
    """Return what must be done to `before` to get `after`."""
    old, new = {file.path: file for file in before}, {file.path: file for file in after}
    return TreeDifference(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(path for path in old.keys() & new.keys() if old[path] != new[path])),
    )
