"""Given these facts, what is right and what is allowed? Pure: no processes, sockets, clocks or torch.

The classes that embedding programs know by name load lazily from here (PEP 562), each from the module it lives in.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "AlternativeModel": "wan_compat.policies.fallback",
    "ArchitectureSignature": "wan_compat.policies.architecture",
    "COMPATIBILITY_REGISTRY_EXAMPLE": "wan_compat.policies.registry",
    "CompatibilityCheck": "wan_compat.policies.architecture",
    "CompatibilityReport": "wan_compat.policies.architecture",
    "ComponentInfo": "wan_compat.policies.architecture",
    "DIAGNOSTIC_TEMPLATE": "wan_compat.policies.diagnostics",
    "EncodingConfig": "wan_compat.policies.encoding.plan",
    "FallbackStrategy": "wan_compat.policies.fallback",
    "FormatValidation": "wan_compat.policies.smoke",
    "MemoryTestResult": "wan_compat.policies.smoke",
    "ModelArchitecture": "wan_compat.policies.architecture",
    "ModelDiagnostics": "wan_compat.policies.diagnostics",
    "ModelIndexSchema": "wan_compat.policies.model_index",
    "ModelRequirements": "wan_compat.policies.architecture",
    "OptimizationPlan": "wan_compat.policies.planning.contract",
    "PerformanceBenchmark": "wan_compat.policies.smoke",
    "PipelineRequirements": "wan_compat.policies.architecture",
    "SecurityValidation": "wan_compat.policies.scan.risk",
    "SmokeTestResult": "wan_compat.policies.smoke",
    "SystemResources": "wan_compat.policies.planning.contract",
    "UsableComponent": "wan_compat.policies.fallback",
    "VAEType": "wan_compat.policies.architecture",
    "ValidationResult": "wan_compat.policies.architecture",
    "VersionCompatibility": "wan_compat.policies.architecture",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'wan_compat.policies' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
