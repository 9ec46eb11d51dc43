"""Whether trust store and audit log can be believed: for `doctor` and `trust list`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from wan_compat.policies.trust import TrustGrant
from wan_compat.protocol.errors import WanCompatError
from wan_compat.supervisor.audit_log import AuditEvent, AuditLog, AuditVerdict
from wan_compat.supervisor.trust_store import TrustStore


@dataclasses.dataclass(frozen=True)
class StateHealth:
    """What was found. `unrecorded` are tree hashes in the store of which the log knows no approval: both files of the
    log were removed, or somebody wrote into the store."""

    chain: AuditVerdict
    grants: tuple[TrustGrant, ...]
    unrecorded: tuple[str, ...]
    store_problem: str = ""
    store_remedy: str = ""

    @property
    def sound(self) -> bool:
        return self.chain.intact and not self.unrecorded and not self.store_problem

    def to_json(self) -> dict[str, Any]:
        """Return the `audit` part of the `doctor` document."""
        return {
            "chain": self.chain.to_json(),
            "store": {"grants": len(self.grants), "problem": self.store_problem, "remedy": self.store_remedy},
            "unrecorded": list(self.unrecorded),
        }

    def describe(self) -> list[str]:
        """Return one line that says how it is, and for each problem one more with its remedy."""
        chain = self.chain
        lines = []
        if chain.intact:
            unfinished = ", one that a killed program left unfinished" if chain.unfinished_bytes else ""
            lines.append(f"whole, {chain.entries} entries{unfinished}; {len(self.grants)} approvals")
        else:
            place = f"line {chain.line}: " if chain.line is not None else ""
            lines += [f"DAMAGED: {place}{chain.problem}", f"  -> {chain.remedy}"]
        if self.store_problem:
            lines += [f"trust store: {self.store_problem}", f"  -> {self.store_remedy}"]
        for tree_hash in self.unrecorded:
            lines += [
                f"approval {tree_hash[:16]} was never recorded in the log",
                f"  -> withdraw it: wan-compat trust remove {tree_hash[:16]}",
            ]
        return lines


def examine_state(folder: Path | None = None) -> StateHealth:
    """Verify the chain and read the store. Raises nothing for what it finds."""
    log = AuditLog(folder)
    verdict = log.verify()
    try:
        grants = TrustStore(folder).grants()
    except WanCompatError as error:
        return StateHealth(verdict, (), (), error.message, error.hint or "")
    recorded = {entry.fields.get("tree_hash") for entry in log.entries() if entry.event == AuditEvent.TRUST_GRANTED}
    missing = tuple(grant.tree_hash for grant in grants if grant.tree_hash not in recorded)
    # With a broken chain, what is missing is no news.
    return StateHealth(verdict, grants, missing if verdict.intact else ())
