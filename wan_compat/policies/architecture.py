"""What a model is: the values that detection returns, each with the evidence it rests on.

`Architecture` is our own answer. `ArchitectureSignature`, `ModelArchitecture`, `ComponentInfo` and the rest are the
classes that embedding programs know by name; they are filled from it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Literal

Layout = Literal["diffusers", "modular", "single_file", "original", "gguf", "lora", "component", "unknown"]

ArchitectureType = Literal[
    "wan_t2v",
    "wan_i2v",
    "wan_flf2v",
    "wan_v2v",
    "wan_vace",
    "wan_ti2v",
    "wan_animate",
    "wan_s2v",
    "wan_t2i",
    "wan_family",  # relatives: SkyReels-V2, ChronoEdit, Lucy-Edit, Fun-Control ... built on Wan, run by other classes
    "stable_diffusion",
    "unknown",
]


class VAEType(enum.Enum):
    TWO_D = 2
    THREE_D = 3
    UNKNOWN = 0


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One fact and where it was read, such as `in_channels 36` from `transformer/diffusion_pytorch_model...`."""

    fact: str
    source: str


@dataclasses.dataclass(frozen=True)
class Component:
    """One part of a model as found. `library` and `class_name` as its index or configuration names them, None where
    nothing does; `parameters` and `bytes` counted from weight headers, 0 where there are none."""

    name: str
    library: str | None
    class_name: str | None
    config_path: str | None
    weight_path: str | None
    dtype: str | None
    parameters: int
    bytes: int
    is_custom: bool


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a model is.

    `is_wan` is None where no denoiser is there to judge (a VAE or text encoder alone). `variant` is the best answer,
    `candidates` all slugs that files alone cannot tell apart (empty, or at least two with `variant` among them).
    `version` is the Wan generation ("2.1", "2.2") or the relative's own. `pipeline_class` is the class of diffusers
    that runs it, None where there is none; `also_loads_as` are further ones for other tasks. `confidence` is 0..1.
    """

    is_wan: bool | None
    architecture_type: ArchitectureType
    version: str | None
    variant: str | None
    candidates: tuple[str, ...]
    confidence: float
    evidence: tuple[Evidence, ...]
    layout: Layout
    pipeline_class: str | None
    also_loads_as: tuple[str, ...]
    capabilities: tuple[str, ...]
    vae_dimensions: Literal[0, 2, 3]
    components: Mapping[str, Component]


@dataclasses.dataclass
class ArchitectureSignature:
    """The marks of a parsed model_index.json. `transformer_config` and `vae_config` sharpen it where they are known:
    an index alone does not tell Wan from models that use its VAE."""

    has_transformer_2: bool
    has_boundary_ratio: bool
    vae_dimensions: int
    component_classes: dict[str, str]
    pipeline_class: str | None
    transformer_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    vae_config: dict[str, Any] = dataclasses.field(default_factory=dict)

    def is_wan_architecture(self) -> bool:
        """Whether the denoiser is Wan's or a relative's; never decided by the VAE or by `transformer_2` alone."""
        from wan_compat.policies.detection.classes import LOOK_ALIKE_PIPELINES, WAN_FAMILY_TRANSFORMERS

        if (self.pipeline_class or "").rpartition(".")[2] in LOOK_ALIKE_PIPELINES:
            return False
        classes = {name: value for name, value in self.component_classes.items() if name.startswith("transformer")}
        return bool(classes) and all(value in WAN_FAMILY_TRANSFORMERS for value in classes.values())


@dataclasses.dataclass
class ModelRequirements:
    """What a model needs. The memory figures hold for `plan`; 0 means not known."""

    min_vram_mb: int = 0
    recommended_vram_mb: int = 0
    min_ram_mb: int = 0
    disk_mb: int = 0
    dependencies: list[str] = dataclasses.field(default_factory=list)
    min_diffusers_version: str | None = None
    plan: str | None = None


@dataclasses.dataclass
class ComponentInfo:
    """`config_path` and `weight_path` are relative to the model; empty where there is none."""

    class_name: str
    config_path: str
    weight_path: str
    is_custom: bool
    dependencies: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class ModelArchitecture:
    architecture_type: str
    version: str | None
    components: dict[str, ComponentInfo]
    requirements: ModelRequirements
    capabilities: list[str]


@dataclasses.dataclass
class CompatibilityReport:
    """Whether components fit one architecture, and if not, why and what to do."""

    is_compatible: bool
    architecture: str
    issues: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    suggestions: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class PipelineRequirements:
    """What a pipeline class asks for: arguments of its `__call__`, packages, and memory under the plan that
    `CompatibilityRegistry` names."""

    required_args: list[str]
    optional_args: list[str]
    dependencies: list[str]
    min_vram_mb: int
    supports_cpu_offload: bool


@dataclasses.dataclass
class ValidationResult:
    is_valid: bool
    errors: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class CompatibilityCheck:
    is_compatible: bool
    model_name: str
    required_pipeline: str | None
    available_pipeline: str
    reasons: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class VersionCompatibility:
    is_compatible: bool
    required: str
    found: str | None
    reason: str
