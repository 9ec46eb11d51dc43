"""When a model cannot be run as it is: which parts can be used, what to use instead, what to do without.

The dataclasses are the contract's. Which strategy an error asks for is a table here; loading parts is
supervisor/fallback.py's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from wan_compat.policies.admission import Kind, admit_component
from wan_compat.policies.architecture import Component, ComponentInfo
from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.policies.pipelines import KNOWN_CLASSES
from wan_compat.policies.recovery.advice import Subject, advise
from wan_compat.policies.registry_document import RegistryEntry
from wan_compat.policies.variants import VARIANTS
from wan_compat.protocol.errors import ModelInvalid, PickleRefused, WanCompatError
from wan_compat.protocol.values import ComponentSpec

_WEIGHTY: frozenset[Kind] = frozenset({"diffusers", "transformers"})
MAX_ALTERNATIVES = 5


@dataclasses.dataclass
class FallbackStrategy:
    """What to do about a pipeline that failed. `strategy_type` is "component_isolation", "alternative_model" or
    "reduced_functionality"; the steps are sentences with commands, the limitations what the result will not be."""

    strategy_type: str
    description: str
    implementation_steps: list[str]
    expected_limitations: list[str]


@dataclasses.dataclass
class UsableComponent:
    """One part of a model, loaded by itself. `reason` says why it is not usable, or what was found."""

    name: str
    info: ComponentInfo
    usable: bool
    reason: str


@dataclasses.dataclass
class AlternativeModel:
    """A model that could be used instead. `min_vram_mb`: under the registry's leanest plan; 0 is not known."""

    model_name: str
    reason: str
    min_vram_mb: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A part that can be tried: how, and with which files."""

    spec: ComponentSpec
    files: tuple[FileFact, ...]


def strategy_for(failed_pipeline: str, error: BaseException, model: str = "MODEL") -> FallbackStrategy:
    """Return what to do, by the kind of failure.

    Args:
        failed_pipeline: Its class, for the description.
        error: What ended it; any exception.
        model: What the commands name.
    """
    code = error.code if isinstance(error, WanCompatError) else _code_of(error)
    message = str(error) or type(error).__name__
    steps = [*getattr(error, "fixes", ()), *advise(code, message, Subject(model))]
    what = f"{failed_pipeline} failed: {message}"
    if code in (
        "memory_exceeded",
        "resource_exceeded",
        "disk_exceeded",
        "job_timeout",
        "phase_timeout",
        "deadline_exceeded",
    ):
        return FallbackStrategy(
            "reduced_functionality",
            f"{what}. A leaner plan, fewer frames or smaller ones may fit",
            [*steps, "decode in tiles (--vae-tiling), compute in bfloat16 (--precision bfloat16)"],
            [
                "smaller or shorter videos",
                "tiles can show seams, bfloat16 gives other pixels than float32",
                "offloading takes longer",
            ],
        )
    if code in ("encoding_failed", "ffmpeg_missing", "output_not_writable"):
        return FallbackStrategy(
            "reduced_functionality",
            f"{what}. The frames can be kept as pictures",
            steps or ["write pictures instead: --format png"],
            ["pictures take more room than a video, and have no sound"],
        )
    if code in ("model_not_compatible", "remote_code_refused", "trust_refused", "pickle_refused", "model_not_found"):
        return FallbackStrategy(
            "alternative_model",
            f"{what}. Another model does the same without what is refused or missing here",
            steps or ["see which models run here: FallbackHandler.suggest_alternative_models"],
            ["another model makes other videos from the same prompt and seed"],
        )
    return FallbackStrategy(
        "component_isolation",
        f"{what}. Each part is loaded by itself, which tells the broken ones from those that can be used",
        [*steps, f"load each part by itself: wan-compat diagnose {model} --parts"],
        ["sound parts make no video by themselves: the broken ones must be replaced from a like repository"],
    )


def candidates(
    facts: ModelFacts, components: Mapping[str, Component], memory_limit_bytes: int
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """Return the parts that can be tried, and why the others cannot."""
    found: dict[str, Candidate] = {}
    hopeless: dict[str, str] = {}
    for name, part in sorted(components.items()):
        kind = KNOWN_CLASSES.get((part.library or "", part.class_name or ""))
        if part.is_custom:
            hopeless[name] = f"its class {part.class_name or ''} is the repository's own, which is not run here"
        elif kind is None:
            hopeless[name] = f"no pipeline that runs here takes a {part.library or '?'}.{part.class_name or '?'}"
        else:
            try:
                files = admit_component(facts, name, kind)
            except (ModelInvalid, PickleRefused) as error:
                hopeless[name] = error.message
                continue
            bytes_in_full = part.parameters * 4
            dtype = "float32" if bytes_in_full <= memory_limit_bytes * 0.7 else "bfloat16"
            found[name] = Candidate(
                ComponentSpec.model_validate(
                    {
                        "name": name,
                        "library": part.library,
                        "class_name": part.class_name,
                        "subfolder": name,
                        "dtype": dtype if kind in _WEIGHTY else None,
                        "source": facts.sources.get(name),
                    },
                    strict=False,
                ),
                tuple(files),
            )
    return found, hopeless


def _code_of(error: BaseException) -> str:
    """Return our code for what another library raised."""
    if isinstance(error, MemoryError) or "outofmemory" in type(error).__name__.lower():
        return "memory_exceeded"
    if "out of memory" in str(error).lower():
        return "memory_exceeded"
    return "environment_lacks" if isinstance(error, ImportError) else "unknown"


def info_of(part: Component) -> ComponentInfo:
    return ComponentInfo(part.class_name or "", part.config_path or "", part.weight_path or "", part.is_custom)


def alternatives(
    target: str, models: Mapping[str, RegistryEntry], *, vram_mb: int, ram_mb: int
) -> tuple[AlternativeModel, ...]:
    """Return models of a registry that do what `target` does and fit, the largest that fit first.

    Args:
        target: An architecture type (`wan_i2v`), a variant's slug, or a capability (`image_to_video`).
        vram_mb, ram_mb: What a worker may have; without a GPU (0), weights must fit into main memory.
    """
    wanted = _capabilities(target)
    found: list[tuple[int, AlternativeModel]] = []
    for name, entry in models.items():
        variant = VARIANTS.get(entry.variant or "")
        if entry.pipeline_class is None or variant is None or name == target or entry.variant == target:
            continue
        shared = [capability for capability in variant.capabilities if capability in wanted]
        if not shared:
            continue
        least = entry.vram_requirements.min_mb or 0
        weights = sum(entry.bytes.values()) // 1_000_000
        if vram_mb:
            fits, where = least <= vram_mb, f"needs {least} MB of GPU memory with plan {entry.vram_requirements.plan}"
        else:
            fits, where = 0 < weights <= ram_mb * 0.8, f"has {weights} MB of weights, which fit into main memory"
        if fits:
            words = shared[0].replace("_", " ")
            found.append((weights, AlternativeModel(name, f"does {words} with {entry.pipeline_class}; {where}", least)))
    found.sort(key=lambda item: (-item[0], item[1].model_name))
    return tuple(model for _, model in found[:MAX_ALTERNATIVES])


def _capabilities(target: str) -> frozenset[str]:
    if target in VARIANTS:
        return frozenset(VARIANTS[target].capabilities[:1])
    of_type: Iterable[tuple[str, ...]] = (
        variant.capabilities[:1] for variant in VARIANTS.values() if variant.architecture_type == target
    )
    return frozenset(name for names in of_type for name in names) or frozenset({target})
