"""From a model's name and a mode to what will be loaded: facts, the approval where there must be one, the decision.

The one place where the two modes part. Whatever comes after it, the worker, its sandbox and its protocol, is the same.
"""

from __future__ import annotations

from typing import TypedDict

from wan_compat.policies.models import ModelDecision, decide_model
from wan_compat.policies.tasks import Wish
from wan_compat.policies.trusted_models import decide_trusted_model
from wan_compat.protocol.results import CodeReport
from wan_compat.protocol.values import Mode
from wan_compat.supervisor.inspection import read_model
from wan_compat.supervisor.trust_gate import require_trust


class Limits(TypedDict):
    threads: int
    memory_limit_bytes: int
    wish: Wish | None


def choose_model(
    model: str,
    mode: Mode,
    *,
    threads: int,
    memory_limit_bytes: int,
    restricted: bool = False,
    wish: Wish | None = None,
) -> ModelDecision:
    """Return what is loaded for a job, to do what is wished.

    In safe mode, `restricted` lets code through that keeps to the audited subset.
    In trust mode the repository is hashed first: what was read before could be something else by then.

    Raises:
        TrustRefused: Trust mode, and no approval covers what lies there now.
        RemoteCodeRefused, PickleRefused: It asks for what this mode does not run.
        InvalidRequest: It does not do what is wished, or not with these media.
        ModelNotFound, ModelCorrupt, ...: As `read_model`, `read_tree` and the decisions.
    """
    limits: Limits = {"threads": threads, "memory_limit_bytes": memory_limit_bytes, "wish": wish}
    if mode is Mode.SAFE and restricted:
        from wan_compat.supervisor.restricted_code import choose_restricted_model

        return choose_restricted_model(read_model(model), **limits)
    if mode is Mode.SAFE:
        return decide_model(read_model(model), **limits)
    trust = require_trust(model, mode)
    return decide_trusted_model(read_model(model), trust, **limits)


def code_report(mode: Mode, model: ModelDecision) -> CodeReport:
    """Return whose code a job runs, for its result."""
    pipeline = model.pipeline
    if pipeline.restricted is not None:
        return CodeReport(mode.value, restricted=True, files=dict(sorted(pipeline.restricted.files.items())))
    if model.trust is None:
        return CodeReport(mode.value)
    named = [pipeline.code, *(component.code for component in pipeline.components)]
    tree, grant = model.trust.tree, model.trust.grant
    return CodeReport(
        mode=mode.value,
        source=tree.source,
        revision=tree.revision,
        tree_hash=tree.hash,
        approved_at=grant.approved_at if grant is not None else None,
        modules=sorted({code.module for code in named if code is not None}),
    )
