"""The values of mending: one thing that was done to the facts of a model, and the facts afterwards."""

from __future__ import annotations

import dataclasses

from wan_compat.policies.facts import ModelFacts


@dataclasses.dataclass(frozen=True)
class Mend:
    """One thing that was helped.

    error: What was wrong, as an error's line: `model_corrupt: model_index.json ...`.
    action: What was done instead, for a person; it names what may come out differently.
    """

    error: str
    action: str


@dataclasses.dataclass(frozen=True)
class Mended:
    """Facts as if the model had been sound, and what had to be done for it. Nothing in its folder was changed."""

    facts: ModelFacts
    mends: tuple[Mend, ...] = ()
