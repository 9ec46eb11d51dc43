"""Do the parts fit together, and does each part's configuration fit its weights?

The header of a weight file is what a loader maps; config.json is what it builds. Where they differ, tensors would stay
random or be refused, so both are compared before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.detection.traits import Size, Traits
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.findings import Finding, Severity, finding
from wan_compat.policies.judgement.parts import index_of, parts_of, several

# Size -> how a message calls it.
_WORDS: Mapping[str, str] = {"dim": "the width (heads * head dim)", "vace_layers": "the number of vace_layers"}
_EXPERT_SIZES: tuple[Size, ...] = (
    "dim",
    "in_channels",
    "out_channels",
    "num_layers",
    "ffn_dim",
    "text_dim",
    "vace_layers",
)
_NEED_ALL_SHARDS = frozenset({"num_layers", "vace_layers"})
_ROLES: Mapping[str, str] = {
    "transformer": "denoiser",
    "transformer_2": "denoiser",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "image_encoder": "image_encoder",
}
_VAE_NAMES: Mapping[int, str] = {16: "Wan 2.1's VAE", 48: "Wan 2.2's VAE"}
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
# What a plain load casts away; every other form needs a backend.
_CAST_ON_LOAD = frozenset({"fp8"})


def judge_fit(facts: ModelFacts, architecture: Architecture, traits: Mapping[str, Traits]) -> Iterator[Finding]:
    """Yield what does not fit, each with both values."""
    if architecture.is_wan is False:
        return  # what other families' parts need of each other is not ours to know
    for part in traits.values():
        yield from _header_against_config(part)
        yield from _form(part, architecture, facts)
    if not architecture.is_wan:
        return
    denoisers = [traits[name] for name in ("transformer", "transformer_2") if name in traits]
    for denoiser in denoisers:
        yield from _latents(denoiser, traits.get("vae"))
        yield from _text(denoiser, traits.get("text_encoder"))
    if len(denoisers) == 2:
        yield from _experts(*denoisers)
    if denoisers:
        yield from _images(facts, denoisers[0], traits.get("image_encoder"))


def _header_against_config(part: Traits) -> Iterator[Finding]:
    header, config, path = part.header, part.config, part.config_path
    if config is not None and config.foreign_fields:
        yield finding(
            "config_fields_ignored",
            f"{path} has {several(list(config.foreign_fields), 6)}, which {config.class_name} ignores",
            component=part.name,
            path=path,
        )
    expected = _ROLES.get(part.name)
    if header is not None and expected is not None and header.role not in (expected, "other"):
        yield finding(
            "header_against_config",
            f"{part.name} holds the weights of a {header.role.replace('_', ' ')}",
            component=part.name,
            path=_place(part),
        )
        return
    if header is None or config is None:
        return
    for size, said, found in part.disagreements():
        if size in _NEED_ALL_SHARDS and not header.has_ends:
            continue  # shards are missing, which shards.py tells
        if size == "text_dim" and header.role == "text_encoder":
            continue  # its width by another name
        words = _WORDS.get(size, size)
        verb = f"leaves {words} at {said}" if size in config.assumed else f"says {words} is {said}"
        yield finding(
            "header_against_config", f"{path} {verb}; the weights have {found}", component=part.name, path=path
        )
    if header.role == config.role == "denoiser" and header.has_ends and header.key_style == "diffusers":
        said_images, has_images = "image_embedder" in config.features, "image_embedder" in header.features
        if said_images != has_images:
            words = (
                "asks for an image embedder, the weights have none"
                if said_images
                else ("has no image_dim, the weights have an image embedder")
            )
            yield finding("header_against_config", f"{path} {words}", component=part.name, path=path)


def _form(part: Traits, architecture: Architecture, facts: ModelFacts) -> Iterator[Finding]:
    """Judge how the tensors are stored: names, precision, quantisation."""
    header, path = part.header, _place(part)
    if header is None or header.role == "other":
        return
    # A configuration with diffusers' class promises diffusers' names, in a lone component too.
    inside = part.entry is not None or (part.config is not None and part.config.style == "diffusers")
    if header.prefix and header.role != "lora":
        yield finding(
            "key_prefix_unusual",
            f"all tensor names begin with {header.prefix!r}",
            component=part.name,
            path=path,
            # In a component folder nothing takes the prefix off: no tensor would find its place.
            severity=Severity.ERROR if inside else None,
        )
    if inside and header.role == "denoiser" and header.key_style in ("original", "animate2_original"):
        yield finding(
            "layout_not_diffusers",
            "the tensors are named as in the original program (blocks.0.self_attn.q)",
            component=part.name,
            path=path,
        )
    if "fp8_scaled" in header.quantization:
        yield finding("fp8_scaled", "fp8 weights with scale tensors", component=part.name, path=path)
    elif header.quantization:
        names = ", ".join(sorted(header.quantization))
        yield finding("quantized", f"the weights are stored as {names}", component=part.name, path=path)
        if inside and part.name not in facts.sources and header.quantization - _CAST_ON_LOAD:
            yield finding(
                "not_runnable_yet",
                f"the weights are stored as {names}, which cannot be run here",
                component=part.name,
                path=path,
                fix="use the repository with bf16 or fp16 weights",
            )
    floats = {name: count for name, count in header.dtypes.items() if name in _FLOATS and count}
    if len(floats) > 1:
        shares = ", ".join(f"{name} {100 * count / sum(floats.values()):.3g} %" for name, count in floats.items())
        yield finding("dtype_mixed", f"bytes by precision: {shares}", component=part.name, path=path)


def _place(part: Traits) -> str | None:
    return next(iter(part.weight_paths), part.config_path)


def _latents(denoiser: Traits, vae: Traits | None) -> Iterator[Finding]:
    if vae is None:
        return
    channels, z_dim = denoiser.size("out_channels"), vae.size("z_dim")
    if channels is None or z_dim is None or channels == z_dim:
        return
    named = f" ({_VAE_NAMES[z_dim]})" if z_dim in _VAE_NAMES else ""
    wanted = f", it needs {_VAE_NAMES[channels]}" if channels in _VAE_NAMES else ""
    yield finding(
        "transformer_vae_mismatch",
        f"{denoiser.name} works on {channels} latent channels{wanted}; the VAE has z_dim {z_dim}{named}",
        component="vae",
        path="vae/config.json",
    )


def _text(denoiser: Traits, encoder: Traits | None) -> Iterator[Finding]:
    if encoder is None:
        return
    wanted, given = denoiser.size("text_dim"), encoder.size("text_dim") or encoder.size("dim")
    if wanted is not None and given is not None and wanted != given:
        yield finding(
            "text_encoder_mismatch",
            f"{denoiser.name} takes text of width {wanted}, the text encoder gives {given}",
            component="text_encoder",
            path="text_encoder/config.json",
        )


def _experts(high: Traits, low: Traits) -> Iterator[Finding]:
    for size in _EXPERT_SIZES:
        first, second, words = high.size(size), low.size(size), _WORDS.get(size, size)
        if size in _NEED_ALL_SHARDS and not all(e.header is None or e.header.has_ends for e in (high, low)):
            continue
        if first is not None and second is not None and first != second:
            yield finding(
                "experts_differ",
                f"{words} is {first} in {high.name} and {second} in {low.name}",
                component=low.name,
                path=f"{low.name}/config.json",
            )
    takes = [part.feature("image_embedder") for part in (high, low)]
    if None not in takes and takes[0] != takes[1]:
        one = high.name if takes[0] else low.name
        yield finding("experts_differ", f"only {one} has an image embedder", component=low.name)


def _images(facts: ModelFacts, denoiser: Traits, encoder: Traits | None) -> Iterator[Finding]:
    path, index = index_of(facts)
    if not index:
        return
    present, takes = "image_encoder" in parts_of(facts), denoiser.feature("image_embedder")
    if takes and not present:
        yield finding(
            "image_encoder_mismatch",
            f"{denoiser.name} has an image embedder, but {path} names no image_encoder",
            component="image_encoder",
            path=path,
        )
    elif takes is False and present:
        yield finding(
            "image_encoder_mismatch",
            f"{path} names an image_encoder, but {denoiser.name} has no image embedder to take what it gives",
            component="image_encoder",
            path=path,
            severity=Severity.WARNING,
        )
    wanted, given = denoiser.size("image_dim"), encoder.size("dim") if encoder is not None else None
    if takes and wanted is not None and given is not None and wanted != given:
        yield finding(
            "image_encoder_mismatch",
            f"{denoiser.name} takes images of width {wanted}, the image encoder gives {given}",
            component="image_encoder",
            path="image_encoder/config.json",
        )
