"""What is laid over a decided model because a user asked for it: LoRAs, and weights in fewer bits.

Both change pixels; both are named in the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, cast

from wan_compat.policies.dependencies import ALLOWED, Feature
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.model_fit import EXPERTS
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.sources.lora import LoraMatch, match_lora
from wan_compat.protocol.errors import EnvironmentLacks, InvalidRequest, ModelNotCompatible
from wan_compat.protocol.sources import Quantization
from wan_compat.protocol.values import LoraRequest

Backend = Literal["bitsandbytes", "torchao", "quanto"]
QuantKind = Literal["int8", "int4", "nf4", "fp8"]

# Of these, diffusers lets bitsandbytes quantise on a GPU only.
_NEEDS_GPU: frozenset[Backend] = frozenset({"bitsandbytes"})
# The first that is installed and has the kind is taken, where no backend was named.
BACKENDS: Mapping[Backend, tuple[QuantKind, ...]] = {
    "torchao": ("int8", "fp8"),  # its int4 needs a kernel package that is for NVIDIA alone
    "quanto": ("int8", "int4", "fp8"),
    "bitsandbytes": ("int8", "nf4"),
}


def with_loras(
    decision: ModelDecision, facts: ModelFacts, loras: Iterable[tuple[LoraRequest, ModelFacts]]
) -> ModelDecision:
    """Return the decision with LoRAs: their files are admitted, and the worker is told what they adapt.

    Raises:
        As `match_lora`; ModelNotCompatible: A pipeline without one of Wan's transformers.
    """
    names = [component.name for component in decision.pipeline.components]
    experts = {name: facts.tensors.get(name, {}) for name in EXPERTS if name in names}
    matches: list[LoraMatch] = []
    admitted = list(decision.admitted)
    for number, (wanted, lora) in enumerate(loras, 1):
        if not experts:
            raise ModelNotCompatible(f"{facts.root} has no transformer that a LoRA could be for")
        place = f"loras/{number}.safetensors"
        matches += match_lora(lora, wanted, place, experts)
        admitted += (dataclasses.replace(fact, path=place) for fact in lora.files.values())
    if not matches:
        return decision
    numbers: dict[str, int] = {}
    for match in matches:
        numbers[match.spec.component] = numbers.get(match.spec.component, 0) + match.numbers
    return dataclasses.replace(
        decision,
        pipeline=decision.pipeline.model_copy(update={"loras": tuple(match.spec for match in matches)}),
        admitted=tuple(admitted),
        loras=tuple(match.report for match in matches),
        lora_numbers=numbers,
    )


def with_quantization(
    decision: ModelDecision, model: str, wanted: Mapping[str, str], installed: Collection[str]
) -> ModelDecision:
    """Return the decision with components whose weights are made smaller while they are loaded.

    Args:
        model: As the user named it, for what to install.
        wanted: Component -> `int8`, or `quanto:int8`.
        installed: Names of installed packages.

    Raises:
        InvalidRequest: A component that the model does not have, or whose weights are in a form of their own already.
        EnvironmentLacks: No backend that has the kind is installed.
    """
    found: dict[str, Quantization] = {}
    by_name = {component.name: component for component in decision.pipeline.components}
    for name, text in wanted.items():
        component = by_name.get(name)
        if component is None or component.dtype is None or name == "vae":
            able = ", ".join(item.name for item in by_name.values() if item.dtype is not None and item.name != "vae")
            raise InvalidRequest(f"--quantize {name}={text}: no such part can be made smaller", hint=f"it can: {able}")
        if component.source is not None or component.code is not None:
            raise InvalidRequest(
                f"--quantize {name}={text}: the {name} comes from a single file, or with code of its own",
                hint="give a file that is quantised already (GGUF, fp8), or a folder in diffusers layout",
            )
        backend, kind = _backend(name, text, model, installed, decision.pipeline.device)
        found[name] = Quantization(backend=backend, kind=kind)
    if not found:
        return decision
    components = tuple(
        component.model_copy(update={"quantization": found[component.name]}) if component.name in found else component
        for component in decision.pipeline.components
    )
    return dataclasses.replace(
        decision,
        pipeline=decision.pipeline.model_copy(update={"components": components}),
        reasons=(*decision.reasons, *(f"{name}: {item.kind} by {item.backend}" for name, item in found.items())),
    )


def require_formats(facts: ModelFacts, model: str, installed: Collection[str]) -> None:
    """Raise EnvironmentLacks where a component is a GGUF file and nothing installed reads it."""
    if any(source.format == "gguf" for source in facts.sources.values()) and "gguf" not in installed:
        raise EnvironmentLacks(
            f"{model} is a GGUF file, and the package gguf, which reads them, is not installed",
            hint=f"wan-compat install-deps {model} --with gguf",
        )


def _backend(name: str, text: str, model: str, installed: Collection[str], device: str) -> tuple[Backend, QuantKind]:
    named, _, kind_text = text.rpartition(":")
    kind = cast(QuantKind, kind_text)
    able = [backend for backend, kinds in BACKENDS.items() if kind in kinds and named in ("", backend)]
    if not able:
        raise InvalidRequest(
            f"--quantize {name}={text}: {named} makes no {kind}",
            hint=f"it makes {', '.join(BACKENDS[cast(Backend, named)])}",
        )
    able = [backend for backend in able if device != "cpu" or backend not in _NEEDS_GPU]
    if not able:
        raise EnvironmentLacks(
            f"--quantize {name}={text}: bitsandbytes makes it on an NVIDIA GPU only, where workers do not use it yet",
            hint=f"use --quantize {name}=int8 with torchao or quanto",
        )
    for backend in able:
        if _package(backend) in installed:
            return backend, kind
    raise EnvironmentLacks(
        f"--quantize {name}={text} needs {' or '.join(_package(backend) for backend in able)}, which is not installed",
        hint=f"wan-compat install-deps {model} --with {able[0]}",
    )


def _package(backend: Backend) -> str:
    return next(item.name for item in ALLOWED.values() if item.feature == Feature(backend))
