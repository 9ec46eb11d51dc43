"""What a broken model_index.json should say, from the parts that lie beside it. A proposal; supervisor/repair.py acts.

Only classes of our own lists are ever written: a configuration that names another class cannot get it into an index.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.detection.classes import DIFFUSERS_TRANSFORMERS
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.findings import Finding, Severity
from wan_compat.policies.judgement.parts import TOKENIZER_FILES, files_in
from wan_compat.policies.pipelines import ADMITTED_CLASSES
from wan_compat.policies.variants import VARIANTS
from wan_compat.protocol.errors import clean_text

INDEX = "model_index.json"
MAX_DIFF_LINES = 200

# Findings about the index itself that a rebuilt one does not have.
_REBUILD = frozenset(
    {"model_index_corrupt", "model_index_missing", "wrong_type", "out_of_range", "component_missing", "json_corrupt"}
)
_REQUIRED = ("scheduler", "text_encoder", "tokenizer", "vae", "transformer")
_OPTIONAL = ("image_encoder", "image_processor", "transformer_2")

_KNOWN: Mapping[str, tuple[str, frozenset[str]]] = {
    **{name: (library, frozenset(classes)) for name, (library, classes) in ADMITTED_CLASSES.items()},
    "transformer": ("diffusers", frozenset(DIFFUSERS_TRANSFORMERS)),
    "transformer_2": ("diffusers", frozenset(DIFFUSERS_TRANSFORMERS)),
    "image_encoder": ("transformers", frozenset({"CLIPVisionModel", "CLIPVisionModelWithProjection"})),
    "image_processor": ("transformers", frozenset({"CLIPImageProcessor", "CLIPImageProcessorFast"})),
}
# What a configuration may leave out because only one class is meant.
_IMPLIED = {
    ("text_encoder", "umt5"): "UMT5EncoderModel",
    ("image_encoder", "clip_vision_model"): "CLIPVisionModel",
}
# Where the high-noise expert hands over to the low-noise one (scripts/convert_wan_to_diffusers.py of diffusers).
_BOUNDARY = {"wan_t2v": 0.875, "wan_i2v": 0.9, "wan_vace": 0.875}
_TAKE_BOUNDARY = frozenset({"WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline"})
_VERSION = re.compile(r"\d{1,3}(\.\d{1,3}){1,3}(\.dev\d{1,3})?")


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A model_index.json that the parts fit. `changes` say in words what is different and why."""

    document: Mapping[str, Any]
    changes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The file in diffusers' form: two spaces, keys in order where it is new."""
        return json.dumps(self.document, indent=2, ensure_ascii=False) + "\n"


def propose_repair(facts: ModelFacts, architecture: Architecture, findings: Iterable[Finding]) -> Proposal | None:
    """Return what would mend the index; None where nothing is wrong with it or the parts do not tell how."""
    if facts.is_file or not architecture.is_wan or architecture.layout not in ("diffusers", "component", "unknown"):
        return None
    wrong = [item for item in findings if item.severity is Severity.ERROR]
    about_index = [item for item in wrong if item.path == INDEX]
    if [item.code for item in about_index] == ["json_byte_order_mark"]:
        return Proposal(facts.index, ("the byte order mark at the start of the file goes",))
    if any(item.code in _REBUILD or item.code.startswith("json_") for item in about_index):
        return rebuilt(facts, architecture)
    codes = {item.code for item in wrong}
    if "boundary_without_second_expert" in codes:
        old = facts.index.get("boundary_ratio")
        return Proposal(
            {**facts.index, "boundary_ratio": None},
            (f"boundary_ratio {old!r} becomes null: there is no second expert to switch to",),
        )
    if "second_expert_without_boundary" in codes and (ratio := _BOUNDARY.get(architecture.architecture_type)):
        return Proposal(
            {**facts.index, "boundary_ratio": ratio},
            (f"boundary_ratio becomes {ratio}, that of {architecture.variant}: else the second expert never runs",),
        )
    return None


def diff(before: str, proposal: Proposal) -> str:
    """Return a unified diff for a person, cleaned line by line: the old text is the repository's."""
    lines = difflib.unified_diff(
        [clean_text(line, 300) for line in before.splitlines()[: MAX_DIFF_LINES * 2]],
        proposal.text.splitlines(),
        fromfile=f"{INDEX} (as it is)",
        tofile=f"{INDEX} (repaired)",
        lineterm="",
    )
    kept = list(lines)
    rest = [f"... {len(kept) - MAX_DIFF_LINES} more lines"] if len(kept) > MAX_DIFF_LINES else []
    return "\n".join([*kept[:MAX_DIFF_LINES], *rest])


def rebuilt(facts: ModelFacts, architecture: Architecture) -> Proposal | None:
    """Return an index made of the parts alone; None where one lacks, or they do not tell which pipeline runs them."""
    parts = {name: pair for name in (*_REQUIRED, *_OPTIONAL) if (pair := _pair(facts, name)) is not None}
    if any(name not in parts for name in _REQUIRED) or architecture.pipeline_class is None:
        return None
    document: dict[str, Any] = {
        "_class_name": architecture.pipeline_class,
        "_diffusers_version": _version(facts, architecture),
        **{name: list(pair) for name, pair in parts.items()},
    }
    if architecture.pipeline_class in _TAKE_BOUNDARY:
        document["boundary_ratio"] = _BOUNDARY.get(architecture.architecture_type) if "transformer_2" in parts else None
        document.setdefault("transformer_2", [None, None])
    # Lucy-Edit is made of the 5B model, with the same VAE.
    if architecture.architecture_type == "wan_ti2v" or architecture.pipeline_class == "LucyEditPipeline":
        document["expand_timesteps"] = True
    return Proposal(
        dict(sorted(document.items())),
        (
            f"{INDEX} is rebuilt from {', '.join(sorted(parts))}",
            f"the pipeline is {architecture.pipeline_class}, as {architecture.variant or 'the transformer'} needs",
        ),
    )


def _pair(facts: ModelFacts, name: str) -> tuple[str, str] | None:
    """Return library and class of a component folder, from its own configuration."""
    inside = files_in(facts, name)
    library, known = _KNOWN[name]
    if name == "tokenizer":
        present = [file for file in TOKENIZER_FILES if file in inside]
        if not present or present[0] != "tokenizer.json":
            return (library, "T5Tokenizer") if present else None
        # What transformers 5 calls a tokenizer that is all in its tokenizer.json.
        plain = facts.configs.get(name, {}).get("tokenizer_class") == "TokenizersBackend"
        return library, "TokenizersBackend" if plain else "T5TokenizerFast"
    config = facts.configs.get(name)
    if config is None:
        return None
    named = [config.get("_class_name"), config.get("image_processor_type")]
    architectures = config.get("architectures")
    named += architectures[:1] if isinstance(architectures, list) else []
    named.append(_IMPLIED.get((name, str(config.get("model_type")))))
    return next(((library, item) for item in named if isinstance(item, str) and item in known), None)


def _version(facts: ModelFacts, architecture: Architecture) -> str:
    """Return the version that wrote the parts, else the first that can read them."""
    given = facts.configs.get("transformer", {}).get("_diffusers_version")
    if isinstance(given, str) and _VERSION.fullmatch(given):
        return given
    variant = VARIANTS.get(architecture.variant or "")
    return (variant.min_diffusers if variant else None) or "0.35.0"
