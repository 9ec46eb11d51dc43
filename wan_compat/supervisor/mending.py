"""A model whose files are broken in a way that other files of it can help: read again, mended in memory, decided anew.

    error of read_model or decide_model -> policies/mending -> the same checks, the same decision -> what was mended
                                                                                    '-> no: the error as it was

Nothing in the model's folder is written, and no worker sees what was broken.
"""

from __future__ import annotations

import dataclasses
import os
import re

from wan_compat.policies.detection.classes import WAN_PIPELINES
from wan_compat.policies.facts import HostFacts, ModelFacts
from wan_compat.policies.limits import memory_limit
from wan_compat.policies.mending import Mend, Mended, mend
from wan_compat.policies.models import ModelDecision, decide_model
from wan_compat.policies.repair import INDEX
from wan_compat.policies.tasks import Wish
from wan_compat.protocol.errors import ModelInvalid, ModelNotCompatible, RefusedByPolicy, WanCompatError, clean_text
from wan_compat.supervisor.inspection import read_facts, require_sound
from wan_compat.supervisor.installed import find_package

# Errors that may be about broken files. What policy refused is not among them, and is never tried in another way.
MENDABLE = (ModelInvalid, ModelNotCompatible)
_INNER = re.compile(r"[^/]+/model_index\.json")


def decide_mended(
    path: str, error: WanCompatError, *, loaded: bool = False, threads: int, memory_limit_bytes: int, wish: Wish | None
) -> tuple[ModelFacts, ModelDecision]:
    """Return facts and decision of a model that failed with `error`, with what had to be mended in `mends`.

    `loaded`: its files were sound by themselves, and a worker found that weights and configuration do not fit.

    Raises:
        WanCompatError: `error`, if mending does not help; what the mended model is refused for, if that is about the
            request or this machine.
    """
    facts, moved = _meant(read_facts(path))
    mended = None if _is_of_installed_diffusers(facts) else mend(facts, contradicted=loaded)
    if mended is None:
        if not moved:
            raise error
        mended = Mended(facts)
    mended = dataclasses.replace(mended, mends=(*moved, *mended.mends))
    try:
        require_sound(mended.facts, path)
        decision = decide_model(mended.facts, threads=threads, memory_limit_bytes=memory_limit_bytes, wish=wish)
    except (*MENDABLE, RefusedByPolicy):
        raise error from None
    reasons = (*decision.reasons, *(item.action for item in mended.mends))
    return mended.facts, dataclasses.replace(decision, mends=mended.mends, reasons=reasons)


def _meant(facts: ModelFacts) -> tuple[ModelFacts, tuple[Mend, ...]]:
    """Return the facts of the one model that a path can mean which is none itself: that in its only folder with an
    index, or that of an index file. Never one beside or above what was named."""
    missing = f"model_index_missing: {facts.root!r} is no model"
    if facts.is_file and os.path.basename(facts.root) == INDEX:
        found = [os.path.dirname(facts.root)]
    elif not facts.is_file and INDEX not in facts.files:
        found = [os.path.join(facts.root, path.partition("/")[0]) for path in facts.files if _INNER.fullmatch(path)]
    else:
        found = []
    if len(found) != 1:
        return facts, ()
    return read_facts(found[0]), (Mend(clean_text(missing, 500), clean_text(f"use the model in {found[0]!r}", 500)),)


def what_generate_would_mend(facts: ModelFacts, host: HostFacts) -> tuple[Mend, ...]:
    """Return what `generate` would mend and then go on with; () where it would not get by."""
    mended = None if _is_of_installed_diffusers(facts) else mend(facts)
    if mended is None:
        return ()
    try:
        require_sound(mended.facts, facts.root)
        decide_model(mended.facts, threads=1, memory_limit_bytes=memory_limit(None, host))
    except WanCompatError:
        return ()
    return mended.mends


def _is_of_installed_diffusers(facts: ModelFacts) -> bool:
    """Whether the index names a pipeline that diffusers has and this package does not know: no other will do."""
    named = facts.index.get("_class_name")
    if not isinstance(named, str) or named in WAN_PIPELINES:
        return False
    diffusers = find_package("diffusers")
    return diffusers is not None and diffusers.has_class(named)
