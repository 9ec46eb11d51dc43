"""From the facts of a broken model to facts of a sound one, where its other files leave no doubt what was meant.

    weights          a part's weights are broken or lack, and sound ones of the same part lie beside them
    model_index.json damaged or missing, and the parts say what it must have said
    pipeline class   one that nobody has, around parts that one class of diffusers runs
    config.json      of a part, or the list of its shards, is damaged or missing, and its tensors tell what it is

Nothing is decided here about what may run: the facts that come out go through every decision that those of a sound
model go through, from code and pickles to memory. Only classes of our own lists can get into them. Where the repository
brings Python files, its author meant something that its parts alone do not say, and nothing is rebuilt.
"""

from __future__ import annotations

import functools

from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.mending.index import name_pipeline, rebuild_index
from wan_compat.policies.mending.parts import rebuild_parts
from wan_compat.policies.mending.values import Mend as Mend
from wan_compat.policies.mending.values import Mended as Mended
from wan_compat.policies.mending.weights import take_sound_weights


def mend(facts: ModelFacts, *, contradicted: bool = False) -> Mended | None:
    """Return facts in which everything is helped that can be; None where there is nothing.

    `contradicted`: loading failed, and where tensors and configuration of a part disagree, the tensors are believed.
    """
    if facts.is_file or any(path.startswith("modular_") for path in facts.files if "/" not in path):
        return None
    mends: list[Mend] = []
    rebuild = functools.partial(rebuild_parts, contradicted=contradicted)
    for step in (take_sound_weights, rebuild_index, name_pipeline, rebuild):
        done = step(facts)
        if done is not None:
            facts = done.facts
            mends += done.mends
    return Mended(facts, tuple(mends)) if mends else None
