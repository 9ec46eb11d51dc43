"""A model as a user names it: a folder, or single files and a folder that has the rest; and what is laid over it.

Reads headers, nothing else.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.models import ModelDecision
from wan_compat.protocol.errors import InvalidRequest, ModelNotFound
from wan_compat.protocol.values import GenerationRequest, LoraRequest
from wan_compat.supervisor.inspection import read_facts, read_model
from wan_compat.supervisor.model_environment import environment_of

# The parts for which a file can be given, as the fields of a request are called.
SINGLE_FILES = ("transformer", "transformer_2", "vae", "text_encoder", "image_encoder")


@dataclasses.dataclass(frozen=True)
class Parts:
    """What was given beside the model itself: a folder for what it lacks, a file for each of some parts, LoRAs, and
    which parts are made smaller."""

    components: str | None = None
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    loras: tuple[LoraRequest, ...] = ()
    quantize: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.is_composed or bool(self.loras or self.quantize)

    @property
    def is_composed(self) -> bool:
        return self.components is not None or bool(self.files)


def parts_of(request: GenerationRequest) -> Parts:
    """Return the parts that a request names."""
    files = {name: path for name in SINGLE_FILES if (path := getattr(request, name)) is not None}
    return Parts(request.components, files, request.loras, request.quantize)


def read_parts(model: str, parts: Parts) -> tuple[ModelFacts, tuple[str, ...]]:
    """Return the facts of a model and its parts, as of one folder, and how they were put together.

    Raises:
        InvalidRequest: Parts are missing, or are not what they were given for.
        ModelNotFound, ModelUnreadable, ModelInvalid, ModelNotCompatible, PickleRefused: As `read_model` and `compose`.
    """
    if not parts.is_composed and not os.path.isfile(model):
        return read_model(model), ()
    # Here and not above: most jobs are of a folder, and compare no tables of names.
    # Here and not above: most jobs are of a folder, and compare no tables of names.
    from wan_compat.policies.sources.compose import Given, compose

    itself = read_facts(model)
    is_folder = "model_index.json" in itself.files or "modular_model_index.json" in itself.files
    if is_folder and parts.components is not None:
        raise InvalidRequest(
            f"{model} is a whole model, and --components {parts.components} is another one",
            hint="leave --components out, or give the single file that is meant as the model",
        )
    given = [] if is_folder else [Given(itself, "the file" if itself.is_file else "the folder")]
    given += [Given(read_facts(path), f"--{name.replace('_', '-')}", name) for name, path in parts.files.items()]
    folder = model if is_folder else parts.components
    base = None if folder is None else read_model(folder)
    composed = compose(base, given)
    return composed.facts, composed.reasons


def lay_over(decision: ModelDecision, facts: ModelFacts, model: str, parts: Parts) -> ModelDecision:
    """Return the decision with LoRAs and quantised parts, once it is known that this machine has what they need.

    Raises:
        EnvironmentLacks: A package is not installed, neither for all models nor for this one.
        InvalidRequest, ModelInvalid, ModelNotCompatible: As `with_loras` and `with_quantization`.
    """
    if not (facts.sources or parts):
        return decision
    from wan_compat.policies.sources.additions import require_formats, with_loras, with_quantization

    if facts.sources or parts.quantize:
        from wan_compat.policies.dependencies import ALLOWED
        from wan_compat.supervisor.installed import find_version

        environment = environment_of(model)
        site = environment.site if environment is not None else None
        names = [item.name for item in ALLOWED.values() if item.feature is not None]
        installed = {name for name in names if find_version(name) or (site and find_version(name, site))}
        require_formats(facts, model, installed)
        decision = with_quantization(decision, model, parts.quantize, installed)
    return with_loras(decision, facts, [(wanted, _lora_facts(wanted.path)) for wanted in parts.loras])


def _lora_facts(path: str) -> ModelFacts:
    if not os.path.lexists(path):
        raise ModelNotFound(f"the LoRA {path!r} is not there", hint="check the path that follows --lora")
    return read_facts(path)


def changes_of(model: ModelDecision) -> list[str]:
    """Return what of this a result must name: parts that are not their folder's own, and what changes pixels."""
    named = []
    for component in model.pipeline.components:
        if component.source is not None:
            named.append(f"{component.name}:{component.source.format}")
        if component.quantization is not None:
            named.append(f"{component.name}:{component.quantization.backend}-{component.quantization.kind}")
    return [*named, *(f"{lora.component}:lora" for lora in model.pipeline.loras)]
