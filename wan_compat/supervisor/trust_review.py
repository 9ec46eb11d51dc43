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
from collections.abc import Collection
from typing import Any

from wan_compat.policies.facts import FileFact
from wan_compat.policies.findings import Finding, Severity
from wan_compat.policies.scan.formats import Format
from wan_compat.policies.scan.python_source import MAX_SOURCE_BYTES, parse
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
from wan_compat.supervisor.scanner import MAX_PATH_CHARS, scan_model
from wan_compat.supervisor.trust_store import TrustStore

# What an interpreter, a loader or an unpickler runs, by content or by name; everything else is data to it.
_CODE_FORMATS = frozenset(
    item.value
    for item in (
        Format.PYTHON,
        Format.PYC,
        Format.NOTEBOOK,
        Format.SCRIPT,
        Format.SOURCE,
        Format.ELF,
        Format.PE,
        Format.MACH_O,
        Format.WASM,
        Format.JAVA,
        Format.PICKLE,
        Format.TORCH_LEGACY,
        Format.TORCH_ZIP,
        Format.TORCHSCRIPT,
        Format.TORCH_EXPORT,
    )
)
_PYTHON_SUFFIXES = (".py", ".pyw", ".pyi")
_CODE_SUFFIXES = (*_PYTHON_SUFFIXES, ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".ipynb")
_MAX_LINE_CHARS = 300


@dataclasses.dataclass(frozen=True)
class TrustReview:
    """One repository, ready to be approved or not. `code` are the paths of what runs; `decision` is what trust mode
    would say now."""

    model: str
    tree: RepositoryTree
    code: tuple[str, ...]
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
            "code": list(self.code),
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
    report = scan_model(model)
    # The scanner's paths are cleaned for reports; the tree's are the real ones.
    scanned = {file.path: file for file in report.files}
    imports: set[str] = set()
    code: list[str] = []
    for file, fact in zip(tree.files, tree.facts, strict=True):
        seen = scanned.get(clean_text(file.path, MAX_PATH_CHARS))
        if seen is None or seen.bytes != file.size or (seen.sha256 and file.sha256 and seen.sha256 != file.sha256):
            raise ModelInvalid(f"{file.path!r} changed while it was read", hint="try again when nothing writes to it")
        if seen.format in _CODE_FORMATS or file.path.lower().endswith(_CODE_SUFFIXES):
            code.append(file.path)
        if file.path.lower().endswith(_PYTHON_SUFFIXES) or seen.format == Format.PYTHON.value:
            syntax, _ = parse(_read_as_hashed(file, fact))
            imports |= _imports(syntax) if syntax is not None else set()
    inside = {clean_text(file.path, MAX_PATH_CHARS) for file in tree.files}
    return TrustReview(
        model=model,
        tree=tree,
        code=tuple(code),
        imports=_bounded(sorted(imports)),
        risks=_bounded([_risk(item) for item in report.findings if _is_risk(item, inside)]),
        decision=decide_trust(Mode.TRUST, tree, TrustStore().grants()),
    )


def _is_risk(item: Finding, inside: Collection[str]) -> bool:
    """Whether a finding is about something in the tree, and more than that there is code, which is why one is asked."""
    return item.severity is not Severity.INFO and item.rule != "code-present" and (not item.path or item.path in inside)


def _risk(item: Finding) -> str:
    place = "" if not item.path else f"{item.path}: " if item.line is None else f"{item.path}:{item.line}: "
    return f"{item.severity.value}: {place}{item.message} [{item.rule}]"


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
