"""What a model is, from facts alone: `detect` answers, `traits_of` shows the parts it looked at.

survey      one pass over tensor names                 configs     what a config.json says
headers     what tensors are (lora, foreign_headers)   traits      both voices, part by part
layout      how the files lie                          rules       the decision table
hints       what chooses among candidates              pipelines   which class would run it
decide      the order of it all                        contract    the same in the contract's classes
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan_compat.policies.detection.decide import detect as detect
    from wan_compat.policies.detection.traits import Traits as Traits
    from wan_compat.policies.detection.traits import traits_of as traits_of

_HOMES = {"detect": "decide", "Traits": "traits", "traits_of": "traits"}


def __getattr__(name: str) -> Any:
    # Late: a supervisor needs the tables of classes for every job, and the decision for a refusal or a check only.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
