"""wan-compat: run Wan video models you do not fully trust, contained, in worker processes.

Public names load lazily (PEP 562): every worker runs this file too, and must not pay for the supervisor.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wan_compat._version import __version__

if TYPE_CHECKING:
    from wan_compat.protocol.results import GenerationMetadata, ProcessedFrames, VideoGenerationResult
    from wan_compat.protocol.values import GenerationRequest
    from wan_compat.supervisor.async_client import AsyncJob, AsyncSupervisor
    from wan_compat.supervisor.check import ModelReport
    from wan_compat.supervisor.client import Job, Supervisor
    from wan_compat.supervisor.remote import RemoteJob, RemoteSupervisor, connect
    from wan_compat.supervisor.sandboxed_pipeline import SandboxedPipeline

_HOMES = {
    "AsyncJob": "wan_compat.supervisor.async_client",
    "AsyncSupervisor": "wan_compat.supervisor.async_client",
    "GenerationMetadata": "wan_compat.protocol.results",
    "GenerationRequest": "wan_compat.protocol.values",
    "Job": "wan_compat.supervisor.client",
    "ModelReport": "wan_compat.supervisor.check",
    "ProcessedFrames": "wan_compat.protocol.results",
    "RemoteJob": "wan_compat.supervisor.remote",
    "RemoteSupervisor": "wan_compat.supervisor.remote",
    "SandboxedPipeline": "wan_compat.supervisor.sandboxed_pipeline",
    "Supervisor": "wan_compat.supervisor.client",
    "VideoGenerationResult": "wan_compat.protocol.results",
    "connect": "wan_compat.supervisor.remote",
}

__all__ = [
    "AsyncJob",
    "AsyncSupervisor",
    "GenerationMetadata",
    "GenerationRequest",
    "Job",
    "ModelReport",
    "ProcessedFrames",
    "RemoteJob",
    "RemoteSupervisor",
    "SandboxedPipeline",
    "Supervisor",
    "VideoGenerationResult",
    "__version__",
    "connect",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'wan_compat' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
