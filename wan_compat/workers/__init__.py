"""How a Wan pipeline is loaded and run. The only home of torch and diffusers; never imported by the supervisor.

The classes that programs with torch know by name load lazily from here (PEP 562): every worker runs this file first.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "OptimizationManager": "wan_compat.workers.optimization_manager",
    "OptimizedPipeline": "wan_compat.workers.pipeline_loader",
    "WanPipelineLoader": "wan_compat.workers.pipeline_loader",
    "WanPipelineWrapper": "wan_compat.workers.pipeline_loader",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'wan_compat.workers' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
