"""The parts of a pipeline as its index names them, and where their files must lie. Shared by all subjects."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.policies.model_index import is_absent, is_component_entry, reference

# `diffusion_pytorch_model-00002-of-00012.safetensors`; a variant stands behind the numbers or before them.
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<variant>\.\w+)?\.safetensors")
PICKLE = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle)", re.IGNORECASE)

# Under which stem each library looks for weights, and nowhere else.
WEIGHT_STEMS: Mapping[str, str] = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model")

# Parts without tensors, and the file that holds their settings.
_SETTINGS: Mapping[str, str] = {
    "scheduler": "scheduler_config.json",
    "image_processor": "preprocessor_config.json",
    "feature_extractor": "preprocessor_config.json",
    "video_processor": "preprocessor_config.json",
}
# Where no index says it: the parts of a pipeline that come from transformers.
_OF_TRANSFORMERS = frozenset({"text_encoder", "image_encoder", "tokenizer", "image_processor", "feature_extractor"})


@dataclasses.dataclass(frozen=True)
class Part:
    """One entry of the index. `elsewhere` is the reference of a modular index to another repository."""

    name: str
    library: str | None
    class_name: str | None
    elsewhere: Mapping[str, Any]

    @property
    def is_tokenizer(self) -> bool:
        return self.name.startswith("tokenizer")

    @property
    def settings_file(self) -> str:
        return _SETTINGS.get(self.name, "config.json")

    @property
    def has_weights(self) -> bool:
        return not self.is_tokenizer and self.name not in _SETTINGS and self.name != "processor"


def index_of(facts: ModelFacts) -> tuple[str, Mapping[str, Any]]:
    """Return path and content of the index that rules: model_index.json, else the modular one, else {}."""
    for path in ("model_index.json", "modular_model_index.json"):
        if path in facts.documents:
            return path, facts.documents[path]
    return "model_index.json", {}


def pipeline_class_of(facts: ModelFacts) -> str | None:
    """Return the pipeline class that the index names, None where it names none or something that is no name."""
    name = index_of(facts)[1].get("_class_name")
    return name if isinstance(name, str) else None


def parts_of(facts: ModelFacts, architecture: Architecture | None = None) -> dict[str, Part]:
    """Return the parts that the index names and has. Without a usable index, those that detection found as folders."""
    _, index = index_of(facts)
    found: dict[str, Part] = {}
    for name, entry in index.items():
        if not name.startswith("_") and is_component_entry(entry) and not is_absent(entry):
            # A part whose files are here is taken from here, whatever the index says besides: so does diffusers.
            here = bool(files_in(facts, name)) and reference(entry).get("subfolder") in (None, "", name)
            found[name] = Part(name, entry[0], entry[1], {} if here else elsewhere_of(entry, facts))
    if not index and architecture is not None and architecture.layout in ("diffusers", "modular"):
        for name, component in architecture.components.items():
            if files_in(facts, name):
                library = component.library or ("transformers" if name in _OF_TRANSFORMERS else "diffusers")
                found[name] = Part(name, library, component.class_name, {})
    return found


def elsewhere_of(entry: list[Any], facts: ModelFacts) -> Mapping[str, Any]:
    """Return the reference of a modular entry if it leads to another repository than the one at hand."""
    given = reference(entry)
    repository = repository_named(given)
    return given if repository and repository != facts.repository else {}


def repository_named(given: Mapping[str, Any]) -> str | None:
    for key in ("pretrained_model_name_or_path", "repo"):
        value = given.get(key)
        if isinstance(value, str) and value:
            return value
    return None


def files_in(facts: ModelFacts, folder: str) -> dict[str, FileFact]:
    """Return the files right inside a folder by their bare names; `""` is the model's own folder."""
    prefix = f"{folder}/" if folder else ""
    return {
        path[len(prefix) :]: fact
        for path, fact in facts.files.items()
        if path.startswith(prefix) and "/" not in path[len(prefix) :]
    }


def loadable_weights(files: Mapping[str, FileFact], library: str | None) -> dict[str, FileFact]:
    """Return those files of a part that its library would open: the right stem, safetensors, no variant."""
    stem = WEIGHT_STEMS.get(library or "diffusers", "model")
    return {
        name: fact
        for name, fact in files.items()
        if name == f"{stem}.safetensors"
        or ((shard := SHARD.fullmatch(name)) is not None and shard["stem"] == stem and shard["variant"] is None)
    }


def folders(facts: ModelFacts) -> Iterator[str]:
    """Yield every folder that holds a file, the model's own as `""`."""
    yield from dict.fromkeys(path.rpartition("/")[0] for path in sorted(facts.files))


def several(names: list[str], limit: int = 3) -> str:
    """Return the first few names and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def counted(number: int, noun: str) -> str:
    """Return `1 file`, `2 files`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
