"""What a person is shown before an approval: the files with sizes and hashes, what the code imports, what in it is
risky, and what differs from the last approval.

The bytes that are reported on are the ones that were hashed: each file is hashed again while it is read for the report,
and one that differs is an error. The report advises; what confines the code is the sandbox.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import os
from typing import Any

from wan_compat.policies.facts import FileFact
from wan_compat.policies.findings import Severity
from wan_compat.policies.scan.python_source import MAX_SOURCE_BYTES, parse, read_python
from wan_compat.policies.scan.rules import rule_finding
from wan_compat.policies.trust import (
    MAX_SUMMARY_LINES,
    RepositoryTree,
    TreeDifference,
    TrustDecision,
    TrustedFile,
    TrustGrant,
    TrustOutcome,
    compare_trees,
    decide_trust,
)
from wan_compat.protocol.errors import ModelInvalid, clean_text
from wan_compat.protocol.values import Mode
from wan_compat.supervisor.repository_tree import read_tree
from wan_compat.supervisor.trust_store import TrustStore

# What an interpreter or loader runs; everything else of a repository is data to it.
CODE_SUFFIXES = (".py", ".pyw", ".pyc", ".pyd", ".pyi", ".so", ".dll", ".dylib", ".sh", ".ipynb", ".cu", ".cpp", ".js")
_MAX_LINE_CHARS = 300
_WORST_FIRST = (Severity.ERROR, Severity.WARNING, Severity.INFO)


@dataclasses.dataclass(frozen=True)
class TrustReview:
    """One repository, ready to be approved or not. `decision` is what trust mode would say now."""

    model: str
    tree: RepositoryTree
    imports: tuple[str, ...]
    risks: tuple[str, ...]
    decision: TrustDecision

    @property
    def already_approved(self) -> bool:
        return self.decision.outcome is TrustOutcome.GRANTED

    @property
    def earlier(self) -> TrustGrant | None:
        """The approval to compare with: of the same repository, of this or another revision."""
        return None if self.already_approved else self.decision.grant

    @property
    def difference(self) -> TreeDifference:
        return compare_trees(self.earlier.files, self.tree.files) if self.earlier is not None else TreeDifference()

    def to_json(self) -> dict[str, Any]:
        """Return the document of `trust add`, without what became of it."""
        return {
            "schema_version": 1,
            "model": self.model,
            "source": self.tree.source,
            "revision": self.tree.revision,
            "tree_hash": self.tree.hash,
            "files": [file.model_dump() for file in self.tree.files],
            "excluded": [{"path": path, "reason": reason} for path, reason in self.tree.excluded],
            "imports": list(self.imports),
            "risks": list(self.risks),
            "already_approved": self.already_approved,
            "compared_with": self.earlier.tree_hash if self.earlier is not None else None,
            "difference": dataclasses.asdict(self.difference),
        }


def review(model: str) -> TrustReview:
    """Read a repository for an approval.

    Raises:
        ModelNotFound, ModelInvalid, ...: As `read_tree`, and for a file that changes between two looks.
        StateUnsafe, StateCorrupt: The store of earlier approvals cannot be believed.
    """
    tree = read_tree(model)
    imports: set[str] = set()
    risks: list[tuple[int, str]] = []
    for file, fact in zip(tree.files, tree.facts, strict=True):
        if not is_code(file.path):
            continue
        if not file.path.lower().endswith((".py", ".pyw", ".pyi")):
            risks.append((0, f"error: {file.path}: code that cannot be read as Python"))
            continue
        raw = _read_as_hashed(file, fact)
        syntax, _ = parse(raw)
        imports |= _imports(syntax) if syntax is not None else set()
        for observation in read_python(raw, file.path.rpartition("/")[2]):
            found = rule_finding(observation, path=file.path)
            place = file.path if observation.line is None else f"{file.path}:{observation.line}"
            text = f"{found.severity.value}: {place}: {found.message} [{observation.rule}]"
            risks.append((_WORST_FIRST.index(found.severity), text))
    risks.sort(key=lambda risk: risk[0])  # stable: within one severity by file and line
    return TrustReview(
        model=model,
        tree=tree,
        imports=_bounded(sorted(imports)),
        risks=_bounded([text for _, text in risks]),
        decision=decide_trust(Mode.TRUST, tree, TrustStore().grants()),
    )


def is_code(path: str) -> bool:
    """Whether a file is code by its name; what only looks like data is for `scan` to find."""
    return path.lower().endswith(CODE_SUFFIXES)


def _read_as_hashed(file: TrustedFile, fact: FileFact) -> bytes:
    """Return the content that `file.sha256` is of, cut after what is parsed at most."""
    raw, hasher = bytearray(), hashlib.sha256()
    try:
        descriptor = os.open(fact.real_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            left = fact.size + 1
            while chunk := stream.read(min(1 << 20, left)):
                left -= len(chunk)
                hasher.update(chunk)
                raw += chunk[: max(0, MAX_SOURCE_BYTES + 1 - len(raw))]
    except OSError as error:
        raise ModelInvalid(
            f"{file.path!r} is gone: {error.strerror}", hint="try again when nothing writes to it"
        ) from error
    if hasher.hexdigest() != file.sha256:
        raise ModelInvalid(f"{file.path!r} changed while it was read", hint="try again when nothing writes to it")
    return bytes(raw)


def _imports(syntax: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level if node.level else (node.module or "").partition(".")[0])
    return names


def _bounded(lines: list[str]) -> tuple[str, ...]:
    cleaned = [clean_text(line, _MAX_LINE_CHARS).replace("\n", "\\n")[:_MAX_LINE_CHARS] for line in lines]
    if len(cleaned) > MAX_SUMMARY_LINES:
        cleaned[MAX_SUMMARY_LINES - 1 :] = [f"and {len(cleaned) - MAX_SUMMARY_LINES + 1} more"]
    return tuple(cleaned)
