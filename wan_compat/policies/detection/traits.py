"""The parts of a model as found, each with what its header says beside what its configuration says.

A part is a component folder, or one weight file where files lie loose. `Traits` keeps both voices apart, so that
whoever judges can report where they disagree; `Traits.size` answers with the header's word where it has one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from wan_compat.policies.detection.classes import (
    KIND_OF_CLASS,
    KNOWN_LIBRARIES,
    LOOK_ALIKE_LIBRARIES,
    OTHER_TRANSFORMERS,
    Role,
    family_of_class,
    role_of_class,
)
from wan_compat.policies.detection.configs import ConfigTraits, read_config, text_of
from wan_compat.policies.detection.foreign_headers import GENERIC
from wan_compat.policies.detection.headers import HeaderTraits, read_headers
from wan_compat.policies.facts import CONFIG_NAMES, ModelFacts, TensorFact
from wan_compat.protocol.errors import clean_text

MAX_PARTS = 100  # no model has twenty components
_SHARD = re.compile(r"(.*?)-?\d{5}-of-\d{5}$")
_WEIGHT_FILES = (".safetensors", ".sft", ".gguf", ".bin", ".pth", ".pt", ".ckpt", ".flashpack")
_INDEXES = ("model_index.json", "modular_model_index.json")

Size = Literal[
    "dim",
    "in_channels",
    "out_channels",
    "num_layers",
    "ffn_dim",
    "text_dim",
    "image_dim",
    "vace_layers",
    "z_dim",
    "base_dim",
]
_SIZES: tuple[Size, ...] = get_args(Size)


@dataclasses.dataclass(frozen=True)
class IndexEntry:
    """One component of an index. `reference` is the repository that a modular index fetches it from."""

    library: str | None
    class_name: str | None
    reference: str | None = None


@dataclasses.dataclass(frozen=True)
class Traits:
    """One part of a model. `name` is the component's: its folder, or its role where it is a loose file.

    `weight_paths` are the files that `header` was read from; `files` all weight files, pickles included.
    """

    name: str
    entry: IndexEntry | None
    config: ConfigTraits | None
    header: HeaderTraits | None
    config_path: str | None
    weight_paths: tuple[str, ...]
    files: tuple[str, ...] = ()

    @property
    def library(self) -> str | None:
        return None if self.entry is None else self.entry.library

    @property
    def class_name(self) -> str | None:
        """The class: the configuration's if it is known, since it was written with its fields, else the index's."""
        if self.config is not None and self.config.class_name is not None:
            return self.config.class_name
        return None if self.entry is None else self.entry.class_name

    @property
    def is_foreign(self) -> bool:
        """Whether the index takes its class from a library that is neither diffusers nor transformers."""
        return self.library is not None and self.library not in KNOWN_LIBRARIES

    @property
    def is_custom(self) -> bool:
        """Whether it needs code that diffusers and transformers do not have."""
        # The index's class is the one that diffusers would import, whatever the configuration was saved as.
        foreign_class = self.entry is not None and self.entry.class_name in OTHER_TRANSFORMERS
        return self.is_foreign or foreign_class or (self.config is not None and self.config.has_code)

    @property
    def role(self) -> Role:
        """What it is for: the header knows best, then the configuration, then the index."""
        if self.header is not None and self.header.role != "other":
            return self.header.role
        if self.config is not None and self.config.role != "other":
            return self.config.role
        known = role_of_class(self.class_name)
        if known is not None:
            return known
        # A denoiser of nobody's known class is still a denoiser: `transformer` is what diffusers calls it.
        if self.name.split(".")[0] in ("transformer", "transformer_2", "unet", "dit") and self.class_name is not None:
            return "denoiser"
        return "other"

    @property
    def family(self) -> str | None:
        """ "wan" for Wan and relatives, another family's name, None where nothing tells. Never by the name alone."""
        if self.library is not None and (name := LOOK_ALIKE_LIBRARIES.get(self.library.split(".")[0])) is not None:
            return name
        named = family_of_class(self.class_name)
        if self.header is not None and self.header.family is not None:
            # The class may know the name of what the header only knows not to be Wan.
            return named if self.header.family == GENERIC and named not in (None, "wan") else self.header.family
        if self.is_foreign:
            return f"{clean_text(self.library or '', 60)} (foreign code)"
        if named is None and self.config is not None and self.config.role == "denoiser":
            return "wan" if self.config.has_wan_fields or self.config.class_name is None else None
        return named

    def size(self, name: Size) -> int | None:
        """Return a size by the header, else by the configuration."""
        value = None if self.header is None else getattr(self.header, name)
        if value is None and self.config is not None:
            value = getattr(self.config, name)
        return value if isinstance(value, int) else None

    def is_assumed(self, name: Size) -> bool:
        """Whether a size is only what the class would fill in."""
        if self.config is None or (self.header is not None and getattr(self.header, name) is not None):
            return False
        spelled = {
            "dim": ("num_attention_heads", "attention_head_dim", "dim"),
            "in_channels": ("in_channels", "in_dim"),
        }
        spelled["out_channels"] = ("out_channels", "out_dim")
        return any(field in self.config.assumed for field in spelled.get(name, (name,)))

    def feature(self, name: str) -> bool | None:
        """Whether the denoiser has a part such as `image_embedder`; None where nothing tells."""
        if self.header is not None and self.header.family == "wan":
            if name in self.header.features:
                return True
            # How robot policies name their layers is not known, so that their absence proves nothing.
            if self.header.has_ends and name != "action":
                return False
        if self.config is not None:
            if name in self.config.features:
                return True
            if name in self.config.silent:
                return False
        return None

    def disagreements(self) -> Iterator[tuple[str, int, int]]:
        """Yield size, configuration's value and header's value wherever the two differ."""
        if self.config is None or self.header is None or self.config.role != self.header.role:
            return
        for name in _SIZES:
            said, found = getattr(self.config, name), getattr(self.header, name)
            if isinstance(said, int) and isinstance(found, int) and said != found:
                yield name, said, found

    @property
    def kind(self) -> str:
        """What sort of Wan denoiser: `wan`, `vace`, `animate`, `skyreels`, ... (the rows of rules.py)."""
        return _kind(self)


