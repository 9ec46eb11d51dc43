"""The gate of trust mode: code of a repository may be shown to a worker only after `require_trust` has returned.

It reads and hashes the repository as it lies there now, every time, and compares it with what this user approved. The
answer carries the tree with device and inode of each file: a worker's view is built from these very files.
"""

from __future__ import annotations

from pathlib import Path

from wan_compat.policies.trust import RepositoryTree, TrustDecision, TrustOutcome, decide_trust
from wan_compat.protocol.errors import TrustRefused
from wan_compat.protocol.values import Mode
from wan_compat.supervisor import audit_log
from wan_compat.supervisor.audit_log import AuditEvent
from wan_compat.supervisor.repository_tree import read_tree
from wan_compat.supervisor.trust_store import TrustStore


def require_trust(model: str, mode: Mode, *, folder: Path | None = None) -> TrustDecision:
    """Return the decision that lets this model's code run; in safe mode, the one that there is nothing to let run.

    Args:
        model: As the user named it.
        folder: Where store and log lie; None is this user's state folder.

    Raises:
        TrustRefused: No approval covers what lies there now. Recorded in the audit log.
        StateUnsafe, StateCorrupt: The store cannot be believed; that is a refusal too.
        ModelNotFound, ModelInvalid, ...: As `read_tree`.
    """
    if mode is Mode.SAFE:
        return decide_trust(mode, RepositoryTree(source=model, revision=None, root=model, files=()), ())
    decision = decide_trust(mode, read_tree(model), TrustStore(folder).grants())
    if decision.outcome is TrustOutcome.REFUSED:
        difference = decision.difference
        audit_log.note(
            AuditEvent.TRUST_REFUSED,
            folder=folder,
            model=model,
            revision=decision.tree.revision,
            tree_hash=decision.tree.hash,
            added=list(difference.added),
            removed=list(difference.removed),
            changed=list(difference.changed),
        )
        raise TrustRefused(
            f"trust mode runs only code that was approved, and for {model!r} {decision.reason}",
            fixes=[
                "run it in safe mode, which needs no code from the repository",
                "`wan-compat trust add MODEL` shows that code and what it does, to be reviewed by you",
            ],
            details={
                "tree_hash": decision.tree.hash,
                "added": list(difference.added[:100]),
                "removed": list(difference.removed[:100]),
                "changed": list(difference.changed[:100]),
            },
        )
    return decision
