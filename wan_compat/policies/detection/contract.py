"""The answers of `ArchitectureDetector` as pure functions, in the classes that embedding programs know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wan_compat.policies.architecture import (
    Architecture,
    ArchitectureSignature,
    CompatibilityReport,
    ComponentInfo,
    ModelArchitecture,
    ModelRequirements,
    VAEType,
)
from wan_compat.policies.detection.classes import (
    AUDIO_ENCODERS,
    IMAGE_ENCODERS,
    KNOWN_LIBRARIES,
    OTHER_VAES,
    STABLE_DIFFUSION,
    TEXT_ENCODERS,
    THREE_DIMENSIONAL_VAES,
    TWO_DIMENSIONAL_VAES,
    VAES,
    WAN_FAMILY_TRANSFORMERS,
    family_of_class,
    role_of_class,
)
from wan_compat.policies.detection.configs import ConfigTraits, class_of, read_config, text_of
from wan_compat.policies.detection.traits import entries_of
from wan_compat.protocol.errors import clean_text

# Fields that only a VAE over time has; `temperal_downsample` is spelled so in diffusers.
_TIME_FIELDS = ("temperal_downsample", "temporal_downsample", "scale_factor_temporal", "temporal_compression_ratio")
# What Wan's own classes go with; relatives share them.
_WAN_VAES = ("AutoencoderKLWan",)
_WAN_TEXT_ENCODERS = ("UMT5EncoderModel", "UMT5Model")
_NEEDS_IMAGE_ENCODER = ("WanAnimateTransformer3DModel", "WanAnimate2Transformer3DModel")


def signature_of(
    model_index: Mapping[str, Any],
    transformer_config: Mapping[str, Any] | None = None,
    vae_config: Mapping[str, Any] | None = None,
) -> ArchitectureSignature:
    """Return the marks of a parsed model_index.json.

    A class of a foreign library keeps its library in front (`gen3r.models.WanTransformer3DModel`), so that its name
    alone never passes for diffusers' class. `has_boundary_ratio` and `has_transformer_2` mean a value, not a key:
    Wan 2.1 saved by diffusers 0.35 has both keys with null. A `_class_name` of two ([module, class], remote code)
    gives the class with its module.
    """
    entries = entries_of(model_index)
    classes = {
        name: entry.class_name
        if entry.library is None or entry.library in KNOWN_LIBRARIES
        else f"{entry.library}.{entry.class_name}"
        for name, entry in entries.items()
        if entry.class_name is not None
    }
    boundary = model_index.get("boundary_ratio")
    dimensions = vae_type(vae_config or {})
    if dimensions is VAEType.UNKNOWN:
        dimensions = vae_type({"_class_name": classes.get("vae")})
    named = model_index.get("_class_name")
    if isinstance(named, list | tuple):
        named = ".".join(str(part) for part in named)
    return ArchitectureSignature(
        has_transformer_2="transformer_2" in entries,
        has_boundary_ratio=isinstance(boundary, int | float) and not isinstance(boundary, bool),
        vae_dimensions=dimensions.value,
        component_classes=classes,
        pipeline_class=text_of(named),
        transformer_config=dict(transformer_config or {}),
        vae_config=dict(vae_config or {}),
    )


def vae_type(vae_config: Mapping[str, Any]) -> VAEType:
    """Return whether a VAE's latents are images or videos, by its class, else by its fields.

    There is no field for it: `z_dim` with `temperal_downsample` or `scale_factor_temporal` is a video VAE,
    `latent_channels` with 2-D blocks an image VAE.
    """
    name = class_of(vae_config)
    if name in THREE_DIMENSIONAL_VAES:
        return VAEType.THREE_D
    if name in TWO_DIMENSIONAL_VAES:
        return VAEType.TWO_D
    if name in OTHER_VAES:
        return VAEType.UNKNOWN
    if any(vae_config.get(field) is not None for field in _TIME_FIELDS):
        return VAEType.THREE_D
    blocks = vae_config.get("down_block_types")
    if isinstance(blocks, list | tuple) and blocks and all(isinstance(block, str) for block in blocks):
        return VAEType.THREE_D if any("3D" in block for block in blocks) else VAEType.TWO_D
    return VAEType.UNKNOWN


def validate_components(components: Mapping[str, Any]) -> CompatibilityReport:
    """Say whether components fit one architecture.

    Args:
        components: Name -> class, or an entry of model_index.json (`[library, class]`; `[null, null]` is an absence),
            or a parsed config.json. Only configurations tell shapes; with names alone, classes are all that is judged.
    """
    configs = {str(name): read_config(value) for name, value in components.items() if isinstance(value, Mapping)}
    names = {str(name): named for name, value in components.items() if (named := _class_named(value)) is not None}
    denoisers = {name: value for name, value in names.items() if role_of_class(value.rpartition(".")[2]) == "denoiser"}
    report = CompatibilityReport(is_compatible=True, architecture="unknown")
    foreign = {name: value for name, value in names.items() if "." in value}
    for name, value in foreign.items():
        report.issues.append(f"{_say(name)} is {_say(value)}: a class of another library, whose name proves nothing")
    known = {value for name, value in denoisers.items() if name not in foreign}
    families = {family_of_class(value) for value in known}
    if not denoisers:
        report.issues.append("no transformer or unet of a known class among the components")
        report.suggestions.append("use a repository whose transformer is part of diffusers")
    elif families == {"wan"}:
        report.architecture = "wan"
        _check_wan(names, known, report)
        _check_shapes(configs, report)
    elif len(families) == 1:
        family = next(iter(families)) or "unknown"
        report.architecture = "stable_diffusion" if family in STABLE_DIFFUSION else family
        report.issues.append(f"the denoiser is {family}'s, not Wan's")
        report.suggestions.append("use the program made for this family, or a Wan repository")
    elif families:
        report.issues.append(f"denoisers of different families: {', '.join(sorted(str(item) for item in families))}")
        report.suggestions.append("take all components from one repository")
    report.is_compatible = not report.issues
    return report


def _class_named(value: Any) -> str | None:
    """Return the class that a component's value means, None for an absence; a foreign library stays in front."""
    if isinstance(value, Mapping):
        return class_of(value) or "of no class"
    if isinstance(value, list | tuple):
        entry = entries_of({"part": value}).get("part")
        if entry is None:
            return None
        known = entry.library is None or entry.library in KNOWN_LIBRARIES
        return entry.class_name if known else f"{entry.library}.{entry.class_name}"
    return None if value is None else str(value)


