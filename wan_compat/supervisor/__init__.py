"""Who runs what, for how long, and what does the user see? Never imports torch, diffusers or repository code.

The classes that embedding programs know by name load lazily from here (PEP 562), each from the module it lives in.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ArchitectureDetector": "wan_compat.supervisor.architecture_detector",
    "CompatibilityRegistry": "wan_compat.supervisor.registry",
    "DependencyManager": "wan_compat.supervisor.dependency_manager",
    "DependencyStatus": "wan_compat.supervisor.video_encoder",
    "DiagnosticCollector": "wan_compat.supervisor.diagnostics",
    "EncodingResult": "wan_compat.supervisor.video_encoder",
    "FallbackHandler": "wan_compat.supervisor.fallback",
    "FallbackResult": "wan_compat.supervisor.video_encoder",
    "FetchResult": "wan_compat.supervisor.dependency_manager",
    "FormatConverter": "wan_compat.supervisor.video_encoder",
    "FrameTensorHandler": "wan_compat.supervisor.frame_tensors",
    "InstallationResult": "wan_compat.supervisor.dependency_manager",
    "IntegrationReport": "wan_compat.supervisor.integration",
    "IntegrationValidator": "wan_compat.supervisor.integration",
    "ModelHandle": "wan_compat.supervisor.model_handle",
    "OptimizationManager": "wan_compat.supervisor.optimization_manager",
    "PerformanceMonitor": "wan_compat.supervisor.performance_monitor",
    "PipelineManager": "wan_compat.supervisor.pipeline_manager",
    "RemoteCodeStatus": "wan_compat.supervisor.dependency_manager",
    "SafeLoadManager": "wan_compat.supervisor.safe_load",
    "SafeLoadingOptions": "wan_compat.supervisor.safe_load",
    "SandboxEnvironment": "wan_compat.supervisor.sandbox_environment",
    "SchemaValidationResult": "wan_compat.supervisor.schema_validator",
    "SchemaValidator": "wan_compat.supervisor.schema_validator",
    "SmokeTestRunner": "wan_compat.supervisor.smoke_test",
    "VideoEncoder": "wan_compat.supervisor.video_encoder",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'wan_compat.supervisor' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
