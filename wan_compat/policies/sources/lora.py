"""What a LoRA adapts: each of its tensors matched with a layer of the model by name and shape, before a load.

    diffusion_model.blocks.0.self_attn.q.lora_down.weight       the original's names (ComfyUI, lightx2v)
    transformer.blocks.0.attn1.to_q.lora_A.weight               diffusers, PEFT
    lora_unet_blocks_0_self_attn_q.lora_down.weight             kohya, musubi-tuner

Beside the two matrices a layer may have `alpha` (its strength is alpha / rank), or `diff` and `diff_b`, whole
differences of weight and bias. What multiplies matrices in other ways (LoHa, LoKr, DoRA) is named and refused.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from wan_compat.policies.conversion import renames
from wan_compat.policies.detection.lora_bases import bases_of_lora
from wan_compat.policies.facts import ModelFacts, TensorFact
from wan_compat.policies.findings import Severity
from wan_compat.policies.sources.spelling import AnySize
from wan_compat.protocol.errors import InvalidRequest, ModelInvalid, ModelNotCompatible, clean_text
from wan_compat.protocol.results import LoraReport
from wan_compat.protocol.sources import MAX_ADAPTED, LoraLayer, LoraSpec, as_templates, looked_up, template_of
from wan_compat.protocol.values import LoraRequest

Tensors = Mapping[str, TensorFact]
Part = Literal["down", "up", "alpha", "difference", "bias_difference"]

MAX_NAMED = 20  # unmatched names in a report
_PREFIX = re.compile(r"(base_model\.model\.)?(model\.)?(diffusion_model\.|transformer_2\.|transformer\.|dit\.|unet\.)?")
_KOHYA = re.compile(r"lora_(unet|transformer|dit)_+")
_ENDINGS: tuple[tuple[re.Pattern[str], Part], ...] = (
    (re.compile(r"\.lora_(A|down)(\.\w+)?\.weight|\.lora\.down\.weight"), "down"),
    (re.compile(r"\.lora_(B|up)(\.\w+)?\.weight|\.lora\.up\.weight"), "up"),
    (re.compile(r"\.alpha"), "alpha"),
    (re.compile(r"\.diff"), "difference"),
    (re.compile(r"\.diff_b"), "bias_difference"),
)
_DIFFERENCES: Mapping[Part, str] = {"difference": ".weight", "bias_difference": ".bias"}
_OTHER_KINDS: Mapping[str, str] = {
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_blocks": "OFT",
}
# How authors name the files of Wan 2.2's pairs.
_EXPERT_IN_NAME = re.compile(r"(?<![a-z])(high|low)(?:[_-]?noise)?(?![a-z])", re.IGNORECASE)
_EXPERTS = {"high": "transformer", "low": "transformer_2"}


@dataclasses.dataclass(frozen=True)
class LoraMatch:
    """One LoRA on one transformer: what a worker is told, and what a user is; `numbers` is how many it has."""

    spec: LoraSpec
    report: LoraReport
    numbers: int


def match_lora(
    lora: ModelFacts, wanted: LoraRequest, place: str, experts: Mapping[str, Tensors]
) -> tuple[LoraMatch, ...]:
    """Match one file with the transformers that it is for.

    Args:
        lora: The facts of the file.
        place: Where it lies in the worker's view.
        experts: Transformer -> its tensors under diffusers' names.

    Raises:
        InvalidRequest: An expert that the model does not have.
        ModelInvalid: No LoRA, a broken one, or none of its layers is one of the model's.
        ModelNotCompatible: A kind of adapter that is not applied here.
    """
    tensors = _tensors_of(lora)
    matches = []
    for name in _experts_for(lora, wanted, tensors, experts):
        meant = _of_expert(tensors, name, experts)
        layers, unmatched = _match(lora.root, meant, experts[name])
        if not layers:
            raise ModelInvalid(
                f"no layer of the LoRA {lora.root} is one of the {name.replace('_', ' ')}: {_for_whom(tensors)}",
                hint="use a LoRA that was made for this model",
            )
        spec = LoraSpec(
            file=place,
            component=name,
            weight=wanted.weight,
            adapted=_as_layers(lora.root, layers, tensors),
            layers=len(layers),
        )
        report = LoraReport(
            path=lora.root,
            component=name,
            weight=wanted.weight,
            matched=len(layers),
            unmatched=len(unmatched),
            unmatched_names=[clean_text(item, 200) for item in unmatched[:MAX_NAMED]],
        )
        matches.append(LoraMatch(spec, report, sum(math.prod(tensor.shape) for tensor in meant.values())))
    return tuple(matches)


def _tensors_of(lora: ModelFacts) -> Tensors:
    for problem in lora.problems:
        if problem.severity is Severity.ERROR:
            raise problem.to_error(lora.root)
    files = list(lora.weights.values())
    if not lora.is_file or len(files) != 1 or files[0].format != "safetensors":
        raise ModelInvalid(
            f"{lora.root} is no LoRA in safetensors",
            hint="give one .safetensors file; a pickle can run code, and is opened for no LoRA",
        )
    for name in files[0].tensors:
        kind = next((kind for mark, kind in _OTHER_KINDS.items() if f".{mark}" in name), None)
        if kind is not None:
            raise ModelNotCompatible(
                f"{lora.root} is a {kind} ({clean_text(name, 120)!r}); what is applied here are plain LoRAs",
                hint="use a LoRA that was saved as lora_A and lora_B, or merge it into the model elsewhere",
            )
    return files[0].tensors


def _experts_for(
    lora: ModelFacts, wanted: LoraRequest, tensors: Tensors, experts: Mapping[str, Tensors]
) -> tuple[str, ...]:
    if len(experts) == 1:
        if wanted.expert is not None:
            raise InvalidRequest(
                f"--lora {lora.root}@{wanted.expert}: this model has one transformer",
                hint=f"leave @{wanted.expert} out",
            )
        return tuple(experts)
    if wanted.expert is not None:
        return (_EXPERTS[wanted.expert],)
    if any(name.startswith("transformer_2.") for name in tensors):
        return tuple(experts)
    named = {found.lower() for found in _EXPERT_IN_NAME.findall(lora.root.rpartition("/")[2])}
    return (_EXPERTS[named.pop()],) if len(named) == 1 else tuple(experts)


def _of_expert(tensors: Tensors, name: str, experts: Mapping[str, Tensors]) -> Tensors:
    """Return those tensors that a file with both experts has for this one."""
    second = {key: tensor for key, tensor in tensors.items() if key.startswith("transformer_2.")}
    if not second or len(experts) == 1:
        return tensors
    return second if name == "transformer_2" else {key: tensor for key, tensor in tensors.items() if key not in second}


Layers = dict[str, dict[Part, str]]  # layer of the model -> part -> name in the file


def _match(where: str, tensors: Tensors, model: Tensors) -> tuple[Layers, list[str]]:
    """Return the adapted layers, and the names in the file that belong to none."""
    known = _spellings_of(model)
    layers: Layers = {}
    unmatched: list[str] = []
    for name in tensors:
        module, part = _taken_apart(name)
        layer = known.get(module) if part is not None else None
        if layer is None or part is None or part in layers.get(layer, {}):
            unmatched.append(name)
        else:
            layers.setdefault(layer, {})[part] = name
    for layer in list(layers):
        parts = layers[layer]
        if ("down" in parts) != ("up" in parts) or not {"down", "difference", "bias_difference"} & parts.keys():
            unmatched += parts.values()
            del layers[layer]
        else:
            _check_shapes(where, layer, {part: tensors[name] for part, name in parts.items()}, model)
    return layers, unmatched


def _taken_apart(name: str) -> tuple[str, Part | None]:
    """Return the module that a tensor of the file is for, without prefix, and which part it is."""
    for pattern, part in _ENDINGS:
        for found in pattern.finditer(name):
            if found.end() == len(name):
                module = name[: found.start()]
                kohya = _KOHYA.match(module)
                if kohya is not None:
                    return module[kohya.end() :], part
                prefix = _PREFIX.match(module)
                return module[prefix.end() if prefix is not None else 0 :], part
    return name, None


def _spellings_of(model: Tensors) -> dict[str, str]:
    """Return every spelling of every layer -> the layer: diffusers', the original's, and both with underscores."""
    found: dict[str, str] = {}
    for name in model:
        layer = name.removesuffix(".weight").removesuffix(".bias")
        old = looked_up(name, _original_names()) or name
        for spelling in (layer, old.removesuffix(".weight").removesuffix(".bias")):
            found[spelling] = layer
            found[spelling.replace(".", "_")] = layer
    return found


@functools.cache
def _original_names() -> Mapping[str, str]:
    table = renames.transformer_renames(AnySize(), layers=1, vace_layers=2, image=True, image_positions=True)
    return as_templates((rename.new, rename.old) for rename in table)


def _check_shapes(where: str, layer: str, parts: Mapping[Part, TensorFact], model: Tensors) -> None:
    if "down" in parts:
        weight = model.get(f"{layer}.weight")
        down, up = parts["down"].shape, parts["up"].shape
        flat = len(down) >= 2 and len(up) >= 2 and math.prod(up[2:]) == 1 and up[1] == down[0]
        made = (up[0], math.prod(down[1:])) if flat else None
        if weight is None or made != (weight.shape[0], math.prod(weight.shape[1:])):
            raise ModelInvalid(
                f"the LoRA {where} has matrices of shapes {up} and {down} for {layer}, whose weight is "
                f"{weight.shape if weight is not None else 'not there'}",
                hint="use a LoRA that was made for a model of this size",
            )
    for part, tensor in parts.items():
        target = _changed_whole(part, layer, model)
        if part in _DIFFERENCES and (target is None or math.prod(target.shape) != math.prod(tensor.shape)):
            raise ModelInvalid(
                f"the LoRA {where} has a difference of shape {tensor.shape} for {layer}{_DIFFERENCES[part]}, which is "
                f"{target.shape if target is not None else 'not there'}",
                hint="use a LoRA that was made for a model of this size",
            )


def _changed_whole(part: Part, layer: str, model: Tensors) -> TensorFact | None:
    """Return the tensor that a whole difference is added to; a tensor without `.weight` is its own layer."""
    found = model.get(f"{layer}{_DIFFERENCES.get(part, '')}")
    return model.get(layer) if found is None and part == "difference" else found


def _for_whom(tensors: Tensors) -> str:
    """Say what the file seems to be for."""
    for name, tensor in tensors.items():
        module, part = _taken_apart(name)
        if part == "down" and re.search(r"(self_attn[._]q|attn1[._]to_q)$", module) and len(tensor.shape) >= 2:
            image = any("k_img" in other or "add_k_proj" in other for other in tensors)
            bases = bases_of_lora(tensor.shape[1], image=image)
            return f"its layers have width {tensor.shape[1]}{', as ' + ' or '.join(bases) if bases else ''}"
    some = ", ".join(clean_text(name, 80) for name in sorted(tensors)[:3])
    return f"it has {some} ..."


def _as_layers(where: str, layers: Layers, tensors: Iterable[str]) -> tuple[LoraLayer, ...]:
    """Return the layers as templates, where the file has nothing else that a template would take along."""
    all_of: dict[str, int] = {}
    for name in tensors:
        template = template_of(name)[0]
        all_of[template] = all_of.get(template, 0) + 1
    groups: dict[tuple[str, frozenset[tuple[Part, str]]], list[str]] = {}
    for layer, parts in layers.items():
        key = (template_of(layer)[0], frozenset((part, template_of(name)[0]) for part, name in parts.items()))
        groups.setdefault(key, []).append(layer)
    found: list[LoraLayer] = []
    for (target, parts_), members in groups.items():
        numbers = all(
            {template_of(name)[1] for name in (layer, *layers[layer].values())} == {template_of(layer)[1]}
            for layer in members
        )
        whole = all(all_of[template] == len(members) for _, template in parts_)
        if "*" in target and numbers and whole:
            found.append(LoraLayer(target=target, **dict(parts_)))
        else:
            found += (LoraLayer(target=layer, **layers[layer]) for layer in members)
    if len(found) > MAX_ADAPTED:
        raise ModelNotCompatible(
            f"{where} adapts {len(found)} layers that follow no pattern; at most {MAX_ADAPTED} of those are taken"
        )
    return tuple(found)
