"""`detect`: from the facts of any model to what it is, with the evidence.

The order: which parts are denoisers and whose (header, then configuration, then class), what kind (class and extra
layers), which rows of the decision table fit (channels, size, experts), and last the hints that choose among what is
left. Never from the VAE, and never from the pipeline's name alone.

Confidence is that the model is `variant` or one of `candidates`:

    0.99  class, configuration and header agree        0.90  class and configuration, no header
    0.95  header alone                                 0.60  class alone
    less, where fields are missing or malformed, or the voices disagree
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from wan_compat.policies.architecture import Architecture, ArchitectureType, Evidence, Layout
from wan_compat.policies.detection.classes import (
    LOOK_ALIKE_PIPELINES,
    OTHER_UNET_PIPELINES,
    STABLE_DIFFUSION,
)
from wan_compat.policies.detection.components import components_of, vae_dimensions_of
from wan_compat.policies.detection.hints import Hints, hints_of, normalised, ranked, speaks_of
from wan_compat.policies.detection.layout import layout_of
from wan_compat.policies.detection.lora_bases import bases_of_lora
from wan_compat.policies.detection.pipelines import (
    has_own_pipeline,
    made_for,
    named_pipeline,
    other_classes,
    runnable_class,
)
from wan_compat.policies.detection.rules import (
    SIZES,
    Denoiser,
    Outline,
    Row,
    denoiser_of,
    outline_of,
    rows_of,
)
from wan_compat.policies.detection.traits import Size, Traits, entries_of, index_of, traits_of
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.variants import VARIANTS, Variant
from wan_compat.protocol.errors import clean_text

_PAIRS = (("transformer", "transformer_2"), ("high_noise_model", "low_noise_model"))
# Trained with FastVideo's sparse attention, whose gates are extra tensors.
_SPARSE = ("fastwan2.1-t2v-1.3b", "fastwan2.1-t2v-14b", "wan2.1-vsa-t2v-14b-720p")
_MAX_EVIDENCE = 30


def detect(facts: ModelFacts, traits: Mapping[str, Traits] | None = None) -> Architecture:
    """Return what a model is. Never raises: what is missing or malformed costs confidence, not an answer.

    `traits` are `traits_of(facts)`, for a caller that needs them too.
    """
    return _Detection(facts, traits_of(facts) if traits is None else traits).decide()


@dataclasses.dataclass(frozen=True)
class _Verdict:
    is_wan: bool | None
    architecture_type: ArchitectureType
    confidence: float
    version: str | None = None
    variant: str | None = None
    candidates: tuple[str, ...] = ()
    pipeline_class: str | None = None
    also_loads_as: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()


class _Detection:
    """One detection: the facts, what was derived from them, and the evidence gathered on the way."""

    def __init__(self, facts: ModelFacts, traits: Mapping[str, Traits]) -> None:
        self._facts = facts
        self._traits = traits
        self._index_name, self._index = index_of(facts)
        self._layout: Layout = layout_of(facts, self._traits)
        self._pipeline = named_pipeline(self._index)
        self._hints: Hints = hints_of(
            facts,
            self._index,
            self._pipeline,
            [entry.reference for entry in entries_of(self._index).values() if entry.reference],
        )
        self._evidence: list[Evidence] = []

    def decide(self) -> Architecture:
        self._say(f"layout {self._layout}", self._index_name or "files")
        if self._pipeline is not None:
            self._say(f"pipeline class {self._pipeline}", self._index_name or "files")
        verdict = self._verdict()
        return Architecture(
            is_wan=verdict.is_wan,
            architecture_type=verdict.architecture_type,
            version=verdict.version,
            variant=verdict.variant,
            candidates=verdict.candidates,
            confidence=verdict.confidence,
            evidence=tuple(self._evidence[:_MAX_EVIDENCE]),
            layout=self._layout,
            pipeline_class=verdict.pipeline_class,
            also_loads_as=verdict.also_loads_as,
            capabilities=verdict.capabilities,
            vae_dimensions=vae_dimensions_of(self._traits),
            components=components_of(self._traits),
        )

    def _say(self, fact: str, source: str) -> None:
        self._evidence.append(Evidence(clean_text(fact, 300), clean_text(source, 300)))

    def _verdict(self) -> _Verdict:
        if (name := LOOK_ALIKE_PIPELINES.get(self._pipeline or "")) is not None:
            self._say(f"{self._pipeline} is {name}'s own pipeline around parts of Wan", self._index_name or "files")
            return _Verdict(False, "unknown", 0.95)
        denoisers = [part for part in self._traits.values() if part.role == "denoiser"]
        if not denoisers:
            return self._without_denoiser()
        main = _main_denoiser(denoisers)
        for part in denoisers[:4]:
            self._describe(part)
        if main.family != "wan":
            return self._of_another_family(main)
        return self._wan(main, denoisers)

    def _describe(self, part: Traits) -> None:
        source = part.config_path or self._index_name or "files"
        if part.class_name is not None:
            library = "" if part.library is None else f"{part.library}."
            self._say(f"{part.name} is {library}{part.class_name}", source)
        if part.header is not None:
            header = part.header
            sizes = f"dim {header.dim}, in {header.in_channels}, out {header.out_channels}, {header.num_layers} blocks"
            names = f", {header.key_style} names" if header.key_style else ""
            extra = f", with {', '.join(sorted(header.features))}" if header.features else ""
            what = sizes if header.family == "wan" else "of another architecture"
            self._say(f"{part.name} tensors: {header.family}, {what}{names}{extra}", part.weight_paths[0])
        elif part.config is not None:
            config = part.config
            self._say(
                f"{part.name} config: dim {config.dim}, in {config.in_channels}, out {config.out_channels}, "
                f"{config.num_layers} blocks",
                source,
            )
        if part.config is not None and part.config.assumed:
            self._say(f"class defaults stand for {', '.join(sorted(part.config.assumed))}", source)
        if part.config is not None and part.config.invalid:
            self._say(f"not usable: {', '.join(sorted(part.config.invalid))}", source)
        for name, said, found in part.disagreements():
            self._say(
                f"{name} is {found} in the tensors, {said} in the config: the tensors count", part.weight_paths[0]
            )

    def _without_denoiser(self) -> _Verdict:
        for part in self._traits.values():
            if part.role == "lora" and part.header is not None:
                return self._lora(part)
        self._say("no denoiser found", "files")
        version = None
        for part in self._traits.values():
            z_dim = part.size("z_dim")
            if part.role == "vae" and (part.family == "wan" or part.class_name == "AutoencoderKLWan"):
                version = {16: "2.1", 48: "2.2"}.get(z_dim or 0)
                self._say(
                    f"a Wan VAE with {z_dim} latent channels", (*part.weight_paths, part.config_path or "files")[0]
                )
        return _Verdict(None, "unknown", 0.5, version=version)

    def _lora(self, part: Traits) -> _Verdict:
        header = part.header
        if header is None or header.family != "wan":
            self._say("LoRA for another family", part.weight_paths[0])
            return _Verdict(False, "unknown", 0.9)
        image = "image_embedder" in header.features
        self._say(f"LoRA for Wan, width {header.dim}{', with image layers' if image else ''}", part.weight_paths[0])
        slugs = ranked(bases_of_lora(header.dim, image=image), self._hints)
        if not slugs:
            return _Verdict(True, "wan_family", 0.7)
        variant = VARIANTS[slugs[0]]
        return _Verdict(
            True,
            variant.architecture_type,
            0.9,
            version=variant.version if len({VARIANTS[slug].version for slug in slugs}) == 1 else None,
            variant=variant.slug,
            candidates=slugs if len(slugs) > 1 else (),
            capabilities=variant.capabilities,
        )

    def _of_another_family(self, part: Traits) -> _Verdict:
        family = part.family
        if family == "Stable Diffusion":
            family = next(
                (name for prefix, name in OTHER_UNET_PIPELINES.items() if (self._pipeline or "").startswith(prefix)),
                family,
            )
            if (self._pipeline or "").startswith("StableDiffusionXL"):
                family = "Stable Diffusion XL"
        source = (*part.weight_paths, part.config_path or self._index_name or "files")[0]
        if family is None:
            self._say(f"{part.name} is of no known architecture", source)
            return _Verdict(False, "unknown", 0.5)
        self._say(f"the denoiser is {family}'s", source)
        both = part.header is not None and part.class_name is not None
        confidence = 0.99 if both else 0.95
        return _Verdict(False, "stable_diffusion" if family in STABLE_DIFFUSION else "unknown", confidence)

    def _wan(self, main: Traits, denoisers: list[Traits]) -> _Verdict:
        experts = _count_experts(denoisers)
        if experts == 2:
            self._say("two experts", self._index_name or "files")
        denoiser = denoiser_of(main, experts, clip_beside=self._clip_beside())
        self._describe_vae(denoiser.out_channels)
        rows = self._narrowed(rows_of(denoiser), main, denoiser)
        confidence = self._confidence(main)
        if denoiser.size == "other":
            self._say(f"no known model is {denoiser.dim} wide", (*main.weight_paths, main.config_path or "files")[0])
            rows = tuple(row for row in rows if row.size is None)
        if not rows:
            outline = outline_of(denoiser, expand_timesteps=self._index.get("expand_timesteps") is True)
            return self._by_outline(outline, min(confidence, 0.8))
        expected = SIZES.get(denoiser.dim or 0, ("", 0))[1]
        layers = main.size("num_layers")
        if expected and layers is not None and layers != expected:
            self._say(f"{layers} blocks instead of {expected}", (*main.weight_paths, main.config_path or "files")[0])
            confidence = min(confidence, 0.8)
        return self._by_rows(rows, confidence)

    def _describe_vae(self, out_channels: int | None) -> None:
        """Say whether the VAE has the transformer's latents: evidence beside the verdict, never part of it."""
        for part in self._traits.values():
            z_dim = part.size("z_dim")
            if part.role == "vae" and z_dim is not None:
                fits = "as" if z_dim == out_channels else "not as"
                source = (*part.weight_paths, part.config_path or "files")[0]
                self._say(f"{part.name} with {z_dim} latent channels, {fits} the transformer gives", source)

    def _narrowed(self, rows: tuple[Row, ...], main: Traits, denoiser: Denoiser) -> tuple[Row, ...]:
        """Class defaults choose among rows, unless the index names a pipeline that only the others have."""
        sizes: tuple[Size, ...] = ("dim", "in_channels", "out_channels")
        assumed = [name for name in sizes if main.is_assumed(name)]
        if not assumed:
            return rows
        blank = dataclasses.replace(
            denoiser,
            dim=None if "dim" in assumed else denoiser.dim,
            in_channels=None if "in_channels" in assumed else denoiser.in_channels,
            out_channels=None if "out_channels" in assumed else denoiser.out_channels,
        )
        wider = rows_of(blank)
        supported = tuple(row for row in wider if any(made_for(slug, self._pipeline) for slug in row.slugs))
        if rows and (not supported or any(row in supported for row in rows)):
            if len(assumed) < len(sizes):
                return rows
            # No size at all was said: the width that the class defaults to is one candidate among several.
            return tuple(dict.fromkeys((*rows, *rows_of(dataclasses.replace(denoiser, dim=None)))))
        return supported or wider

    def _clip_beside(self) -> bool | None:
        """Whether an image encoder stands beside an original checkpoint, whose configuration says nothing about it."""
        if any(part.role == "image_encoder" for part in self._traits.values()):
            return True
        names = [path.rpartition("/")[2].lower() for path in self._facts.files]
        return True if any(name.startswith("models_clip") for name in names) else None

    def _confidence(self, part: Traits) -> float:
        config, header = part.config, part.header
        if header is not None:
            confidence = 0.99 if part.class_name is not None and config is not None else 0.95
            if any(True for _ in part.disagreements()):
                confidence -= 0.15
            if not header.has_ends:
                confidence -= 0.1
            return round(confidence, 2)
        if config is None:
            return 0.6
        confidence = 0.9 if part.class_name is not None else 0.8
        if {"in_channels", "num_attention_heads"} & config.assumed:
            confidence -= 0.15
        if config.invalid:
            confidence -= 0.1
        if config.foreign_fields:
            confidence -= 0.1
        return round(confidence, 2)

    def _by_outline(self, outline: Outline, confidence: float) -> _Verdict:
        model = None if outline.model is None else VARIANTS[self._told_relative(outline.model)]
        pipeline = None if model is None else self._runnable(model)
        return _Verdict(
            True,
            outline.architecture_type,
            confidence,
            version=outline.version,
            pipeline_class=pipeline,
            also_loads_as=() if model is None else other_classes(model, pipeline),
            capabilities=model.capabilities if model is not None else (),
        )

    def _told_relative(self, slug: str) -> str:
        """Return the variant of the index' class, among relatives that share the transformer of `slug`."""
        family = slug.partition("-")[0]
        if family not in ("skyreels", "helios") or made_for(slug, self._pipeline):
            return slug
        shared = (item for item in VARIANTS if item.startswith(f"{family}-") and made_for(item, self._pipeline))
        return next(shared, slug)

    def _by_rows(self, rows: tuple[Row, ...], confidence: float) -> _Verdict:
        slugs = [slug for row in rows for slug in row.slugs]
        slugs += [slug for row in rows for slug in row.named if self._joins(slug)]
        if "rose" in slugs and self._has_foreign_fields():
            slugs.insert(0, "rose")  # no other repository is known to put VideoX-Fun's fields under diffusers' class
        candidates = ranked(self._told_by_index(slugs), self._hints)
        variant = VARIANTS[candidates[0]]
        if len(candidates) > 1:
            self._say(
                f"chosen among {len(candidates)} that files cannot tell apart", "names, pipeline class, scheduler"
            )
        kind, capabilities, pipeline = variant.architecture_type, variant.capabilities, self._runnable(variant)
        if pipeline == "WanVideoToVideoPipeline":
            kind, capabilities = "wan_v2v", ("video_to_video", *capabilities)
        return _Verdict(
            True,
            kind,
            confidence,
            version=variant.version,
            variant=variant.slug,
            candidates=candidates if len(candidates) > 1 else (),
            pipeline_class=pipeline,
            also_loads_as=other_classes(variant, pipeline),
            capabilities=capabilities,
        )

    def _runnable(self, variant: Variant) -> str | None:
        own = has_own_pipeline(self._facts, self._index)
        return runnable_class(variant, self._layout, self._pipeline, own=own, traits=self._traits)

    def _joins(self, slug: str) -> bool:
        """Whether a fine-tune joins the candidates: a name, a file or the layout speaks of it."""
        if slug == "chronoedit-14b-flashpack" and any(path.endswith(".flashpack") for path in self._facts.files):
            return True
        if slug == "skyreels-v3-v2v-14b":
            own_folder = "transformer/config.json" in self._facts.files
            return self._layout == "original" and own_folder
        if slug == "rose" and self._has_foreign_fields():
            return True
        if slug in _SPARSE and any(part.feature("vsa") for part in self._traits.values()):
            return True
        return speaks_of(slug, self._hints)

    def _has_foreign_fields(self) -> bool:
        return any(part.config is not None and part.config.foreign_fields for part in self._traits.values())

    def _told_by_index(self, slugs: list[str]) -> list[str]:
        """Keep what the index's own class decides: Animate-2 base or distilled, Helios base or pyramid."""
        decided = ("wan2.2-animate-2-", "helios-")
        if self._pipeline is None or not all(slug.startswith(decided) for slug in slugs):
            return slugs
        exact = [slug for slug in slugs if made_for(slug, self._pipeline)]
        if self._pipeline == "WanAnimate2ModularPipeline":
            exact = [slug for slug in exact if not slug.endswith("distilled")]
        if self._pipeline == "HeliosPyramidPipeline" and isinstance(self._index.get("is_distilled"), bool):
            wanted = "helios-distilled" if self._index["is_distilled"] else "helios-mid"
            exact = [slug for slug in exact if slug == wanted]
        return exact or slugs


def _main_denoiser(denoisers: list[Traits]) -> Traits:
    """Return the denoiser that decides: `transformer` where it is called so, Wan's before another's otherwise."""
    for name in ("transformer", "high_noise_model", "low_noise_model", "transformer_2"):
        for part in denoisers:
            if part.name == name:
                return part
    return next((part for part in denoisers if part.family == "wan"), denoisers[0])


def _count_experts(denoisers: list[Traits]) -> int:
    names = {part.name for part in denoisers if part.family == "wan"}
    if any(first in names and second in names for first, second in _PAIRS):
        return 2
    # Loose files: two that are called high and low are a pair, two quantisations of one model are not.
    loose = [normalised(path) for part in denoisers if part.config_path is None for path in part.weight_paths]
    high, low = (any(f"-{word}-" in path or f"-{word}noise-" in path for path in loose) for word in ("high", "low"))
    return 2 if high and low else 1
