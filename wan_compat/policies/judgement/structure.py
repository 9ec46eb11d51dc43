"""Is everything there, and is it of the right kind? Index, parts, configurations, layout. Shards are in shards.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.findings import Finding, Severity, finding
from wan_compat.policies.judgement.parts import (
    PICKLE,
    SHARD,
    TOKENIZER_FILES,
    WEIGHT_STEMS,
    Part,
    files_in,
    index_of,
    loadable_weights,
    parts_of,
    several,
)
from wan_compat.policies.model_index import is_component_entry
from wan_compat.policies.variants import VARIANTS

# Parts that a pipeline cannot do without. Of the denoisers it needs one; see _components.
_ALWAYS = ("scheduler", "text_encoder", "tokenizer", "vae")
_STANDARD = frozenset({*_ALWAYS, "transformer", "transformer_2", "image_encoder", "image_processor", "unet"})
_REQUIRED: Mapping[str, tuple[str, ...]] = {"WanAnimatePipeline": (*_ALWAYS, "image_encoder", "image_processor")}


def judge_structure(facts: ModelFacts, architecture: Architecture) -> Iterator[Finding]:
    """Yield what is missing, malformed or in the wrong place. What could not be read at all is in `facts.problems`."""
    if not facts.documents and not facts.weights and not any(PICKLE.fullmatch(path) for path in facts.files):
        if not facts.problems:
            yield finding("empty_model", f"{len(facts.files)} files, none of them a configuration or weights")
        return
    yield from judge_layout(facts, architecture)
    yield from judge_index(facts, architecture)
    if architecture.layout in ("diffusers", "modular"):
        for part in parts_of(facts, architecture).values():
            if part.name not in facts.sources:
                yield from _part(facts, part)
            config = facts.documents.get(f"{part.name}/{part.settings_file}")
            if config is not None and architecture.is_wan is not False:
                yield from judge_numbers(part, config)


# ---- layout ---------------------------------------------------------------------------------------------------------


def judge_layout(facts: ModelFacts, architecture: Architecture) -> Iterator[Finding]:
    if architecture.layout != "original":
        return
    variant = VARIANTS.get(architecture.variant or "")
    official = variant.repository if variant is not None and variant.pipeline_class is not None else None
    message = "the files are in the layout of the original program, not in diffusers'"
    if official is None:
        yield finding("layout_not_diffusers", message)
        return
    yield finding(
        "layout_not_diffusers",
        f"{message}; {official} is {architecture.variant} in diffusers layout",
        fix=f"use {official}, or `wan-compat convert`",
    )


# ---- model_index.json -----------------------------------------------------------------------------------------------


def judge_index(facts: ModelFacts, architecture: Architecture) -> Iterator[Finding]:
    path, index = index_of(facts)
    if not index:
        yield from _no_index(facts, architecture)
        return
    class_name = index.get("_class_name")
    if class_name is None:
        yield finding("wrong_type", f"{path} has no _class_name: nothing says which pipeline this is", path=path)
    elif not isinstance(class_name, str | list):
        yield finding("wrong_type", f"{path} has _class_name={class_name!r}, not a name", path=path)
    for name, entry in index.items():
        if name.startswith("_"):
            continue
        if name in _STANDARD and entry is not None and not is_component_entry(entry):
            yield finding(
                "wrong_type", f"{path} has {name}={entry!r}, not a pair of library and class", component=name, path=path
            )
        elif is_component_entry(entry) and (entry[0] is None) != (entry[1] is None):
            yield finding(
                "wrong_type",
                f"{path} has {name}={entry[:2]!r}: library and class must both be there, or both be null",
                component=name,
                path=path,
            )
    yield from _settings(path, index)
    if architecture.is_wan:
        yield from judge_boundary(facts)
    yield from _required(facts, architecture, path)


def _no_index(facts: ModelFacts, architecture: Architecture) -> Iterator[Finding]:
    named = "model_index.json" if "model_index.json" in facts.files else "modular_model_index.json"
    parts = sorted(folder for folder in facts.configs if "/" not in folder)
    if named in facts.files:
        fix = None if parts else "download the repository again, all of it"
        yield finding(
            "model_index_corrupt",
            f"{named} cannot be used; {several(parts, 6) or 'no component'} can be read",
            path=named,
            fix=fix,
        )
    elif not facts.is_file and len(parts) > 1 and architecture.layout != "original":
        yield finding(
            "model_index_missing",
            f"no model_index.json, but the components {several(parts, 8)} are here",
            path="model_index.json",
            fix="run `wan-compat check MODEL --repair DIR` for a copy with a rebuilt model_index.json",
            severity=Severity.ERROR,
        )
    elif not facts.is_file and architecture.layout in ("component", "unknown"):
        yield finding("model_index_missing", "no model_index.json: this is no whole pipeline", path="model_index.json")


def _settings(path: str, index: Mapping[str, Any]) -> Iterator[Finding]:
    boundary = index.get("boundary_ratio")
    if boundary is not None:
        if isinstance(boundary, bool) or not isinstance(boundary, int | float):
            yield finding("wrong_type", f"{path} has boundary_ratio={boundary!r}, not a number", path=path)
        elif not 0 <= boundary <= 1:
            yield finding("out_of_range", f"{path} has boundary_ratio={boundary!r}, outside of 0 to 1", path=path)
    expand = index.get("expand_timesteps")
    if expand is not None and not isinstance(expand, bool):
        yield finding("wrong_type", f"{path} has expand_timesteps={expand!r}, not true or false", path=path)


def judge_boundary(facts: ModelFacts) -> Iterator[Finding]:
    """Yield a boundary without a second expert, and the reverse."""
    path, index = index_of(facts)
    if path != "model_index.json" or not index:
        return
    boundary = index.get("boundary_ratio")
    two = "transformer_2" in parts_of(facts)
    if boundary is not None and not two:
        # diffusers' own converter writes this for Wan 2.1; sampling then calls None once the timestep falls below.
        yield finding(
            "boundary_without_second_expert",
            f"{path} sets boundary_ratio={boundary!r} but has no transformer_2",
            component="transformer_2",
            path=path,
        )
    if two and boundary is None:
        yield finding(
            "second_expert_without_boundary",
            f"{path} has transformer_2 but no boundary_ratio",
            component="transformer_2",
            path=path,
        )


def _required(facts: ModelFacts, architecture: Architecture, path: str) -> Iterator[Finding]:
    """Judge absent parts of Wan pipelines only: other families have parts of their own."""
    if path != "model_index.json" or not architecture.is_wan:
        return
    parts = parts_of(facts, architecture)
    for name in _REQUIRED.get(architecture.pipeline_class or "", _ALWAYS):
        if name not in parts:
            yield finding("component_missing", f"{path} names no {name}", component=name, path=path)
    if "transformer" not in parts and "transformer_2" not in parts:
        yield finding("component_missing", f"{path} names no transformer", component="transformer", path=path)
    elif "transformer" not in parts and index_of(facts)[1].get("boundary_ratio") != 1:
        # With a boundary of 1 every step is the low-noise expert's, and diffusers takes None for the other.
        yield finding(
            "component_missing",
            f"{path} names a transformer_2 only: the high-noise expert is missing",
            component="transformer",
            path=path,
        )


# ---- parts ----------------------------------------------------------------------------------------------------------


def _part(facts: ModelFacts, part: Part) -> Iterator[Finding]:
    if part.elsewhere:
        return  # code.py tells that it is fetched
    name = part.name
    inside = files_in(facts, name)
    if not inside:
        if not any(path.startswith(f"{name}/") for path in facts.files):
            yield finding("component_missing", f"the folder {name}/ is missing", component=name, path=f"{name}/")
        else:
            yield finding("component_missing", f"the folder {name}/ holds only folders", component=name, path=name)
        return
    if part.is_tokenizer:
        if not any(file in inside for file in TOKENIZER_FILES):
            yield finding(
                "component_config_missing",
                f"{name}/ has none of {', '.join(TOKENIZER_FILES)}",
                component=name,
                path=f"{name}/",
            )
        return
    if part.settings_file not in inside and part.name != "processor":
        yield finding(
            "component_config_missing",
            f"{name}/ has no {part.settings_file}",
            component=name,
            path=f"{name}/{part.settings_file}",
        )
    if part.has_weights:
        yield from _weights(part, list(inside), bool(loadable_weights(inside, part.library)))


def _weights(part: Part, names: list[str], present: bool) -> Iterator[Finding]:
    if present:
        return
    name, stem = part.name, WEIGHT_STEMS.get(part.library or "diffusers", "model")
    others = sorted(file for file in names if file.endswith((".safetensors", ".gguf", ".flashpack")))
    if not others:
        if not any(PICKLE.fullmatch(file) for file in names):  # else code.py refuses the pickle
            yield finding("weights_missing", f"{name}/ has no weights", component=name, path=f"{name}/")
        return
    if others[0].endswith(".flashpack"):
        message = f"{name}/ has its weights as FlashPack, which diffusers cannot read: {several(others)}"
        fix = "use a repository with .safetensors weights"
        yield finding("weights_missing", message, component=name, path=f"{name}/{others[0]}", fix=fix)
        return
    variants = [
        file for file in others if file.startswith(f"{stem}.") or ((s := SHARD.fullmatch(file)) and s["variant"])
    ]
    what = "only in another precision" if variants else f"not as {stem}.safetensors, the name that is looked for"
    yield finding(
        "weights_missing",
        f"{name}/ has its weights {what}: {several(others)}",
        component=name,
        path=f"{name}/{others[0]}",
        fix=f"rename the files to {stem}.safetensors in a copy, or use another repository",
    )


# Field -> smallest and largest value that makes sense; what real models have lies far inside.
_WHOLE = {
    "num_layers": (1, 1000), "num_attention_heads": (1, 1024), "attention_head_dim": (1, 4096),
    "in_channels": (1, 4096), "out_channels": (1, 4096), "text_dim": (1, 1 << 20), "freq_dim": (1, 1 << 20),
    "ffn_dim": (1, 1 << 20), "image_dim": (1, 1 << 20), "added_kv_proj_dim": (1, 1 << 20),
    "pos_embed_seq_len": (1, 1 << 20), "rope_max_seq_len": (1, 1 << 24), "vace_in_channels": (1, 4096),
    "z_dim": (1, 4096), "base_dim": (1, 1 << 16), "decoder_base_dim": (1, 1 << 16), "num_res_blocks": (0, 64),
    "scale_factor_temporal": (1, 64), "scale_factor_spatial": (1, 256),
    "d_model": (1, 1 << 20), "d_ff": (1, 1 << 22), "vocab_size": (1, 1 << 24), "num_heads": (1, 1024),
    "hidden_size": (1, 1 << 20), "num_hidden_layers": (1, 1000), "num_train_timesteps": (1, 1_000_000),
}  # fmt: skip
_REAL = {"flow_shift": (0.0, 1000.0), "eps": (0.0, 1.0), "layer_norm_epsilon": (0.0, 1.0), "shift": (0.0, 1000.0)}


def judge_numbers(part: Part, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the fields of one configuration that have the wrong type or no sensible size. Null means the default."""
    path = f"{part.name}/{part.settings_file}"

    def wrong(key: str, what: str, code: str = "wrong_type") -> Finding:
        return finding(code, f"{path} has {key}={config[key]!r}, {what}", component=part.name, path=path)

    for key, (low, high) in _WHOLE.items():
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            yield wrong(key, "not a whole number")
        elif not low <= value <= high:
            yield wrong(key, f"outside of {low} to {high}", "out_of_range")
    for key, (least, most) in _REAL.items():
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield wrong(key, "not a number")
        elif not least <= value <= most:
            yield wrong(key, f"outside of {least:g} to {most:g}", "out_of_range")
    patch = config.get("patch_size")
    if patch is None:
        return
    sides = patch if isinstance(patch, list) else [patch]
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        yield wrong("patch_size", "not whole numbers")
    elif not all(1 <= side <= 64 for side in sides):
        yield wrong("patch_size", "outside of 1 to 64", "out_of_range")
    elif part.name.startswith("transformer") and len(sides) != 3:
        yield wrong("patch_size", "not frames, height and width")
