"""In which layout a model lies: what decides which loader could read it, if any."""

from __future__ import annotations

import re
from collections.abc import Mapping

from wan_compat.policies.architecture import Layout
from wan_compat.policies.detection.classes import KIND_OF_CLASS, OTHER_TRANSFORMERS
from wan_compat.policies.detection.configs import read_config, text_of
from wan_compat.policies.detection.traits import Traits
from wan_compat.policies.facts import ModelFacts

_EXPERT_FOLDERS = ("high_noise_model", "low_noise_model")
# Files that only Wan's own repositories have at their root.
_ORIGINAL_FILE = re.compile(r"(Wan2\.\d_VAE|models_(t5|clip)_.*)\.(pth|safetensors)", re.IGNORECASE)
_PICKLES = (".pth", ".pt", ".ckpt", ".bin")
_FILE_SUFFIXES = (".safetensors", ".sft", *_PICKLES)
_CONFIG_ONLY = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor", "image_processor")


def layout_of(facts: ModelFacts, traits: Mapping[str, Traits]) -> Layout:
    """Return the layout. A folder with an index is what its index says, even if the index cannot be read."""
    if facts.is_file:
        return _layout_of_file(facts, traits)
    if "model_index.json" in facts.files or "model_index.json" in facts.documents:
        name = text_of(facts.documents.get("model_index.json", {}).get("_class_name")) or ""
        return "modular" if name.endswith("ModularPipeline") else "diffusers"
    if "modular_model_index.json" in facts.files or "modular_model_index.json" in facts.documents:
        return "modular"
    root = facts.documents.get("config.json")
    if root is not None:
        config = read_config(root)
        own = config.class_name in KIND_OF_CLASS and config.class_name not in OTHER_TRANSFORMERS
        if config.class_name in KIND_OF_CLASS or config.role == "denoiser":
            return "component" if own or config.style == "diffusers" else "original"
        if config.class_name is not None or config.role != "other" or _has_weights_at_root(facts):
            return "component"
    if _is_original(facts, traits):
        return "original"
    return _layout_by_parts(facts, traits)


def _layout_of_file(facts: ModelFacts, traits: Mapping[str, Traits]) -> Layout:
    path = next(iter(facts.files), facts.root)
    formats = {file.format for file in facts.weights.values()}
    if "gguf" in formats or path.lower().endswith(".gguf"):
        return "gguf"
    roles = {part.role for part in traits.values()}
    if "lora" in roles:
        return "lora"
    return "single_file" if formats or path.lower().endswith(_FILE_SUFFIXES) else "unknown"


def _is_original(facts: ModelFacts, traits: Mapping[str, Traits]) -> bool:
    roots = [path for path in facts.files if "/" not in path]
    folders = {path.partition("/")[0] for path in facts.files if "/" in path}
    if folders.intersection(_EXPERT_FOLDERS):
        return True
    if any(_ORIGINAL_FILE.fullmatch(path) for path in roots):
        return True
    # SkyReels-V3: a diffusers folder for the transformer, pickles at the root for the rest.
    if "transformer" in folders and any(path.endswith(_PICKLES) for path in roots):
        return True
    return any(
        part.header is not None
        and part.header.role == "denoiser"
        and part.header.key_style in ("original", "animate2_original")
        and all("/" not in path and path.startswith("diffusion_pytorch_model") for path in part.weight_paths)
        and "config.json" in facts.files
        for part in traits.values()
    )


def _layout_by_parts(facts: ModelFacts, traits: Mapping[str, Traits]) -> Layout:
    loose = [part for part in traits.values() if part.config_path is None and part.header is not None]
    folders = [part for part in traits.values() if part.config_path is not None and part.name not in _CONFIG_ONLY]
    formats = {facts.weights[path].format for part in loose for path in part.weight_paths if path in facts.weights}
    if len(folders) >= 2:
        return "diffusers"
    if len(folders) == 1 and (folders[0].role == "denoiser" or not any(part.role == "denoiser" for part in loose)):
        return "component"
    if loose and all(part.role in ("lora", "other") for part in loose) and any(part.role == "lora" for part in loose):
        return "lora"
    if any(file.endswith(".gguf") for file in facts.files) and (formats == {"gguf"} or not loose):
        return "gguf"
    if "gguf" in formats and not any(part.role == "denoiser" and _is_safetensors(facts, part) for part in loose):
        return "gguf"
    if loose:
        diffusers = all(part.header is not None and part.header.key_style == "diffusers" for part in loose)
        plain = all(
            path.rpartition("/")[2].startswith("diffusion_pytorch_model")
            for part in loose
            for path in part.weight_paths
        )
        return "component" if diffusers and plain else "single_file"
    weights = [path for path in facts.files if path.endswith(_FILE_SUFFIXES)]
    return "single_file" if len(weights) == 1 else "unknown"


def _has_weights_at_root(facts: ModelFacts) -> bool:
    return any("/" not in path and path.endswith(_FILE_SUFFIXES) for path in facts.files)


def _is_safetensors(facts: ModelFacts, part: Traits) -> bool:
    return any(path in facts.weights and facts.weights[path].format == "safetensors" for path in part.weight_paths)