def traits_of(facts: ModelFacts) -> Mapping[str, Traits]:
    """Return the parts of a model by name, those of the index first. Never raises, whatever the facts hold."""
    found: dict[str, Traits] = {}
    for part in _parts(facts):
        if len(found) >= MAX_PARTS:
            break
        own = name = clean_text(part.name, 80)
        number = 1
        while name in found:
            number += 1
            name = f"{own}.{number}"
        found[name] = dataclasses.replace(part, name=name)
    return found


def index_of(facts: ModelFacts) -> tuple[str | None, Mapping[str, Any]]:
    """Return the name and content of model_index.json or modular_model_index.json, (None, {}) without any."""
    for name in _INDEXES:
        document = facts.documents.get(name)
        if isinstance(document, Mapping):
            return name, document
    return None, {}


def entries_of(index: Mapping[str, Any]) -> dict[str, IndexEntry]:
    """Return the components that an index names. `[null, null]` is an absence, a dictionary behind it a reference."""
    found: dict[str, IndexEntry] = {}
    for name, value in index.items():
        if not isinstance(name, str) or name.startswith("_") or len(found) >= MAX_PARTS:
            continue
        if not isinstance(value, list | tuple) or len(value) < 2:
            continue
        library, class_name, reference = text_of(value[0]), text_of(value[1]), None
        if len(value) > 2 and isinstance(value[2], Mapping):
            spec = value[2]
            reference = text_of(spec.get("pretrained_model_name_or_path")) or text_of(spec.get("repo"))
            hint = spec.get("type_hint")
            if library is None and class_name is None and isinstance(hint, list | tuple) and len(hint) >= 2:
                library, class_name = text_of(hint[0]), text_of(hint[1])
        if library is not None or class_name is not None:
            found[clean_text(name, 80)] = IndexEntry(library, class_name, reference)
    return found


def _parts(facts: ModelFacts) -> Iterator[Traits]:
    entries = entries_of(index_of(facts)[1])
    configs = _configs(facts)
    weights, files = _weights_by_folder(facts)
    folders = [*entries, *(folder for folder in sorted({*configs, *weights, *files}) if folder not in entries)]
    for folder in folders:
        entry, config_path = entries.get(folder), configs.get(folder)
        config = facts.documents[config_path] if config_path is not None else None
        named = None if entry is None else entry.class_name
        read = None if config is None else read_config(config, named)
        whole_folder = entry is not None or (folder != "" and config is not None)
        headers = list(_headers(facts, weights.get(folder, ()), whole_folder))
        name = folder.rpartition("/")[2]
        if not headers:
            if entry is not None or config is not None or files.get(folder):
                role = read.role if read is not None and not folder else None
                yield Traits(
                    name or _NAMES.get(role or "other", "model"),
                    entry,
                    read,
                    None,
                    config_path,
                    (),
                    files.get(folder, ()),
                )
            continue
        for position, (paths, header) in enumerate(headers):
            # The configuration describes the denoiser (or the only thing there is), not what lies beside it.
            first = position == 0 if whole_folder or read is None else _belongs(read, header, len(headers))
            yield Traits(
                name if whole_folder else _NAMES.get(header.role, "model"),
                entry if first else None,
                read if first else None,
                header,
                config_path if first else None,
                paths,
                files.get(folder, ()) if whole_folder else paths,
            )


