"""From a model's name and a mode to what will be loaded: facts, the approval where there must be one, the decision.

The one place where the two modes part. Whatever comes after it, the worker, its sandbox and its protocol, is the same.
"""

from __future__ import annotations

import dataclasses
from typing import TypedDict

from wan_compat.policies.models import ModelDecision, decide_model
from wan_compat.policies.tasks import Wish
from wan_compat.policies.trusted_models import decide_trusted_model
from wan_compat.protocol.errors import InvalidRequest, ModelCorrupt, ModelInvalid, ModelNotCompatible
from wan_compat.protocol.results import CodeReport
from wan_compat.protocol.values import Mode
from wan_compat.supervisor.inspection import read_model
from wan_compat.supervisor.model_parts import Parts, lay_over, read_parts
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
    parts: Parts | None = None,
    recover: bool = True,
    failed: ModelCorrupt | None = None,
) -> ModelDecision:
    """Return what is loaded for a job, to do what is wished.

    With `recover`, files that are broken are helped where others of the model leave no doubt how (mending.py), in safe
    mode and without parts from elsewhere. With `failed`, the error of a worker that could not load it, in another way
    than before.
    `parts` are single files, LoRAs and quantised components that a user named beside the model.

    In safe mode, `restricted` lets code through that keeps to the audited subset.
    In trust mode the repository is hashed first: what was read before could be something else by then.

    Raises:
        TrustRefused: Trust mode, and no approval covers what lies there now.
        RemoteCodeRefused, PickleRefused: It asks for what this mode does not run.
        InvalidRequest: It does not do what is wished, or not with these media.
        ModelNotFound, ModelCorrupt, ...: As `read_model`, `read_tree` and the decisions.
    """
    limits: Limits = {"threads": threads, "memory_limit_bytes": memory_limit_bytes, "wish": wish}
    parts = parts or Parts()
    if parts.is_composed and (restricted or mode is not Mode.SAFE):
        raise InvalidRequest(
            "single files are put together in safe mode, without code of a repository",
            hint="leave --restricted and --mode trust out, or give the repository alone",
        )
    if failed is not None and (mode is not Mode.SAFE or restricted):
        raise failed
    if mode is Mode.SAFE and not restricted:
        try:
            if failed is not None:
                raise failed
            facts, reasons = read_parts(model, parts)
            decision = decide_model(facts, **limits)
            decision = dataclasses.replace(decision, reasons=(*decision.reasons, *reasons))
        except (ModelInvalid, ModelNotCompatible) as error:
            if not recover or parts.is_composed:
                raise
            from wan_compat.supervisor.mending import decide_mended  # which most jobs do not need

            facts, decision = decide_mended(model, error, loaded=failed is not None, **limits)
    elif mode is Mode.SAFE:
        from wan_compat.supervisor.restricted_code import choose_restricted_model

        facts = read_model(model)
        decision = choose_restricted_model(facts, **limits)
    else:
        trust = require_trust(model, mode)
        facts = read_model(model)
        decision = decide_trusted_model(facts, trust, **limits)
    return lay_over(decision, facts, model, parts)


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
