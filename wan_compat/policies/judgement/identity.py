"""What the model turned out to be, and whether any pipeline does the task with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.detection.classes import MODULAR_PIPELINES
from wan_compat.policies.detection.traits import Traits
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.findings import Finding, finding
from wan_compat.policies.judgement.parts import index_of, pipeline_class_of, several
from wan_compat.policies.model_fit import weights_of_class
from wan_compat.policies.pipelines import ways_of
from wan_compat.policies.registry_document import RegistryEntry
from wan_compat.policies.variants import VARIANTS, Variant

# Task -> the capabilities of which a model needs one.
TASKS: Mapping[str, tuple[str, ...]] = {
    "t2v": ("text_to_video",),
    "i2v": ("image_to_video",),
    "flf2v": ("first_last_frame_to_video",),
    "v2v": ("video_to_video",),
    "vace": ("video_control",),
    "ti2v": ("text_to_video", "image_to_video"),
    "animate": ("character_animation",),
    "edit": ("image_editing", "video_editing"),
    "t2i": ("text_to_video",),  # one frame of it; no Wan checkpoint makes images only
}
# Pipelines by task, where a model has several: `also_loads_as` of detection names them in no order.
_TASK_CLASSES: Mapping[str, str] = {"i2v": "WanImageToVideoPipeline", "v2v": "WanVideoToVideoPipeline"}


@dataclasses.dataclass(frozen=True)
class TaskAnswer:
    """Whether a model does a task, with which class of diffusers, and why not. `alternatives` are repositories."""

    task: str
    supported: bool
    pipeline_class: str | None
    reason: str
    alternatives: tuple[str, ...]


def judge_identity(
    facts: ModelFacts,
    architecture: Architecture,
    traits: Mapping[str, Traits],
    entry: RegistryEntry | None = None,
) -> Iterator[Finding]:
    """Yield what detection found, where it is not simply a Wan model with its pipeline."""
    told = [item for item in architecture.evidence if item.source != "files"]
    evidence = "; ".join(f"{item.fact} ({item.source})" for item in told[:3])
    if architecture.is_wan is False:
        what = architecture.architecture_type
        name = "another family" if what in ("unknown", "wan_family") else what.replace("_", " ")
        why = f": {told[-1].fact} ({told[-1].source})" if told else ""  # what decided was said last
        yield finding("not_wan", f"this is not a Wan model but {name}{why}")
        return
    if architecture.is_wan is None:
        roles = sorted({part.role.replace("_", " ") for part in traits.values() if part.role not in ("other", "lora")})
        if roles:
            message = f"no whole model, only a part: {several(roles)}"
            yield finding("not_runnable_yet", message, fix="give the model's own folder")
            if architecture.layout == "single_file" and all(role.endswith("encoder") for role in roles):
                message = "transformers loads a model from its folder with config.json, not from one file"
                yield finding("layout_not_diffusers", message, fix="use the component's folder of a whole repository")
        elif facts.documents or facts.weights:
            yield finding(
                "unknown_architecture", f"nothing here says what it is: {evidence or 'no denoiser was found'}"
            )
        return
    if architecture.candidates:
        yield finding(
            "ambiguous_variant",
            f"the files fit {', '.join(architecture.candidates)}; {architecture.variant} is taken",
        )
    yield from _pipeline(facts, architecture, entry)


def _pipeline(facts: ModelFacts, architecture: Architecture, entry: RegistryEntry | None) -> Iterator[Finding]:
    if architecture.pipeline_class is None:
        variant = VARIANTS.get(architecture.variant or "")
        converted = architecture.layout not in ("diffusers", "modular") and variant and variant.pipeline_class
        modular = architecture.layout == "modular" and pipeline_class_of(facts) in MODULAR_PIPELINES
        if architecture.layout == "lora" or converted or modular:
            return  # the layout is what stands between, or a modular pipeline runs it
        others = alternatives(architecture.capabilities, architecture)
        if entry is not None and entry.alternative is not None and entry.alternative.model is not None:
            others = (entry.alternative.model,)
        yield finding(
            "no_pipeline",
            f"diffusers has no pipeline for {architecture.variant or architecture.architecture_type} "
            f"({', '.join(architecture.capabilities) or 'no known task'})",
            fix=f"use {', or '.join(others)}" if others else "use the program of its authors",
        )
        return
    named = pipeline_class_of(facts)
    if named is None or named in (architecture.pipeline_class, *architecture.also_loads_as):
        return
    if any(variant.pipeline_class == named or named in variant.also_loads_as for variant in VARIANTS.values()):
        yield finding(
            "pipeline_mismatch",
            f"{index_of(facts)[0]} names {named}, the transformer is "
            f"{architecture.variant or architecture.architecture_type}'s, which runs in "
            f"{architecture.pipeline_class}",
            path=index_of(facts)[0],
        )


def answer_task(task: str, architecture: Architecture) -> TaskAnswer:
    """Say whether the model does `task`, one of TASKS."""
    wanted = TASKS[task]
    name = architecture.variant or architecture.architecture_type
    kind = weights_of_class(architecture.pipeline_class)
    if kind is not None:  # of a class that runs nothing else: the same table answers as for `generate`
        ways = {way.task: way for way in ways_of(kind)}
        if task in ways:
            return TaskAnswer(task, True, ways[task].pipeline, f"{name} does {task}", ())
        return TaskAnswer(task, False, None, f"{name} does {', '.join(ways)}", models_for(task))
    able = any(capability in architecture.capabilities for capability in wanted)
    if task == "v2v" and "WanVideoToVideoPipeline" in architecture.also_loads_as:
        able = True  # a way to load a text-to-video model, no checkpoint of its own
    if task == "ti2v":
        able = all(capability in architecture.capabilities for capability in wanted)
    if not able:
        does = ", ".join(architecture.capabilities) or "nothing that is known"
        return TaskAnswer(task, False, None, f"{name} does {does}", models_for(task))
    preferred = _TASK_CLASSES.get(task)
    known = tuple(item for item in (architecture.pipeline_class, *architecture.also_loads_as) if item)
    if not known:
        reason = f"{name} does it, but diffusers has no pipeline for it"
        return TaskAnswer(task, False, None, reason, models_for(task))
    return TaskAnswer(task, True, preferred if preferred in known else known[0], f"{name} does {task}", ())


def judge_task(answer: TaskAnswer) -> Iterator[Finding]:
    if not answer.supported:
        fix = f"use {', or '.join(answer.alternatives)}" if answer.alternatives else "use another model"
        yield finding("task_not_supported", f"{answer.task} was asked for; {answer.reason}", fix=fix)


def models_for(task: str) -> tuple[str, ...]:
    """Return official repositories that do one of TASKS."""
    if task == "v2v":  # by the class that starts from a video; VACE, which is led by one, is another task's
        through = (item for item in VARIANTS.values() if "WanVideoToVideoPipeline" in item.also_loads_as)
        return tuple(item.repository for item in through if item.repository)[:2]
    return alternatives(TASKS[task], None)


def alternatives(capabilities: tuple[str, ...], like: Architecture | None) -> tuple[str, ...]:
    """Return official repositories with a pipeline for one of these capabilities, the same generation first; relatives'
    where Wan has none of its own, one for each capability."""

    def rank(variant: Variant) -> tuple[bool, int]:
        return (like is not None and variant.version != like.version, -variant.experts)

    runnable = [variant for variant in VARIANTS.values() if variant.pipeline_class and variant.repository]
    own = [item for item in runnable if item.pipeline_class and item.pipeline_class.startswith("Wan")]
    able = sorted((item for item in own if set(capabilities[:1]) & set(item.capabilities)), key=rank)[:2]
    if not able:
        found = (next((item for item in runnable if one in item.capabilities), None) for one in capabilities)
        able = [item for item in found if item is not None]
    return tuple(item.repository for item in able if item.repository)