# What a loose file is called by what it holds.
_NAMES: Mapping[str, str] = {
    "denoiser": "transformer",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "image_encoder": "image_encoder",
    "audio_encoder": "audio_encoder",
    "lora": "lora",
}


def _belongs(config: ConfigTraits, header: HeaderTraits, count: int) -> bool:
    return config.role == header.role or (count == 1 and header.role == "other")


def _configs(facts: ModelFacts) -> dict[str, str]:
    """Return the path of each folder's configuration."""
    found: dict[str, str] = {}
    for name in CONFIG_NAMES:
        for path, document in facts.documents.items():
            folder, _, file = path.rpartition("/")
            if file == name and isinstance(document, Mapping) and (folder or name == "config.json"):
                found.setdefault(folder, path)
    # google/umt5-xxl of the original layout holds a tokenizer, not a component.
    return {folder: path for folder, path in found.items() if folder.count("/") < 2}


def _weights_by_folder(facts: ModelFacts) -> tuple[dict[str, list[str]], dict[str, tuple[str, ...]]]:
    weights: dict[str, list[str]] = {}
    for path in sorted(facts.weights):
        weights.setdefault(path.rpartition("/")[0], []).append(path)
    files: dict[str, list[str]] = {}
    for path in sorted(facts.files):
        if path.endswith(_WEIGHT_FILES):
            files.setdefault(path.rpartition("/")[0], []).append(path)
    return weights, {folder: tuple(paths) for folder, paths in files.items()}


def _headers(
    facts: ModelFacts, paths: list[str] | tuple[str, ...], whole_folder: bool
) -> Iterator[tuple[tuple[str, ...], HeaderTraits]]:
    """Yield what the weight files of a folder are: shards together, and all of a component's folder together."""
    groups: dict[str, list[str]] = {}
    for path in paths[: MAX_PARTS * 10]:
        stem = path.rpartition(".")[0]
        shard = _SHARD.fullmatch(stem)
        groups.setdefault("" if whole_folder else shard[1] if shard else stem, []).append(path)
    for group in groups.values():
        tensors: dict[str, TensorFact] = {}
        metadata: dict[str, Any] = {}
        for path in group:
            file = facts.weights[path]
            metadata.update(file.metadata)
            if not tensors:
                tensors = dict(file.tensors)
            else:
                for name, tensor in file.tensors.items():
                    tensors.setdefault(name, tensor)
        for header in read_headers(tensors, metadata):
            yield tuple(group), header


_HEADER_KINDS = (
    ("vace", "vace"),
    ("animate", "animate"),
    ("s2v", "s2v"),
    ("humo", "humo"),
    ("audio", "audio"),
    ("action", "action"),
    ("far", "anyflow_far"),
    ("delta", "anyflow"),
    ("helios", "helios"),
    ("camera", "camera"),
    ("ref_conv", "control"),
    ("fps", "skyreels"),
)
# Kinds whose tensors are named as the plain transformer's: only the class tells.
_BY_CLASS_ALONE = frozenset({"skyreels", "chronoedit", "krea", "causal"})


def _kind(traits: Traits) -> str:
    by_class = KIND_OF_CLASS.get(traits.class_name or "", "wan")
    if traits.header is not None and traits.header.key_style in ("animate2", "animate2_original"):
        return "animate2"
    for feature, kind in _HEADER_KINDS:
        if traits.feature(feature):
            # A class that is more special than the feature keeps its own name.
            return by_class if by_class in ("anyflow_far", "s2v") and kind in ("anyflow", "audio") else kind
    if (
        by_class in _BY_CLASS_ALONE
        or traits.header is None
        or not traits.header.has_ends
        or traits.header.family != "wan"
    ):
        return by_class
    return "wan"
