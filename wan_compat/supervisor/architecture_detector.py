"""`ArchitectureDetector`: reads facts and calls the decision, under the names that embedding programs know."""

from __future__ import annotations

from typing import Any

from wan_compat.policies.architecture import (
    ArchitectureSignature,
    CompatibilityReport,
    ModelArchitecture,
    ModelRequirements,
    VAEType,
)
from wan_compat.policies.detection.contract import signature_of, to_model_architecture, vae_type, validate_components
from wan_compat.policies.detection.decide import detect
from wan_compat.supervisor.inspection import read_facts


class ArchitectureDetector:
    """Says what models are from configurations and weight headers; reads no weights, imports no model code."""

    def detect_model_architecture(self, model_path: str) -> ModelArchitecture:
        """Return what the model at `model_path` is: a folder in any layout, a snapshot, or one weight file.

        `requirements` names only what the files tell (bytes on disk); `check` adds memory, versions and packages.

        Raises:
            ModelNotFound, ModelUnreadable: There is nothing at this path, or it may not be read.
        """
        facts = read_facts(model_path)
        disk_bytes = sum(fact.size for fact in facts.files.values())
        return to_model_architecture(detect(facts), ModelRequirements(disk_mb=-(-disk_bytes // 1_000_000)))

    def analyze_model_index(self, model_index: dict[str, Any]) -> ArchitectureSignature:
        """Return the marks of a parsed model_index.json."""
        return signature_of(model_index)

    def check_vae_dimensions(self, vae_config: dict[str, Any]) -> VAEType:
        """Return whether a VAE's latents are images (Stable Diffusion) or videos (Wan and others)."""
        return vae_type(vae_config)

    def validate_component_compatibility(self, components: dict[str, str]) -> CompatibilityReport:
        """Say whether components (name -> class) fit one architecture, and if not, why."""
        return validate_components(components)