def _check_shapes(configs: Mapping[str, ConfigTraits], report: CompatibilityReport) -> None:
    """Compare what the configurations say of the widths at which the parts meet."""
    vae, text_encoder = configs.get("vae"), configs.get("text_encoder")
    experts = [configs[name] for name in ("transformer", "transformer_2") if name in configs]
    for transformer in experts[:1]:
        for name, taken, given in (
            ("vae", transformer.out_channels, None if vae is None else vae.z_dim),
            ("text_encoder", transformer.text_dim, None if text_encoder is None else text_encoder.text_dim),
        ):
            if taken is not None and given is not None and taken != given:
                what = "latent channels" if name == "vae" else "text features"
                report.issues.append(f"the transformer works on {taken} {what}, {name} gives {given}")
                report.suggestions.append("take both from one repository")
    sizes = ("dim", "in_channels", "out_channels", "num_layers")
    if len(experts) == 2 and any(getattr(experts[0], size) != getattr(experts[1], size) for size in sizes):
        report.issues.append("the two experts differ in shape")
        report.suggestions.append("take both experts from one repository")


def _check_wan(names: Mapping[str, str], transformers: set[str], report: CompatibilityReport) -> None:
    if len(transformers) > 1:
        report.issues.append(f"the two experts have different classes: {', '.join(sorted(transformers))}")
        report.suggestions.append("take both experts from one repository")
    for name, value in names.items():
        role = role_of_class(value)
        if value in VAES and value not in _WAN_VAES:
            why = "works on single images" if value in TWO_DIMENSIONAL_VAES else "has other latents"
            report.issues.append(f"{_say(name)} is {value}, which {why}; Wan needs AutoencoderKLWan")
            report.suggestions.append("take the VAE from the transformer's repository")
        if name == "vae" and role not in ("vae", None):
            report.issues.append(f"vae is {_say(value)}, which is no VAE")
        if value in TEXT_ENCODERS and value not in _WAN_TEXT_ENCODERS:
            report.issues.append(f"{_say(name)} is {value}; Wan needs UMT5EncoderModel")
            report.suggestions.append("take the text encoder from the transformer's repository")
        if value in AUDIO_ENCODERS and not any("S2V" in item for item in transformers):
            report.warnings.append(f"{_say(name)} is an audio encoder, which only speech-to-video models use")
    has_images = any(value in IMAGE_ENCODERS for value in names.values())
    if transformers.intersection(_NEEDS_IMAGE_ENCODER) and not has_images:
        report.issues.append("Animate needs an image encoder, and none is among the components")
    for wanted, roles in (("vae", VAES), ("text_encoder", TEXT_ENCODERS)):
        if wanted not in names and not any(value in roles for value in names.values()):
            report.warnings.append(f"no {wanted} among the components")
    if not transformers <= WAN_FAMILY_TRANSFORMERS:
        report.warnings.append("a transformer of no known class")


def _say(text: str) -> str:
    return clean_text(text, 120)


def to_model_architecture(architecture: Architecture, requirements: ModelRequirements) -> ModelArchitecture:
    """Return an architecture in the class of the contract. Absent paths are empty texts there."""
    return ModelArchitecture(
        architecture_type=architecture.architecture_type,
        version=architecture.version,
        components={
            name: ComponentInfo(
                class_name=component.class_name or "",
                config_path=component.config_path or "",
                weight_path=component.weight_path or "",
                is_custom=component.is_custom,
                dependencies=[component.library] if component.library else [],
            )
            for name, component in architecture.components.items()
        },
        requirements=requirements,
        capabilities=list(architecture.capabilities),
    )
