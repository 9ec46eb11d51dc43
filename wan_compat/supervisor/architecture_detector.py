"""`ArchitectureDetector`: reads facts and calls the decision, under the names that embedding programs know."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from wan_compat.policies.architecture import (
    ArchitectureSignature,
    CompatibilityReport,
    ModelArchitecture,
    VAEType,
)
from wan_compat.policies.detection.contract import signature_of, to_model_architecture, vae_type, validate_components
from wan_compat.policies.detection.decide import detect
from wan_compat.supervisor.check import registry_entry, requirements_of
from wan_compat.supervisor.inspection import read_facts


class ArchitectureDetector:
    """Says what models are from configurations and weight headers; reads no weights, imports no model code."""

    def detect_model_architecture(self, model_path: str | os.PathLike[str]) -> ModelArchitecture:
        """Return what the model at `model_path` is: a folder in any layout, a snapshot, or one weight file.

        `requirements` are those of `check`: disk and memory by the headers, VRAM, packages and versions as the registry
        knows them for the variant.

        Raises:
            ModelNotFound, ModelUnreadable: There is nothing at this path, or it may not be read.
        """
        facts = read_facts(model_path)
        architecture = detect(facts)
        return to_model_architecture(architecture, requirements_of(facts, architecture, registry_entry(architecture)))

    def analyze_model_index(self, model_index: dict[str, Any]) -> ArchitectureSignature:
        """Return the marks of a parsed model_index.json."""
        return signature_of(model_index)

    def check_vae_dimensions(self, vae_config: dict[str, Any]) -> VAEType:
        """Return whether a VAE's latents are images (Stable Diffusion) or videos (Wan and others)."""
        return vae_type(vae_config)

    def validate_component_compatibility(self, components: Mapping[str, Any]) -> CompatibilityReport:
        """Say whether components fit one architecture, and if not, why.

        Args:
            components: Name -> class; or the pair of library and class that an index has, or the parsed config.json,
                which tells shapes too.
        """
        return validate_components(components)
