"""What crosses a process boundary: messages, their codec and states, the frame ring's layout, errors, plain values.

The results that embedding programs know by name load lazily from here (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "GenerationMetadata": "wan_compat.protocol.results",
    "MemoryEstimate": "wan_compat.protocol.memory",
    "ProcessedFrames": "wan_compat.protocol.results",
    "VideoGenerationResult": "wan_compat.protocol.results",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'wan_compat.protocol' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
